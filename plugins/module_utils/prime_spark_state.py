"""Whether a host still is what its roles last brought up.

A role's *manifest* names every thing that the role manages, by kind, with what was there when the
run that brought it up had ended well. `differences` compares it with the host and changes nothing.
The manifest is sealed with a key that only the run knows, so that the controller notices a manifest
that was changed together with the thing it describes.
"""

from __future__ import annotations

import glob
import grp
import hashlib
import hmac
import json
import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.prime_spark_command import CommandError, execute
from ansible.module_utils.prime_spark_kernel import kernel_has
from ansible.module_utils.prime_spark_notes import (
    ROLE_DIR,
    forget_role,
    load,
    manifest_path,
    notes_path,
    write_private,
)
from ansible.module_utils.prime_spark_ping import ping
from ansible.module_utils.prime_spark_tree import RECORD_DIR, drop_ins, gid_of, uid_of
from ansible.module_utils.prime_spark_units import printed, unit_states
from ansible.module_utils.prime_spark_wireguard import WireGuardError, observed

# Name of a thing to what is known of it, and to the sentences on what differs.
Things = dict[str, Any]
Found = dict[str, list[str]]

RUNNING = ("active", "reloading")
# A sentence that starts so is a doubt: only a run can tell.
UNSURE = "unsure: "
PINGS = 3
MOUNT_SECONDS = 8.0


def output(argv: list[str], timeout: float = 60) -> tuple[int, str]:
    """Exit status and standard output; 127 where the program is not there."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout


# --- files, directories and links -------------------------------------------------------------


def file_digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_difference(path: str, digest: str, mode: str, owner: str, group: str) -> str:
    """What about a file differs; empty for nothing."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no regular file"
        if file_digest(path) != digest:
            return f"content of {path}"
        wanted = (int(mode, 8), uid_of(owner), gid_of(group))
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    except Exception as error:
        return f"{path}: {error}"
    if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != wanted:
        return f"owner or mode of {path}"
    return ""


def directory_differences(
    path: str, mode: str, owner: str, group: str, kept: list[str] | None
) -> list[str]:
    """A directory's owner and mode and, where only ours may lie in it, what else does."""
    try:
        status = os.stat(path)
        wanted = (int(mode, 8), uid_of(owner), gid_of(group))
    except (FileNotFoundError, NotADirectoryError):
        return [f"{path} is missing"]
    except Exception as error:
        return [f"{path}: {error}"]
    found = []
    if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != wanted:
        found.append(f"owner or mode of {path}")
    if kept is not None:
        ours = set(kept)
        for root, names, leaves in os.walk(path):
            for name in [*names, *leaves]:
                inside = os.path.join(root, name)
                if inside not in ours and not any(k.startswith(inside + os.sep) for k in ours):
                    found.append(f"{inside} is not ours")
    return found


def look_at_trees(trees: Things) -> Found:
    """Files (digest, mode, owner, group), directories and links of each tree."""
    found: Found = {}
    for name, tree in trees.items():
        sentences = [
            sentence
            for path, expected in tree.get("files", {}).items()
            if (sentence := file_difference(path, *expected))
        ]
        for path, expected in tree.get("directories", {}).items():
            sentences += directory_differences(path, *expected)
        for path, target in tree.get("links", {}).items():
            if not os.path.islink(path) or os.readlink(path) != target:
                sentences.append(f"link {path}")
        for path in tree.get("files", {}):
            ours = tree["files"]
            sentences += [f"drop-in {extra}" for extra in drop_ins(path) if extra not in ours]
        found[name] = sentences
    return found


# --- units ------------------------------------------------------------------------------------


def seal_units(units: Things) -> Things:
    states = unit_states(sorted(units))
    return {
        name: {**expected, "UnitFileState": states.get(name, {}).get("UnitFileState", "")}
        for name, expected in units.items()
    }


def look_at_units(units: Things) -> Found:
    """Enabled as it was, loaded from what is on the disk, running where it has to."""
    states = unit_states(sorted(units))
    found: Found = {}
    for name, expected in units.items():
        seen = states.get(name, {})
        sentences = []
        if expected.get("runs") and seen.get("ActiveState") not in RUNNING:
            sentences.append(f"{name} is {seen.get('ActiveState', 'unknown')}")
        if seen.get("UnitFileState", "") != expected["UnitFileState"]:
            state = seen.get("UnitFileState") or "not there"
            sentences.append(f"{name} is {state}, expected {expected['UnitFileState']}")
        if seen.get("NeedDaemonReload") == "yes":
            sentences.append(f"{name} was changed since systemd read it")
        found[name] = sentences
    return found


