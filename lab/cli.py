"""Command line of the lab: five systemd hosts on this machine.

python3 -m lab up            boot the lab (idempotent), show it when SSH answers everywhere
python3 -m lab status        a table of the hosts
python3 -m lab ssh HOST      a shell on a host, or a command there
python3 -m lab down          power everything off, keep the disks
python3 -m lab destroy       down, then delete disks, keys and secrets (bases and images stay);
                             with --disks the disks alone: the same fleet, its hosts bare
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab import bases, cgroups, hosts, machine_state, network
from lab.common import (
    CHECKOUT,
    CLI_LOCK,
    DISKS,
    KNOWN_HOSTS,
    LOCK,
    LOGS,
    MACHINE_BEFORE,
    OPEN_CONNECTIONS,
    OPERATOR_KEY,
    OWNER,
    RUNTIME,
    SOCKET,
    SSH,
    STATE,
    LabError,
    Owner,
    Progress,
    mounts_below,
    read_owner,
    remove_tree,
    run,
    wait_for,
    write_if_changed,
)
from lab.topology import GIB, HOSTS, MIB, SUITES, Host

_SSH_SECONDS = 90
_DOWN_SECONDS = 90
_MIN_FREE = 8 * GIB
_MIN_FREE_WITH_DISKS = 2 * GIB
_RUNTIME_FILES = ("dnsmasq.conf", "lxcfs.pid", "registry.yml")
SUPERVISOR_LOG = LOGS / "supervisor.log"


class Steps:
    """Progress lines, each with the seconds since the command began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def __call__(self, text: str) -> None:
        with self._lock:
            print(f"[{self.seconds:6.1f} s] {text}", flush=True)


# --- the supervisor -------------------------------------------------------------------------


