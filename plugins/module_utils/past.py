"""What a host had before a run of ours, and would lose or stand in the way by one.

`host_precheck` refuses a host for what is found here, `host_adopt` resolves it. Reading only.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import load
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import HEADER

# What was before, and what was resolved: the owner's to read, ours to add to.
KEPT = "/var/lib/prime-spark/adopted"
RECORD = f"{KEPT}/adopted.json"
ADOPT = "playbooks/adopt.yml"

# Docker as its maker packages it. The first decides, the others are what a container host needs.
DOCKER_CE = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-compose-plugin")
DAEMON = "/etc/docker/daemon.json"
# What the role docker sets there.
DAEMON_KEYS = {
    "default-address-pools",
    "insecure-registries",
    "live-restore",
    "log-driver",
    "log-opts",
}
FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"
WIREGUARD = "wg0"
UFW_CONF, UFW_RULES = "/etc/ufw/ufw.conf", "/etc/ufw/user.rules"
FIREWALLD, FIREWALLD_TRUSTED = "/usr/sbin/firewalld", "/etc/firewalld/zones/trusted.xml"
MEMORY_WORDS = "cgroup_enable=memory cgroup_memory=1"
COMMAND_LINES = ("/boot/firmware/cmdline.txt", "/boot/cmdline.txt")


class Finding(NamedTuple):
    """What stands in the way, and the step of `host_adopt` that resolves it, empty if none does."""

    step: str
    sentence: str

    @property
    def problem(self) -> str:
        return f"{self.sentence}: {ADOPT} resolves it" if self.step else self.sentence


def read(path: str) -> str:
    """The text of a file; empty where it is not there or not to be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def read_to_change(path: str) -> str:
    """The text of a file that is to be changed; empty only where there is no file.

    Raises OSError where it cannot be read: what is unknown must not be replaced.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def adopted() -> dict[str, Any]:
    """By step, what was resolved."""
    return load(RECORD)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# --- Docker ---------------------------------------------------------------------------------


def installed(names: Collection[str]) -> dict[str, str]:
    """Name to version of the packages that are installed."""
    shown = "--showformat=${Package} ${Version} ${db:Status-Status}\n"
    done = attempt(["dpkg-query", "--show", shown, *names])
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}


def docker_findings(
    packages: Mapping[str, str], daemon: str, settings: Mapping[str, Any], known: bool
) -> list[Finding]:
    """Docker of another source, and settings of its daemon that the role would drop."""
    found = []
    if "docker-ce" in packages and not known:
        sentence = (
            f"docker-ce {packages['docker-ce']} is installed, which the role docker would use and "
            "whose daemon it would configure"
        )
        found.append(Finding("docker", sentence))
    elif "containerd.io" in packages and "docker-ce" not in packages:
        sentence = (
            "containerd.io is installed without docker-ce, and docker.io would take it away: "
            "install docker-ce from the same source, which is then used"
        )
        found.append(Finding("", sentence))
    if daemon.strip():
        try:
            content = json.loads(daemon)
            lost = {
                key: value
                for key, value in content.items()
                if key not in DAEMON_KEYS and settings.get(key) != value
            }
        except (ValueError, AttributeError):
            return [*found, Finding("", f"{DAEMON} is no JSON object: mend it or move it away")]
        if lost:
            sentence = (
                f"{DAEMON} has settings that the role docker would drop: set "
                f"docker_daemon_settings: {json.dumps(lost, sort_keys=True)}"
            )
            found.append(Finding("", sentence))
    return found


# --- the NAS --------------------------------------------------------------------------------


def fstab_lines(text: str, mount_point: str) -> list[str]:
    """The lines of an fstab that mount something there."""
    return [
        line
        for line in text.splitlines()
        if not line.lstrip().startswith("#") and line.split()[1:2] == [mount_point]
    ]


def mounted_at(mountinfo: str, mount_point: str) -> str:
    """What is mounted at a place, the last mount on top; empty where nothing or an automount is."""
    found = ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) > 4 and len(rest) > 1 and fields[4].replace("\\040", " ") == mount_point:
            found = "" if rest[0] == "autofs" else rest[1]
    return found


def units_of(mount_point: str) -> list[str]:
    """The units of the administrator, among them those of the role nas, that mount there."""
    where = re.compile(rf"^Where={re.escape(mount_point)}$", re.MULTILINE)
    paths = sorted(glob.glob(f"{UNITS}/*.mount") + glob.glob(f"{UNITS}/*.automount"))
    return [os.path.basename(path) for path in paths if where.search(read(path))]


def nas_findings(
    mount_point: str,
    fstab: str,
    mountinfo: str,
    units: Sequence[str],
    ours: bool,
    name: str,
    gid: int,
    groups: str,
) -> list[Finding]:
    """A line of fstab, a mount of somebody else, a group's number that is taken.

    ``units`` mount there, ``ours`` is whether the role nas wrote them.
    """
    found = []
    if lines := fstab_lines(fstab, mount_point):
        sentence = f"{FSTAB} mounts {lines[0].split()[0]} at {mount_point}, which the role nas does"
        found.append(Finding("fstab", sentence))
    elif not ours and (source := mounted_at(mountinfo, mount_point) or " and ".join(units)):
        sentence = f"{source} is there for {mount_point}, where the role nas mounts the NAS"
        found.append(Finding("mount", sentence))
    for line in groups.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2] == str(gid) and fields[0] != name:
            sentence = (
                f"the number {gid} is the group {fields[0]}'s, and {name} needs one: set nas_gid "
                "to a number that is free on every host of the group nas"
            )
            found.append(Finding("", sentence))
    return found


# --- WireGuard and firewalls ----------------------------------------------------------------


def wireguard_findings(config: str, runs: bool, known: str) -> list[Finding]:
    """An interface of the VPN's name that no role made; ``known`` is the digest of the adopted."""
    if HEADER in config or (config and digest(config) == known):
        return []
    if config:
        path = f"/etc/wireguard/{WIREGUARD}.conf"
        sentence = f"{path} was made by hand, and the role wireguard would replace it"
        return [Finding("wireguard", sentence)]
    if not runs:
        return []
    sentence = (
        f"an interface {WIREGUARD} runs without a file: `ip link delete {WIREGUARD}` once nothing "
        "needs it"
    )
    return [Finding("", sentence)]


