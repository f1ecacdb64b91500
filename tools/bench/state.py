"""What a host of the fleet is, read over SSH: the state that a pyinfra deployment has to keep.

Roles record under ``/var/lib/prime-spark`` which paths, links, directories and units are theirs.
The rest is read from the host by these names: content, owner, group and mode, states of units,
packages installed by name, compose projects with their containers, sysctls, accounts.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

State = dict[str, Any]

KINDS = (
    "files",
    "directories",
    "links",
    "units",
    "packages",
    "projects",
    "containers",
    "sysctls",
    "users",
    "groups",
)

# Runs on a host with its own Python and prints one JSON object.
READER = r"""
import base64, collections, glob, grp, json, os, pwd, stat, subprocess

def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True).stdout

# Of the system, though of no package.
DISTRIBUTION = ("/usr/local/bin", "/usr/local/lib", "/usr/local/sbin")
recorded = collections.defaultdict(set)
triggers = collections.defaultdict(set)  # unit to the paths whose change has to restart it

def named(entries):
    # A list of names, a list of objects with a path or a name, or an object by name.
    return {
        entry if isinstance(entry, str) else entry.get("path") or entry["name"]
        for entry in entries or ()
    }

def collect(value):
    if isinstance(value, list):
        for item in value:
            collect(item)
    if isinstance(value, dict):
        found = {
            key: named(value.get(key)) for key in ("files", "links", "directories", "units")
        }
        for key, names in found.items():
            recorded[key] |= names
        for unit in found["units"]:
            triggers[unit] |= found["files"] | found["links"]
        collect([item for key, item in value.items() if key not in found])

for name in glob.glob("/var/lib/prime-spark/**/*.json", recursive=True):
    # Only the owner's records: data directories of services lie beside them.
    if os.stat(name).st_uid == 0 and os.path.getsize(name) < 4_000_000:
        try:
            collect(json.load(open(name)))
        except ValueError:
            pass

def name_of(lookup, number):
    try:
        return lookup(number)[0]
    except KeyError:
        return None  # known inside a container only

def attributes(path):
    found = os.lstat(path)
    return {
        "user": name_of(pwd.getpwuid, found.st_uid),
        "group": name_of(grp.getgrgid, found.st_gid),
        "mode": format(stat.S_IMODE(found.st_mode), "o"),
    }

state = {"files": {}, "links": {}, "directories": {}}
for path in sorted(recorded["files"] | recorded["links"]):
    if os.path.islink(path):
        state["links"][path] = {"target": os.readlink(path)}
    elif os.path.isfile(path):
        content = base64.b64encode(open(path, "rb").read()).decode()
        state["files"][path] = {"content": content, **attributes(path)}
# Directories that come with packages are not the roles'.
parents = {os.path.dirname(path) for path in state["files"]} - recorded["directories"]
packaged = run("dpkg-query", "--search", *sorted(parents)).splitlines() if parents else []
parents -= {line.partition(": ")[2] for line in packaged} | set(DISTRIBUTION)
for path in sorted(recorded["directories"] | parents):
    if os.path.isdir(path):
        state["directories"][path] = attributes(path)

written = {
    os.path.basename(path)
    for path in state["files"]
    if os.path.dirname(path) == "/etc/systemd/system" and "@." not in path
}
# A template's instance has no file of its own.
written |= {
    f"wg-quick@{os.path.basename(path)[:-5]}.service"
    for path in state["files"]
    if os.path.dirname(path) == "/etc/wireguard" and path.endswith(".conf")
}
wanted = "Id,ActiveState,UnitFileState"
shown = run("systemctl", "show", "--property", wanted, "--", *sorted(recorded["units"] | written))
blocks = [
    dict(line.partition("=")[::2] for line in block.splitlines())
    for block in shown.strip().split("\n\n")
]
state["units"] = {
    block["Id"]: {
        "running": block["ActiveState"] == "active",
        "enabled": block["UnitFileState"] == "enabled",
        "triggers": sorted(triggers[block["Id"]]),
    }
    for block in blocks
    if "Id" in block and (block["Id"] in recorded["units"] or block["UnitFileState"] == "enabled")
}

manual = set(run("apt-mark", "showmanual").split())
listed = run("dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n")
installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
state["packages"] = sorted(manual & installed)

state["projects"] = {
    os.path.basename(os.path.dirname(path)): {"directory": os.path.dirname(path)}
    for path in state["files"]
    if os.path.basename(path) == "compose.yml"
}
label = '{{.Label "com.docker.compose.%s"}}'
form = " ".join([label % "project", label % "service", "{{.State}}", label % "config-hash"])
rows = run("docker", "ps", "--all", "--format", form) if state["projects"] else ""
state["containers"] = {
    f"{row[0]}/{row[1]}": row[2:]
    for row in (line.split(" ") for line in sorted(rows.splitlines()))
    if row[0] in state["projects"]
}

state["sysctls"] = {}
for path, file in state["files"].items():
    if os.path.dirname(path) == "/etc/sysctl.d":
        for line in base64.b64decode(file["content"]).decode().splitlines():
            if "=" in line and not line.startswith("#"):
                key = line.partition("=")[0].strip()
                state["sysctls"][key] = run("sysctl", "--values", key).strip()

accounts = [entry for entry in pwd.getpwall() if entry.pw_name.endswith("spark-nas")]
state["users"] = {
    entry.pw_name: {
        "group": name_of(grp.getgrgid, entry.pw_gid),
        "home": entry.pw_dir,
        "shell": entry.pw_shell,
    }
    for entry in accounts
}
state["groups"] = {
    entry.gr_name: {"gid": entry.gr_gid}
    for entry in grp.getgrall()
    if entry.gr_name.endswith("spark-nas")
}
print(json.dumps(state))
"""


class Fleet:
    """The lab's hosts, by the SSH configuration that ``lab up`` writes."""

    def __init__(self, ssh_config: Path) -> None:
        self.ssh_config = ssh_config

    @property
    def hosts(self) -> list[str]:
        """Names of all hosts."""
        lines = self.ssh_config.read_text().splitlines()
        return [line.split()[1] for line in lines if line.startswith("Host ")]

    def run(self, host: str, command: str, stdin: str = "") -> str:
        """What a command on the host printed; raises CalledProcessError when it fails."""
        argv = ["ssh", "-F", str(self.ssh_config), "-o", "LogLevel=ERROR", host, command]
        return subprocess.run(
            argv, input=stdin, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def read(self, host: str) -> State:
        """The state of one host."""
        state: State = json.loads(self.run(host, "python3 -", READER))
        return state

    def read_all(self) -> dict[str, State]:
        """The state of every host by its name."""
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            return dict(zip(self.hosts, pool.map(self.read, self.hosts), strict=True))


def counted(states: dict[str, State]) -> dict[str, int]:
    """How much of each kind the hosts have in all."""
    return {kind: sum(len(state[kind]) for state in states.values()) for kind in KINDS}


def differences(before: dict[str, State], after: dict[str, State]) -> list[str]:
    """``HOST KIND NAME`` for all that is not as it was."""
    found = []
    for host, state in before.items():
        for kind in KINDS:
            was, now = state[kind], after[host][kind]
            if isinstance(was, list):
                was, now = dict.fromkeys(was), dict.fromkeys(now)
            found += [
                f"{host} {kind} {name}"
                for name in sorted(was.keys() | now.keys())
                if name not in was or name not in now or was[name] != now[name]
            ]
    return found