def living_owner() -> Owner | None:
    """Who holds the lab's lock right now; None when nobody does."""
    try:
        descriptor = os.open(LOCK, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two askers do not take each other for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # The record appears a moment after the lock is taken.
        wait_for(lambda: read_owner() is not None, 2)
        return read_owner() or Owner(checkout="unknown", pid=0, outer_pid=0, started=0)
    finally:
        os.close(descriptor)
    return None


def ask(op: str, progress: Progress | None = None, **arguments: Any) -> Any:
    """Send a command to the supervisor; returns its result."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(SOCKET))
        except OSError as error:
            raise LabError("the lab is not running: start it with `python3 -m lab up`") from error
        connection.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
        for line in connection.makefile():
            message = json.loads(line)
            if message["event"] == "progress" and progress is not None:
                progress(message["text"])
            elif message["event"] == "error":
                raise LabError(message["text"])
            elif message["event"] == "done":
                return message["result"]
    raise LabError(f"the supervisor ended without an answer, see {SUPERVISOR_LOG}")


def _mine() -> Owner:
    """The living lab, which has to be this checkout's."""
    owner = living_owner()
    if owner is None:
        raise LabError("the lab is not running: start it with `python3 -m lab up`")
    if owner["checkout"] != str(CHECKOUT):
        raise LabError(
            f"the lab belongs to {owner['checkout']} (pid {owner['pid']}): run the command there, "
            "or take the lab over with `python3 -m lab up --takeover`"
        )
    return owner


def _start_supervisor() -> None:
    SOCKET.unlink(missing_ok=True)
    OWNER.unlink(missing_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    with SUPERVISOR_LOG.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--fork", "--kill-child"]
            + [sys.executable, "-m", "lab.supervisor"],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    if not wait_for(lambda: SOCKET.exists() or process.poll() is not None, 20):
        os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is not None or not SOCKET.exists():
        with SUPERVISOR_LOG.open(errors="replace") as log_text:
            log_text.seek(start)
            raise LabError(f"the supervisor did not start:\n{log_text.read().strip()}")


def _stop(owner: Owner, progress: Progress) -> None:
    """End a living lab in order; by force when it does not answer."""
    try:
        ask("stop", progress)
    except LabError as error:
        progress(f"the supervisor does not answer ({error}), killing it")
        _kill(owner)
    if not wait_for(lambda: living_owner() is None, _DOWN_SECONDS):
        progress("the supervisor does not end, killing it")
        _kill(owner)
        if not wait_for(lambda: living_owner() is None, 15):
            raise LabError(f"the lab's supervisor (pid {owner['pid']}) does not die")


def _kill(owner: Owner) -> None:
    # The record may be stale: only a process that sees the lab's namespaces is its supervisor.
    if Path(f"/proc/{owner['pid']}/root/run/netns/ctl").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(owner["pid"], signal.SIGKILL)
    else:
        cgroups.remove_all()


def _clean_up() -> None:
    """Remove what a lab leaves outside of its namespaces, however it ended."""
    cgroups.remove_all()
    for path in (SOCKET, OWNER, *(RUNTIME / name for name in _RUNTIME_FILES)):
        path.unlink(missing_ok=True)


# --- ssh ------------------------------------------------------------------------------------


def ssh_command(host: Host, *options: str) -> list[str]:
    """An ssh command line for a host, without the remote command."""
    return [
        "ssh",
        *("-F", "none", "-i", str(OPERATOR_KEY)),
        *("-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={KNOWN_HOSTS}", "-o", "LogLevel=ERROR"),
        *("-o", f"ProxyCommand={CHECKOUT}/lab/bin/ssh-proxy %h %p"),
        *options,
        f"root@{host.address}",
    ]


def _boot_id(host: Host) -> str | None:
    """The host's boot id over SSH; None while it does not answer."""
    options = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=3")
    command = [*ssh_command(host, *options), "cat /proc/sys/kernel/random/boot_id"]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15
        )
    except subprocess.TimeoutExpired:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _wait_for_ssh(host: Host, progress: Progress, *, other_than: str | None = None) -> str:
    boot_id: str | None = None

    def answers() -> bool:
        nonlocal boot_id
        boot_id = _boot_id(host)
        return boot_id not in (None, other_than)

    if not wait_for(answers, _SSH_SECONDS, interval=0.3) or boot_id is None:
        raise LabError(
            f"{host.name} does not answer SSH after {_SSH_SECONDS} s: see "
            f"`python3 -m lab console {host.name}` and {hosts.console_log(host)}"
        )
    progress(f"{host.name}: SSH answers")
    return boot_id


def _write_ssh_config() -> None:
    """`ssh -F …/ssh/config HOST` works from anywhere on the machine."""
    lines = []
    for host in HOSTS.values():
        lines.append(
            f"Host {host.name}\n  HostName {host.address}\n  User root\n"
            f"  IdentityFile {OPERATOR_KEY}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {KNOWN_HOSTS}\n  StrictHostKeyChecking yes\n"
            f"  ProxyCommand {CHECKOUT}/lab/bin/ssh-proxy %h %p\n"
        )
    write_if_changed(SSH / "config", "\n".join(lines), 0o600)


# --- commands -------------------------------------------------------------------------------


def up(options: argparse.Namespace) -> int:
    """Boot the lab."""
    steps = Steps()
    names = options.hosts or list(HOSTS)
    network.check_tools()
    _check_storage()
    with _exclusive(steps):
        _take_over(options.takeover, steps)
        base_names = bases.ensure_bases(SUITES, steps)
        if not options.no_images:
            _images(steps)
            _secrets(steps)
        hosts.make_keys()
        _write_ssh_config()
        if living_owner() is None:
            _clean_up()
            for host in HOSTS.values():
                if note := hosts.make_disk(host, base_names[host.suite]):
                    steps(note)
            machine_state.save()
            steps("supervisor: starting")
            _start_supervisor()
        ask("start", steps, hosts=names)
        cut = {name for name, row in ask("status").items() if row["state"] == "cut"}
        with ThreadPoolExecutor(len(names)) as pool:
            waits = [
                pool.submit(_wait_for_ssh, HOSTS[name], steps) for name in names if name not in cut
            ]
            for wait in waits:
                wait.result()
        steps("lab: up")
    _print_table(ask("status"))
    return 0


def _may_take_over(asked: bool) -> bool:
    """Whether another checkout's living lab may be stopped: when asked to, and in CI."""
    return asked or os.environ.get("CI") == "true"


def _take_over(allowed: bool, progress: Progress) -> None:
    """Deal with the lab of another checkout: refuse a living one unless told otherwise."""
    owner = living_owner()
    if owner is None:
        if stale := read_owner():
            progress(f"clearing up what is left of the lab of {stale['checkout']}")
        return
    if owner["checkout"] == str(CHECKOUT):
        if SOCKET.exists():
            return
        progress("the supervisor has no control socket any more, starting it anew")
    elif not _may_take_over(allowed):
        raise LabError(
            f"a lab is running from {owner['checkout']} (pid {owner['pid']}). Stop it there with "
            "`make lab-down`, or take it over with `python3 -m lab up --takeover`"
        )
    else:
        progress(f"taking over the lab of {owner['checkout']} (pid {owner['pid']})")
    _stop(owner, progress)


def _images(progress: Progress) -> None:
    """Build the images where this checkout can, and tell the inventory about them."""
    if importlib.util.find_spec("lab.images") is None:
        return
    module = importlib.import_module("lab.images")
    try:
        references: dict[str, str] = module.ensure_images(progress)
    except RuntimeError as error:
        raise LabError(str(error)) from error
    path = CHECKOUT / "inventories/lab/group_vars/all/images.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Written by `python3 -m lab up`: the images that the lab built.", "images:"]
    lines += [f'  {name}: "{reference}"' for name, reference in sorted(references.items())]
    write_if_changed(path, "\n".join(lines) + "\n")