# --- packages, accounts, paths, releases --------------------------------------------------------


def look_at_packages(packages: Things) -> Found:
    """Installed; which version is none of a role's business."""
    names = sorted(packages)
    argv = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n", "--", *names]
    _, said = output(argv)
    installed = {line.split()[0] for line in said.splitlines() if line.endswith(" ok installed")}
    return {n: [] if n in installed else [f"package {n} is not installed"] for n in names}


def look_at_masks(units: Things) -> Found:
    return {
        name: []
        if os.path.realpath(f"/etc/systemd/system/{name}") == "/dev/null"
        else [f"{name} is not masked"]
        for name in units
    }


def account(name: str) -> str:
    """What makes a user or a group, ``user:NAME`` or ``group:NAME``; empty where there is none."""
    kind, _, who = name.partition(":")
    try:
        if kind == "group":
            return f"{grp.getgrnam(who).gr_gid}"
        entry = pwd.getpwnam(who)
    except KeyError:
        return ""
    return f"{entry.pw_uid}:{entry.pw_gid}:{entry.pw_dir}:{entry.pw_shell}"


def look_at_accounts(accounts: Things) -> Found:
    found: Found = {}
    for name, expected in accounts.items():
        seen = account(name)
        word = name.replace(":", " ")
        found[name] = [] if seen == expected else [f"{word} is {'changed' if seen else 'missing'}"]
    return found


def path_state(path: str) -> str:
    """Kind, mode and owner of a path, of a file its digest as well; empty where nothing is."""
    try:
        status = os.lstat(path)
        state = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
        return f"{state} {file_digest(path)}" if stat.S_ISREG(status.st_mode) else state
    except OSError:
        return ""


def look_at_paths(paths: Things) -> Found:
    found: Found = {}
    for path, expected in paths.items():
        seen = path_state(path)
        found[path] = [] if seen == expected else [f"{path} is {'changed' if seen else 'missing'}"]
    return found


# --- containers ---------------------------------------------------------------------------------


def running_projects() -> dict[str, dict[str, str]] | None:
    """Project and service to the hash and state of its container; None without Docker."""
    status, listed = output(
        ["docker", "ps", "--all", "--no-trunc", "--format", "{{json .}}", "--filter",
         "label=com.docker.compose.project"]
    )  # fmt: skip
    if status != 0:
        return None
    found: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        entry = json.loads(line)
        labels = dict(item.partition("=")[::2] for item in entry["Labels"].split(","))
        state = "unhealthy" if "(unhealthy)" in entry["Status"] else entry["State"]
        service = labels.get("com.docker.compose.service", entry["Names"])
        digest = labels.get("com.docker.compose.config-hash", "")
        services = found.setdefault(labels["com.docker.compose.project"], {})
        # Two containers of one service: one of them is not ours.
        services[service] = "twice" if service in services else f"{digest} {state}"
    return found


def seal_projects(projects: Things) -> Things:
    running = running_projects() or {}
    return {name: running.get(name, {}) for name in projects}


def look_at_projects(projects: Things) -> Found:
    """Every service's container, of the definition that was brought up, running and healthy."""
    running = running_projects()
    found: Found = {}
    for name, services in projects.items():
        if running is None:
            found[name] = ["Docker does not answer"]
            continue
        seen, sentences = running.get(name, {}), []
        for service in sorted({*services, *seen}):
            if service not in seen:
                sentences.append(f"container {service} is missing")
            elif service not in services:
                sentences.append(f"container {service} is not ours")
            elif seen[service].split()[-1] != "running":
                sentences.append(f"container {service} is {seen[service].split()[-1]}")
            elif seen[service] != services[service]:
                sentences.append(f"container {service} has another definition")
        found[name] = sentences
    return found


# --- commands and what they print ---------------------------------------------------------------


def look_at_commands(commands: Things) -> Found:
    """What a command that makes something match would change, asked as in check mode."""

    def ask(params: dict[str, Any]) -> list[str]:
        try:
            changes: list[str] = execute(params, "", check_mode=True)
            return changes
        except (CommandError, OSError) as error:
            return [f"cannot be asked: {str(error).splitlines()[0][:300]}"]

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(commands, pool.map(ask, commands.values()), strict=True))


def look_at_loaded(loaded: Things) -> Found:
    """What the kernel has loaded, as a command prints it."""
    return {
        name: [] if printed(entry["argv"]) == entry["printed"] else [f"`{name}` prints otherwise"]
        for name, entry in loaded.items()
    }