class Rule(NamedTuple):
    """What ufw has to let in: a port of ours from somewhere, or packets between peers."""

    port: int = 0
    protocol: str = "tcp"
    source: str = ""
    interface: str = ""
    forward: bool = False

    @property
    def argv(self) -> list[str]:
        """The arguments of ufw."""
        if self.forward:
            return ["route", "allow", "in", "on", self.interface, "out", "on", self.interface]
        way = ["in", "on", self.interface] if self.interface else []
        source = ["from", self.source] if self.source else []
        to = ["to", "any", "port", str(self.port), "proto", self.protocol]
        return ["allow", *way, *source, *to]

    def among(self, rules: str) -> bool:
        """Whether ufw's file of rules has it, as its comments with tuples say."""
        for line in rules.splitlines():
            if not line.startswith("### tuple ### "):
                continue
            fields = line.removeprefix("### tuple ### ").split(" comment=")[0].split()
            if fields[:3] == ["route:allow", "any", "any"]:
                fits = self.forward and f"in_{self.interface}!out_{self.interface}" in fields
            else:
                fits = (
                    not self.forward
                    and fields[:3] == ["allow", self.protocol, str(self.port)]
                    and fields[5:6] == [self.source or "0.0.0.0/0"]
                    and (fields[6:] or ["in"])
                    == [f"in_{self.interface}" if self.interface else "in"]
                )
            if fits:
                return True
        return False