def _secrets(progress: Progress) -> None:
    tool = CHECKOUT / "tools/make_secrets.py"
    if tool.exists():
        progress("secrets: making what is missing")
        python = CHECKOUT / ".venv/bin/python"  # it has Ansible's vault, this Python may not
        interpreter = python if python.exists() else sys.executable
        run([interpreter, tool, "--inventory", CHECKOUT / "inventories/lab"])


def _check_storage() -> None:
    existing = next(path for path in (STATE, *STATE.parents) if path.exists())
    if run(["stat", "-f", "-c", "%T", existing]).stdout.strip() == "overlayfs":
        raise LabError(
            f"{STATE} lies on overlayfs (the root of a container?), which cannot carry the hosts' "
            "disks: mount a volume there, or point PRIME_SPARK_LAB_DIR to another file system"
        )
    needed = _MIN_FREE_WITH_DISKS if DISKS.exists() else _MIN_FREE
    if (free := hosts.free_space(STATE)) < needed:
        raise LabError(
            f"{STATE} has {free / GIB:.1f} GiB free, the lab needs {needed / GIB:.0f}: make "
            "room, or point PRIME_SPARK_LAB_DIR to another disk"
        )


def down(options: argparse.Namespace) -> int:
    """Power the lab off."""
    steps = Steps()
    with _exclusive(steps):
        _down(options.takeover, steps)
    steps("lab: down, disks kept")
    return 0


def _down(takeover: bool, progress: Progress) -> None:
    owner = living_owner()
    if owner is not None:
        if owner["checkout"] != str(CHECKOUT) and not _may_take_over(takeover):
            _mine()
        _stop(owner, progress)
    _clean_up()


def destroy(options: argparse.Namespace) -> int:
    """Down, then delete disks, keys and secrets; with --cache also bases and images.

    With --disks the disks alone: the same fleet, its hosts bare.
    """
    steps = Steps()
    with _exclusive(steps):
        _down(options.takeover, steps)
        if mounted := mounts_below(STATE):
            raise LabError(f"not deleting anything: {mounted[0]} is mounted; unmount it first")
        names = ["disks", "ssh", "secrets", "logs"] + (["cache"] if options.cache else [])
        if options.disks:
            # Connections that Ansible keeps open lead to hosts that are no more.
            names = ["disks", str(OPEN_CONNECTIONS.relative_to(STATE))]
        for name in names:
            if (STATE / name).exists():
                steps(f"deleting {STATE / name}")
                remove_tree(STATE / name)
        MACHINE_BEFORE.unlink(missing_ok=True)
    steps("lab: destroyed")
    return 0


def status(options: argparse.Namespace) -> int:
    """Show the hosts."""
    owner = living_owner()
    if owner is None:
        kept = [name for name in HOSTS if (DISKS / name / "upper").exists()]
        if options.json:
            print(json.dumps({"running": False, "disks": kept}))
        else:
            print(f"the lab is down; disks: {', '.join(kept) or 'none'}")
        return 0
    rows = ask("status")
    if options.json:
        print(json.dumps({"running": True, "owner": owner, "hosts": rows}))
        return 0
    print(f"lab of {owner['checkout']}, supervisor pid {owner['pid']}, state in {STATE}")
    _print_table(rows)
    return 0