# --- VPN and NAS --------------------------------------------------------------------------------


def seal_interfaces(interfaces: Things) -> Things:
    return {name: {**seen, "seen": observed(name, seen)} for name, seen in interfaces.items()}


def look_at_interfaces(interfaces: Things) -> Found:
    """The running interface: its key, port, addresses, routes, and each peer."""
    found: Found = {}
    for name, expected in interfaces.items():
        try:
            seen = observed(name, expected)
        except (WireGuardError, OSError) as error:
            found[name] = [f"{name}: {error}"]
            continue
        wanted = expected["seen"]
        unsure = silent(name, expected["calls"])
        found[name] = [
            f"{key} of {name}"
            for key in sorted({*wanted, *seen})
            if wanted.get(key) != seen.get(key)
        ] + [f"{UNSURE}{peer} does not answer through {name}" for peer in unsure]
    return found


def silent(name: str, calls: dict[str, str]) -> list[str]:
    """Of the peers that this host calls, by name with their addresses, those that do not answer.

    A peer that has another key since is one of them, and that only the run can tell.
    """
    return [
        peer
        for peer, address in calls.items()
        # The first packet after a while may wait for a handshake.
        if all(ping(address, interface=name) is None for _ in range(PINGS))
    ]


def look_at_mounts(mounts: Things) -> Found:
    """Whether the share can be used; mounts it where that happens on demand."""
    found: Found = {}
    for point, expected in mounts.items():
        # A process that touches a dead share can hang beyond the reach of any signal; it is left.
        look = subprocess.Popen(
            ["stat", os.path.join(point, expected["sentinel"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            usable = look.wait(min(expected["timeout"], MOUNT_SECONDS)) == 0
        except subprocess.TimeoutExpired:
            look.kill()
            usable = False
        found[point] = [] if usable else [f"{UNSURE}{point} cannot be used now"]
    return found


def look_at_kernel(things: Things) -> Found:
    """Whether the kernel still has, or lacks, what a choice depended on."""
    found: Found = {}
    for name, expected in things.items():
        there = kernel_has(expected["filesystem"], expected["module"])
        state = "has" if there else "lacks"
        same = there == expected["there"]
        found[name] = [] if same else [f"the kernel {state} {expected['filesystem']} now"]
    return found


# --- the manifest -------------------------------------------------------------------------------


def unchanged(things: Things) -> Things:
    return things


# Kind to what completes a note when it is sealed, and to what compares it with the host.
KINDS: dict[str, tuple[Callable[[Things], Things], Callable[[Things], Found]]] = {
    "tree": (unchanged, look_at_trees),
    "unit": (seal_units, look_at_units),
    "package": (unchanged, look_at_packages),
    "mask": (unchanged, look_at_masks),
    "account": (lambda things: {name: account(name) for name in things}, look_at_accounts),
    "path": (lambda things: {path: path_state(path) for path in things}, look_at_paths),
    "project": (seal_projects, look_at_projects),
    "command": (unchanged, look_at_commands),
    "loaded": (
        lambda things: {n: {**e, "printed": printed(e["argv"])} for n, e in things.items()},
        look_at_loaded,
    ),
    "interface": (seal_interfaces, look_at_interfaces),
    "kernel": (unchanged, look_at_kernel),
    "mount": (unchanged, look_at_mounts),
}


def of_trees(role: str, run: str, directory: str = RECORD_DIR) -> dict[str, Things]:
    """Things of the trees and projects that a run brought up for a role, from their records."""
    things: dict[str, Things] = {}

    def add(kind: str, name: str, value: Any) -> None:
        things.setdefault(kind, {})[name] = value

    for path in sorted(glob.glob(f"{directory}/*.json")):
        record = load(path)
        managed = record.get("managed")
        if record.get("role") != role or record.get("run") != run or not managed:
            continue
        links = managed.get("links", {})
        files, directories = managed.get("files", {}), managed.get("directories", {})
        name = os.path.basename(path).removesuffix(".json")
        add("tree", name, {"files": files, "directories": directories, "links": links})
        for file in files:
            if os.path.dirname(file) == "/etc/systemd/system" and "@" not in file:
                add("unit", os.path.basename(file), {"runs": False})
        for target in links.values():
            if "/releases/" in target:
                add("path", f"{target}/.complete", "")
        for unit in managed.get("units", []):
            add("unit", unit, {"runs": True})
        if "project" in managed:
            add("project", managed["project"], {})
        for argv in managed.get("loaded", []):
            add("loaded", " ".join(argv), {"argv": argv})
        watch = managed.get("watch", {})
        for place in watch.get("paths", []):
            add("path", place, "")
        for kind in ("users", "groups"):
            for who in watch.get(kind, []):
                add("account", f"{kind.removesuffix('s')}:{who}", "")
    return things


def gather(role: str, run: str, directory: str = ROLE_DIR) -> dict[str, Things]:
    """Everything that a run brought up for a role, completed with what is there now."""
    things = of_trees(role, run)
    notes = load(notes_path(role, directory))
    if notes.get("run") == run:
        for kind, more in notes["things"].items():
            things.setdefault(kind, {}).update(more)
    return {kind: KINDS[kind][0](found) for kind, found in things.items()}


def compare(manifests: dict[str, dict[str, Things]], skip: tuple[str, ...] = ()) -> Found:
    """Role to the sentences on what differs from its things; one look per kind for all roles."""
    kinds = [kind for kind in KINDS if kind not in skip]
    merged = {
        kind: {
            (role, name): value
            for role, things in manifests.items()
            for name, value in things.get(kind, {}).items()
        }
        for kind in kinds
    }

    def look(kind: str) -> list[tuple[str, str]]:
        wanted = merged[kind]
        try:
            # By name within one look: two roles may want the same package.
            seen = KINDS[kind][1]({name: value for (_, name), value in wanted.items()})
        except Exception as error:
            # A manifest that somebody wrote anything into must not end the run.
            seen = {name: [f"{kind} {name} cannot be compared: {error!r}"] for _, name in wanted}
        return [(role, sentence) for role, name in wanted for sentence in seen.get(name, [])]

    found: Found = {role: [] for role in manifests}
    with ThreadPoolExecutor(max_workers=len(kinds)) as pool:
        for pairs in pool.map(look, [kind for kind in kinds if merged[kind]]):
            for role, sentence in pairs:
                found[role].append(sentence)
    return {role: list(dict.fromkeys(sentences)) for role, sentences in found.items()}


def canonical(role: str, stamp: str, things: dict[str, Things]) -> str:
    """Digest of a manifest."""
    text = json.dumps([role, stamp, things], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(key: str, digest: str) -> str:
    """The seal of a digest under the key of one run, role and host."""
    return hmac.new(key.encode(), digest.encode(), hashlib.sha256).hexdigest()


def examine(roles: list[str], directory: str = ROLE_DIR) -> dict[str, dict[str, Any]]:
    """Role to stamp, nonce, seal and digest of its manifest, and what differs from it.

    A role without a manifest is left out.
    """
    manifests = {}
    for role in roles:
        manifest = load(manifest_path(role, directory))
        if isinstance(manifest.get("things"), dict) and set(manifest["things"]) <= set(KINDS):
            manifests[role] = manifest
    found = compare({role: manifest["things"] for role, manifest in manifests.items()})
    return {
        role: {
            "stamp": manifest.get("stamp", ""),
            "nonce": manifest.get("nonce", ""),
            "seal": manifest.get("seal", ""),
            "digest": canonical(role, manifest.get("stamp", ""), manifest["things"]),
            "differences": found[role],
        }
        for role, manifest in manifests.items()
    }


def seal(role: str, run: str, stamp: str, nonce: str, key: str, directory: str = ROLE_DIR) -> Found:
    """Write the manifest of a role that was played to its end; returns what keeps it from that.

    A thing that is not as the run left it leaves the role without a manifest: the next run plays
    it again.
    """
    things = gather(role, run, directory)
    # What commands would change was just asked by the run itself.
    says = compare({role: things}, ("command",))[role]
    found = [sentence for sentence in says if not sentence.startswith(UNSURE)]
    notes = notes_path(role, directory)
    if found:
        forget_role(role, directory)
        return {role: found}
    digest = canonical(role, stamp, things)
    manifest = {"stamp": stamp, "nonce": nonce, "seal": sealed(key, digest), "things": things}
    write_private(manifest_path(role, directory), manifest)
    if os.path.exists(notes):
        os.unlink(notes)
    return {}


def recorded_roles(directory: str = RECORD_DIR) -> list[str]:
    """The roles that wrote trees or projects here; a record that cannot be read names none."""
    records = (load(path) for path in glob.glob(f"{directory}/*.json"))
    return sorted({str(record["role"]) for record in records if record.get("role")})
