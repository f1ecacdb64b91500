"""Where secrets stand on this host. Only digests of them are sent here, only names go back.

Arguments: JSON {digest: name} and JSON [part]. A secret is known by the first 40 characters of each
form it may take. Prints {part: what was found}; the parts:

- own: {digest: name} of what only this host knows, its WireGuard private key
- files: {path: [[names], mode, owner, closed]}; closed says that no other user gets to the file
- processes: {"<pid> <name>": [[names], where]}
- docker: [names] in what Docker tells of containers and images
- journal: [names] in all fields of the journal of this boot
- watch: as processes, of everything that runs until the file /run/canary-watch is gone
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path

LENGTH = 40
RUN = re.compile(rb"[A-Za-z0-9+/%%\\_=-]{%d,}" % LENGTH)
PATTERN = f"[A-Za-z0-9+/%\\\\_=-]{{{LENGTH}}}"
# What roles, services, containers and operators write to.
PLACES = ["/etc", "/root", "/home", "/opt", "/srv", "/run", "/tmp", "/var/tmp", "/var/log"]
PLACES += ["/var/backups", "/var/lib/prime-spark", "/var/lib/private", "/var/lib/systemd"]
PLACES += ["/usr/local", "/usr/lib/systemd", "/var/lib/docker/containers"]
WATCH = Path("/run/canary-watch")

Wanted = Mapping[str, str]


def forms(value: str) -> set[str]:
    """The beginnings of all forms in which a secret may be written."""
    data = value.encode()
    found = {value, data.hex(), data.hex().upper(), urllib.parse.quote(value, safe="")}
    found.add(value.replace("/", "\\/"))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):
            # Within something longer, the first and last characters depend on the neighbours.
            text = encode(b"\0" * shift + data).decode()
            found.add(text[4:] if shift else text)
    return {text[:LENGTH] for text in found if len(text) >= LENGTH}


def digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def digests(secrets: Mapping[str, str]) -> dict[str, str]:
    """{digest: name} of all forms of named secrets."""
    return {digest(form.encode()): name for name, v in secrets.items() for form in forms(v)}


def names_in(data: bytes, wanted: Wanted) -> list[str]:
    """Names of the secrets that occur in the data."""
    found = set()
    for run in set(RUN.findall(data)):
        for start in range(len(run) - LENGTH + 1):
            name = wanted.get(digest(run[start : start + LENGTH]))
            if name:
                found.add(name)
    return sorted(found)


def own(_: Wanted) -> dict[str, str]:
    if not shutil.which("wg"):
        return {}
    key = subprocess.run(
        ["wg", "show", "wg0", "private-key"], capture_output=True, text=True, check=False
    ).stdout.strip()
    name = f"WireGuard private key of {os.uname().nodename}"
    if not key:
        return {}
    return {**digests({name: key}), **digests({name: base64.b64decode(key).hex()})}


def closed(path: str) -> bool:
    """Whether some directory above keeps other users out."""
    return any(
        not os.stat(parent).st_mode & stat.S_IXOTH for parent in map(str, Path(path).parents)
    )


def files(wanted: Wanted) -> dict[str, list[object]]:
    """Files with a secret in them. grep finds the few that may have one."""
    places = [place for place in PLACES if os.path.isdir(place)]
    command = ["grep", "-rlaZE", "--devices=skip", "--exclude-dir=releases", PATTERN, "--", *places]
    listed = subprocess.run(
        command, capture_output=True, check=False, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    ).stdout
    found: dict[str, list[object]] = {}
    for name in listed.split(b"\0"):
        path = os.fsdecode(name)
        # The journal's files are read by its own part; wheels are of no host's making.
        if not path or path.startswith(("/var/log/journal/", "/opt/prime-spark/artifacts/")):
            continue
        try:
            if names := names_in(Path(path).read_bytes(), wanted):
                info = os.stat(path)
                mode = f"{stat.S_IMODE(info.st_mode):04o}"
                found[path] = [names, mode, info.st_uid, closed(path)]
        except FileNotFoundError:
            pass  # a temporary file that is gone by now
    return found


def processes(wanted: Wanted, seen: set[tuple[str, int]] | None = None) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        for where in ("cmdline", "environ"):
            try:
                data = (entry / where).read_bytes()
                if seen is not None:
                    if (key := (entry.name + where, hash(data))) in seen:
                        continue
                    seen.add(key)
                if names := names_in(data, wanted):
                    command = (entry / "comm").read_text().strip()
                    found[f"{entry.name} {command}"] = [names, where]
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def watch(wanted: Wanted) -> dict[str, object]:
    """Look at all processes again and again, until told to stop."""
    found: dict[str, object] = {}
    seen: set[tuple[str, int]] = set()
    deadline = time.monotonic() + 1800
    while WATCH.exists() and time.monotonic() < deadline:
        found.update(processes(wanted, seen))
        time.sleep(0.1)
    return {"found": found, "seen": len(seen)}


def docker(wanted: Wanted) -> list[str]:
    if not shutil.which("docker"):
        return []
    script = """
        docker ps -aq | xargs -r docker inspect
        docker image ls -q | sort -u | xargs -r docker image inspect
        for image in $(docker image ls -q | sort -u); do docker history --no-trunc "$image"; done
        for id in $(docker ps -aq); do docker logs "$id" 2>&1; done
    """
    output = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert b"HostConfig" in output
    return names_in(output, wanted)


def journal(wanted: Wanted) -> list[str]:
    # With all fields: the arguments of who logged are among them.
    command = ["journalctl", "--boot", "--no-pager", "--all", "--output", "export"]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    assert b"_CMDLINE=" in output
    return names_in(output, wanted)


PARTS: dict[str, Callable[[Wanted], object]] = {
    "own": own,
    "files": files,
    "processes": processes,
    "docker": docker,
    "journal": journal,
    "watch": watch,
}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps({part: PARTS[part](asked) for part in json.loads(sys.argv[2])}))
