"""The running lab as the tests see it: who is in which group, a connection to each host, waiting.

Which test runs on which host follows from the inventory's groups alone, as it does for the roles.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import testinfra
import yaml
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
PROBES = Path(__file__).resolve().parent / "probes"
LAB = Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab"))
BIN = Path(sys.executable).parent
# `make test-full`: long forms too.
FULL = os.environ.get("PRIME_SPARK_FULL") == "1"
SYSTEM_PYTHON = "/usr/bin/python3"
# SSH limits the length of a socket's path, so not below pytest's own directories.
SOCKETS = Path(tempfile.gettempdir()) / f"prime-spark-fleet-{os.getpid()}"

T = TypeVar("T")


class NoHostError(Exception):
    """A group that should have hosts has none: its tests would silently not run."""


# --- inventory ------------------------------------------------------------------------------


@cache
def inventory() -> dict[str, Any]:
    """What `ansible-inventory --list` says of the lab."""
    done = subprocess.run(
        [BIN / "ansible-inventory", "-i", ROOT / "inventories" / "lab", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise NoHostError(f"the lab's inventory cannot be read: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def members(group: str, listing: Mapping[str, Any] | None = None) -> list[str]:
    """The hosts of a group and of its children, sorted; a group without any is an error."""
    listing = inventory() if listing is None else listing

    def below(name: str) -> set[str]:
        entry = listing.get(name, {})
        return set(entry.get("hosts", [])).union(*map(below, entry.get("children", [])))

    found = below(group)
    if not found:
        known = ", ".join(sorted(set(listing) - {"_meta"}))
        raise NoHostError(f"no host in the inventory's group {group!r}; there are {known}")
    return sorted(found)


def on(group: str) -> pytest.MarkDecorator:
    """Run the test, which takes `host`, once on every host of the group."""
    return pytest.mark.parametrize("host", members(group), indirect=True)


def variables(name: str) -> dict[str, Any]:
    """The inventory's variables of a host, templates not resolved."""
    return dict(inventory()["_meta"]["hostvars"].get(name, {}))


def raw_setting(name: str, role: str, variable: str) -> Any:
    """A role's variable on a host: the inventory's, else the role's default."""
    defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    return variables(name).get(variable, defaults[variable])


def setting(name: str, role: str, variable: str) -> Any:
    """As `raw_setting`, for a variable without templates."""
    value = raw_setting(name, role, variable)
    assert "{{" not in str(value), f"{variable} is a template, tests need its value: {value}"
    return value


def vpn_address(name: str) -> str:
    """The VPN address of a host."""
    return str(variables(name)["wireguard_address"])


def other_address(name: str) -> str:
    """The address by which Ansible reaches a host: its address on the LAN or the internet."""
    return str(variables(name)["ansible_host"])


# --- connections ----------------------------------------------------------------------------


@cache
def connect(name: str) -> Host:
    """A host; all commands share one SSH connection, which is made when the first one runs."""
    SOCKETS.mkdir(mode=0o700, exist_ok=True)
    # A host that is rebooted or cut off has to be noticed within seconds.
    alive = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3"
    return testinfra.get_host(
        f"ssh://root@{name}",
        ssh_config=str(LAB / "ssh" / "config"),
        controlpath=str(SOCKETS / name),
        controlpersist=600,
        ssh_extra_args=f"{alive} -o LogLevel=ERROR",
    )


def disconnect(name: str) -> None:
    """End the shared connection; the next command makes a new one."""
    options = ["-F", str(LAB / "ssh" / "config"), "-o", f"ControlPath={SOCKETS / name}"]
    subprocess.run(["ssh", *options, "-O", "exit", f"root@{name}"], capture_output=True)


def disconnect_all() -> None:
    """End every shared connection, for good: once, when a process is done with the hosts."""
    for name in members("all"):
        disconnect(name)
    shutil.rmtree(SOCKETS, ignore_errors=True)


def name_of(host: Host) -> str:
    """The inventory's name of a connected host."""
    return str(host.backend.get_hostname())


def shell(host: Host, script: str, *arguments: str, seconds: int = 60) -> str:
    """What a bash script prints on a host; fails with what it said when it does not exit with 0."""
    command = "timeout %s bash -c %s bash" + " %s" * len(arguments)
    result = host.run(command, str(seconds), script, *arguments)
    said = (result.stderr or result.stdout).strip()
    assert result.rc == 0, f"{name_of(host)}: `{script}` exits with {result.rc}: {said[-2000:]}"
    return str(result.stdout).strip()


def feed(name: str, script: str, standard_input: str, *, seconds: float = 60) -> str:
    """What a script prints that reads a secret from standard input, where no other user sees it."""
    done = subprocess.run(
        ["ssh", "-F", LAB / "ssh" / "config", f"root@{name}", script],
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{name}: `{script}`: {(done.stderr or done.stdout).strip()}"
    return done.stdout.strip()


def probe(
    host: Host, name: str, *arguments: str, python: str = SYSTEM_PYTHON, seconds: int = 60
) -> Any:
    """Run `probes/<name>.py` on a host and return the JSON that it prints.

    Secrets never are arguments: a probe reads them where they lie.
    """
    source = (PROBES / f"{name}.py").read_text()
    command = "timeout %s %s -B -c %s" + " %s" * len(arguments)
    result = host.run(command, str(seconds), python, source, *arguments)
    said = (result.stderr or result.stdout).strip()
    assert result.rc == 0, f"{name_of(host)}: probe {name} exits with {result.rc}: {said[-2000:]}"
    return json.loads(result.stdout)


def service_python(service: str) -> str:
    """The interpreter of a service's present release on its host."""
    return f"/opt/prime-spark/services/{service}/current/bin/python"


def query(sql: str) -> list[dict[str, Any]]:
    """Rows of a query to TimescaleDB, asked as its superuser on its own host."""
    (name,) = members("timescale")
    script = (
        "docker compose --project-name timescale exec -T --user postgres timescale "
        'psql --no-psqlrc --quiet --tuples-only --no-align --command "$1" prime_spark'
    )
    wrapped = f"SELECT coalesce(json_agg(q), '[]') FROM ({sql}) q"
    return list(json.loads(shell(connect(name), script, wrapped)))


def execute(sql: str) -> None:
    """A statement without an answer, as `query`."""
    (name,) = members("timescale")
    script = (
        "docker compose --project-name timescale exec -T --user postgres timescale "
        'psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --command "$1" prime_spark'
    )
    shell(connect(name), script, sql)


def lab(*arguments: str, seconds: float = 120) -> str:
    """Run a command of the lab on this machine."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    said = f"{done.stdout}{done.stderr}".strip()
    assert done.returncode == 0, f"`lab {' '.join(arguments)}` exits with {done.returncode}: {said}"
    return said


# --- waiting --------------------------------------------------------------------------------


def wait_until(
    what: str,
    look: Callable[[], T],
    seconds: float,
    good: Callable[[T], object] = bool,
    interval: float = 0.5,
) -> T:
    """Look again and again until it is `good`; returns what was seen then.

    A look that fails (the host does not answer, a command exits with 1) counts as not good yet.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            value = look()
        except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            seen = str(error)
        else:
            if good(value):
                return value
            seen = repr(value)
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s, seen last: {seen}")
        time.sleep(interval)