def rules(wanted: Mapping[str, Any]) -> list[Rule]:
    """What a firewall has to let in on a host with these services."""
    found = []
    if wanted.get("vpn_port"):
        found.append(Rule(port=wanted["vpn_port"], protocol="udp"))
    if wanted.get("forward"):
        found.append(Rule(interface=WIREGUARD, forward=True))
    for port in sorted({entry["port"] for entry in wanted.get("ports") or []}):
        found.append(Rule(port=port, interface=WIREGUARD))
        found += [Rule(port=port, source=source) for source in wanted.get("networks") or []]
    return found


def firewall_findings(
    wanted: Mapping[str, Any], ufw: str, user_rules: str, firewalld: bool, trusted: str
) -> list[Finding]:
    """A firewall that is on and drops what the fleet's hosts ask each other."""
    found = []
    if re.search(r"^ENABLED=yes", ufw, re.MULTILINE):
        lacking = [rule for rule in rules(wanted) if not rule.among(user_rules)]
        if lacking:
            sentence = f"ufw is on and lacks {len(lacking)} rules of the fleet"
            first = f"`ufw {' '.join(lacking[0].argv)}` among them"
            found.append(Finding("ufw", f"{sentence}, {first}"))
    if firewalld and f'"{WIREGUARD}"' not in trusted:
        sentence = (
            "firewalld is on and drops what comes through the VPN: `firewall-cmd --permanent "
            f"--zone=trusted --add-interface={WIREGUARD}` and `firewall-cmd --reload` let it in"
        )
        found.append(Finding("", sentence))
    return found


# --- kernel and user land -------------------------------------------------------------------


def command_line() -> str:
    """The file of the kernel's command line on a Raspberry Pi; empty elsewhere."""
    return next((path for path in COMMAND_LINES if os.path.exists(path)), "")


def kernel_findings(command_line: str) -> list[Finding]:
    """A Raspberry Pi whose firmware switches the accounting of memory off."""
    words = command_line.split()
    if "cgroup_disable=memory" not in words or "cgroup_enable=memory" in words:
        return []
    sentence = "its kernel accounts no memory, so that no limit of memory holds"
    return [Finding("memory", sentence)]


def userland_findings(bits: int, machine: str) -> list[Finding]:
    """Programs of 32 bits under a kernel of 64."""
    if bits == 64 or machine not in ("aarch64", "x86_64"):
        return []
    sentence = (
        f"its programs are of 32 bits under a kernel of 64 ({machine}): install the 64-bit image"
    )
    return [Finding("", sentence)]


def findings(
    wanted: Mapping[str, Any], roles: Collection[str], recorded: Sequence[str]
) -> list[Finding]:
    """All that stands in the way of ``roles`` on this host; ``recorded`` left records before."""
    known = adopted()
    found = userland_findings(sys.maxsize.bit_length() + 1, os.uname().machine)
    found += kernel_findings(read("/proc/cmdline"))
    if "docker" in roles and "docker" not in recorded:
        packages = installed(DOCKER_CE)
        settings = wanted.get("daemon") or {}
        found += docker_findings(packages, read(DAEMON), settings, "docker" in known)
    if (nas := wanted.get("nas")) and "nas" in roles:
        found += nas_findings(
            nas["mount_point"],
            read(FSTAB),
            read("/proc/self/mountinfo"),
            units_of(nas["mount_point"]),
            "nas" in recorded,
            nas["group"],
            nas["gid"],
            read("/etc/group"),
        )
    if "wireguard" in roles and "wireguard" not in recorded:
        found += wireguard_findings(
            read(f"/etc/wireguard/{WIREGUARD}.conf"),
            os.path.exists(f"/sys/class/net/{WIREGUARD}"),
            str(known.get("wireguard", "")),
        )
    if "wireguard" in roles:
        found += firewall_findings(
            wanted, read(UFW_CONF), read(UFW_RULES), firewalld_runs(), read(FIREWALLD_TRUSTED)
        )
    return found


def firewalld_runs() -> bool:
    with contextlib.suppress(OSError):
        if os.path.exists(FIREWALLD):
            argv = ["systemctl", "is-active", "--quiet", "firewalld.service"]
            return attempt(argv, timeout=10).returncode == 0
    return False