def _print_table(rows: dict[str, Any]) -> None:
    table = [("HOST", "SEGMENT", "ADDRESS", "DEBIAN", "STATE", "FOR", "MEMORY", "CPUS")]
    for name, host in HOSTS.items():
        row = rows[name]
        used = f"{row['memory_used'] / MIB:.0f}" if row["memory_used"] is not None else "-"
        limit = row["limits"]["memory"]
        quota = row["limits"]["cpu_quota"]
        table.append(
            (
                name,
                host.segment.name,
                str(host.address),
                host.suite,
                row["state"] + (f": {row['error']}" if row["error"] else ""),
                _duration(time.time() - row["since"]),
                f"{used}/{limit / MIB:.0f} MiB" if limit else "-",
                f"{quota / 100_000:.1f}" if quota else "-",
            )
        )
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h"


def ssh(options: argparse.Namespace) -> int:
    """A shell or a command on a host."""
    if living_owner() is None:
        raise LabError("the lab is not running: start it with `python3 -m lab up`")
    command = [*ssh_command(HOSTS[options.host]), *options.command]
    os.execvp(command[0], command)


def console(options: argparse.Namespace) -> int:
    """The console's log, then a shell (or a command) that needs no network."""
    owner = living_owner()
    if owner is None:
        raise LabError("the lab is not running: start it with `python3 -m lab up`")
    host = HOSTS[options.host]
    row = ask("status")[host.name]
    if row["leader"] is None:
        tail = hosts.console_log(host).read_text(errors="replace").splitlines()[-40:]
        print("\n".join(tail))
        raise LabError(f"{host.name} is {row['state']}")
    if not options.command:
        tail = hosts.console_log(host).read_text(errors="replace").splitlines()[-20:]
        print("\n".join(tail))
        print(f"--- a shell on {host.name}, past its network; `journalctl -b` has the rest ---")
    # First into the supervisor's namespaces, where the leader's pid means something.
    command = ["nsenter", "-t", str(owner["pid"]), "--mount", "--pid", "--"]
    command += ["nsenter", "-t", str(row["leader"]), "--mount", "--uts", "--ipc", "--net", "--pid"]
    command += ["--cgroup", "--root", "--", "env", "-i", "-C", "/root", "HOME=/root"]
    command += [f"TERM={os.environ.get('TERM', 'dumb')}"]
    command += ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    os.execvp(command[0], [*command, *(options.command or ["bash", "-l"])])


def reboot(options: argparse.Namespace) -> int:
    """Reboot a host; returns when SSH answers from the new boot."""
    steps = Steps()
    _mine()
    host = HOSTS[options.host]
    before = _boot_id(host)
    ask("reboot", steps, host=host.name)
    _wait_for_ssh(host, steps, other_than=before)
    return 0


def cut(options: argparse.Namespace) -> int:
    """Cut a host off the network."""
    _mine()
    ask("cut", host=options.host)
    print(f"{options.host}: cut off; `console {options.host}` still gets there")
    return 0


def heal(options: argparse.Namespace) -> int:
    """Give a host its network back."""
    _mine()
    ask("heal", host=options.host)
    _wait_for_ssh(HOSTS[options.host], Steps())
    return 0


def images(options: argparse.Namespace) -> int:
    """Build the images only."""
    del options
    _images(Steps())
    return 0


@contextlib.contextmanager
def _exclusive(progress: Progress) -> Iterator[None]:
    """One `up`, `down` or `destroy` at a time on this machine."""
    RUNTIME.mkdir(parents=True, exist_ok=True, mode=0o755)
    with CLI_LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another command is changing the lab, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        return command

    command = add(up)
    command.add_argument("hosts", nargs="*", choices=[[], *HOSTS], metavar="HOST")
    command.add_argument("--takeover", action="store_true", help="stop another's lab first")
    command.add_argument(
        "--no-images",
        action="store_true",
        help="only boot: build no images, make no secrets, leave the inventory as it is",
    )
    for function in (down, destroy):
        command = add(function)
        command.add_argument("--takeover", action="store_true", help="also another checkout's lab")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--cache", action="store_true", help="also the bases and images")
    what.add_argument("--disks", action="store_true", help="the disks alone: bare hosts again")
    add(status).add_argument("--json", action="store_true")
    for function in (ssh, console):
        command = add(function)
        command.add_argument("host", choices=list(HOSTS), metavar="HOST")
        command.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    for function in (reboot, cut, heal):
        add(function).add_argument("host", choices=list(HOSTS), metavar="HOST")
    add(images)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: mounts, namespaces and cgroups")
        result: int = options.function(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return result
