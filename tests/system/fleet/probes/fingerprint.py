"""What a run of site.yml makes of a host, as {section: {name: what}}; equal hosts print the same.

Left out: times, caches, data, what runs for a moment (idle mounts), and what is born on the host:
private keys are compared by owner and mode, WireGuard's and SSH's keys within other files by their
presence.
"""

import grp
import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
from pathlib import Path

PLACES = [
    "/etc/prime-spark",
    "/etc/systemd/system",
    "/etc/wireguard",
    "/etc/docker",
    "/etc/sysctl.d",
    "/etc/ssh/sshd_config.d",
    "/etc/ssh/prime-spark-nas",
    "/opt/prime-spark",
    "/usr/local/lib",
    "/var/lib/prime-spark/trees",
]
# Born on the host: only that they are there.
BORN = re.compile(r"/etc/wireguard/private\.key|/etc/prime-spark/nas/id_ed25519(\.pub)?")
KEY = re.compile(rb"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{43}=|AAAA[A-Za-z0-9+/]{40,}={0,2}")
# One line for each of these, however many files it has.
WHOLE = re.compile(r"(/opt/prime-spark/(?:services/[^/]+/releases|artifacts)/[^/]+)/.*")
CACHES = {"__pycache__"}
OUR_UNITS = ("prime-spark-", "wg-quick@", "docker.service", "ssh.service", "mnt-nas.automount")


def output(*argv: str) -> list[str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []  # not a program of this host
    return done.stdout.splitlines()


def names(status: os.stat_result) -> str:
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"{stat.filemode(status.st_mode)} {owner} {group}"


def describe(path: str) -> str:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode) or BORN.fullmatch(path):
        return names(status)
    content = KEY.sub(b"KEY", Path(path).read_bytes())
    return f"{names(status)} {hashlib.sha256(content).hexdigest()[:16]}"


def files() -> dict[str, str]:
    found: dict[str, str] = {}
    whole: dict[str, list[str]] = {}
    for place in PLACES:
        if not os.path.lexists(place):
            continue
        found[place] = describe(place)
        for folder, folders, leaves in os.walk(place):
            folders[:] = sorted(set(folders) - CACHES)
            for name in sorted([*folders, *leaves]):
                path = os.path.join(folder, name)
                if match := WHOLE.fullmatch(path):
                    whole.setdefault(match[1], []).append(f"{path} {describe(path)}")
                else:
                    found[path] = describe(path)
    for path, lines in whole.items():
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        found[path] += f", {len(lines)} files {digest}"
    return found


def units() -> dict[str, str]:
    found = {}
    for line in output("systemctl", "list-unit-files", "--plain", "--no-legend"):
        name, state = line.split()[:2]
        if state not in ("generated", "transient"):
            found[name] = state
    for line in output("systemctl", "list-units", "--all", "--plain", "--no-legend"):
        name, load, active = line.split()[:3]
        if not name.startswith(OUR_UNITS):
            continue
        # What a timer starts runs or not, as it happens.
        timed = name.endswith(".service") and name.replace(".service", ".timer") in found
        if timed and active != "failed":
            continue
        # Until it is reloaded, systemd remembers units whose files are gone.
        if active != "inactive" or name in found:
            found[f"{name}, now"] = f"{load} {active}"
    return found


def containers() -> dict[str, str]:
    found = {}
    for container in output("docker", "ps", "--all", "--quiet", "--no-trunc"):
        seen = json.loads("\n".join(output("docker", "inspect", container)))[0]
        labels = seen["Config"]["Labels"]
        health = (seen["State"].get("Health") or {}).get("Status", "")
        found[seen["Name"]] = " ".join(
            [
                seen["Config"]["Image"],
                seen["Image"],
                labels.get("com.docker.compose.config-hash", "-"),
                labels.get("prime-spark.config", "-"),
                seen["State"]["Status"],
                health,
                *sorted(seen["NetworkSettings"]["Networks"]),
            ]
        )
    for line in output("docker", "network", "ls", "--format", "{{.Name}} {{.Driver}}"):
        found[f"network {line.split()[0]}"] = line.split()[1]
    for line in output("docker", "volume", "ls", "--format", "{{.Name}}"):
        found[f"volume {line}"] = "there"
    return found


def packages() -> dict[str, str]:
    form = "${Package}:${Architecture} ${Version} ${db:Status-Abbrev}\n"
    return {line.split()[0]: line for line in output("dpkg-query", "--show", "--showformat", form)}


def accounts() -> dict[str, str]:
    lines = [f"user {line}" for line in Path("/etc/passwd").read_text().splitlines()]
    lines += [f"group {line}" for line in Path("/etc/group").read_text().splitlines()]
    return {line.split(":")[0]: line for line in lines}


def kernel() -> dict[str, str]:
    found = {
        name: Path("/proc/sys", name.replace(".", "/")).read_text().strip()
        for name in ("net.ipv4.ip_nonlocal_bind", "net.ipv4.ip_forward")
    }
    rules = "\n".join(output("nft", "--stateless", "--terse", "list", "ruleset"))
    ours = re.findall(r"^table \w+ prime_spark\w* \{.*?^\}", rules, re.MULTILINE | re.DOTALL)
    found["nft"] = hashlib.sha256("".join(ours).encode()).hexdigest()[:16] if ours else "none"
    for peer in output("wg", "show", "all", "allowed-ips"):
        interface, _, addresses = peer.split("\t")
        found[f"peer {interface} {addresses}"] = "there"
    return found


sections = {
    "files": files(),
    "units": units(),
    "containers": containers(),
    "packages": packages(),
    "accounts": accounts(),
    "kernel": kernel(),
}
print(json.dumps(sections, sort_keys=True))
