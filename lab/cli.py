"""Command line of the lab: five systemd hosts on this machine.

python3 -m lab up            boot the lab (idempotent), show it when SSH answers everywhere
python3 -m lab status        a table of the hosts
python3 -m lab ssh HOST      a shell on a host, or a command there
python3 -m lab down          power everything off, keep the disks
python3 -m lab destroy       down, then delete disks, keys and secrets (bases and images stay);
                             with --disks the disks alone: the same fleet, its hosts bare
python3 -m lab save NAME     keep the stopped hosts' disks, keys and secrets as a snapshot
python3 -m lab restore NAME  bring them back; with --key K only if they were saved with it,
                             else status 3 and nothing changed
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab import bases, cgroups, disks, hosts, key, machine_state, network, releases
from lab.common import (
    CHECKOUT,
    CLI_LOCK,
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
from plugins.module_utils.lock import exclusive
from plugins.module_utils.process import TIMED_OUT, attempt

_SSH_SECONDS = 90
_DOWN_SECONDS = 90
_UNITS_SECONDS = 180
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
                missing = message.get("no_snapshot")
                raise (disks.NoSnapshotError if missing else LabError)(message["text"])
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


def _listens() -> bool:
    """Whether the supervisor takes commands: its socket is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(SOCKET)) == 0


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
    if not wait_for(lambda: _listens() or process.poll() is not None, 20):
        os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is not None or not _listens():
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
    result = attempt(command, timeout=15)
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
        with ThreadPoolExecutor() as pool:
            building = [] if options.no_images else [pool.submit(_images, steps)]
            base_names = bases.ensure_bases(SUITES, steps)
            release = None if options.no_images else releases.start()
            for result in building:
                result.result()
        if not options.no_images:
            _secrets(steps)
        hosts.make_keys()
        _write_ssh_config()
        if living_owner() is None:
            _launch(steps)
        ask("start", steps, hosts=names, bases=base_names)
        cut = {name for name, row in ask("status").items() if row["state"] == "cut"}
        _wait_for_hosts([name for name in names if name not in cut], steps)
        releases.finish(release, steps)
        steps("lab: up")
    _print_table(ask("status"))
    return 0


def _launch(steps: Steps) -> None:
    _clean_up()
    machine_state.save()
    steps("supervisor: starting")
    _start_supervisor()


def _wait_for_hosts(names: Sequence[str], steps: Steps, *, started: bool = False) -> None:
    """Wait until hosts answer SSH; with `started` until all they start at boot has started."""

    def wait(name: str) -> None:
        _wait_for_ssh(HOSTS[name], steps)
        if started:
            _wait_for_units(HOSTS[name], steps)

    with ThreadPoolExecutor(max(1, len(names))) as pool:
        for result in [pool.submit(wait, name) for name in names]:
            result.result()


def _wait_for_units(host: Host, progress: Progress) -> None:
    command = [*ssh_command(host, "-o", "BatchMode=yes"), "systemctl is-system-running --wait"]
    result = attempt(command, timeout=_UNITS_SECONDS)
    if result.returncode == TIMED_OUT:
        raise LabError(
            f"{host.name} still starts units after {_UNITS_SECONDS} s: see "
            f"`python3 -m lab ssh {host.name} systemctl list-jobs`"
        )
    progress(f"{host.name}: {result.stdout.strip() or result.stderr.strip()}")


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
        progress("the supervisor has no control socket any more, starting it again")
    elif not _may_take_over(allowed):
        raise LabError(
            f"a lab is running from {owner['checkout']} (pid {owner['pid']}). Stop it there with "
            "`make lab-down`, or take it over with `python3 -m lab up --takeover`"
        )
    else:
        progress(f"taking over the lab of {owner['checkout']} (pid {owner['pid']})")
    _stop(owner, progress)


def _inventory(progress: Progress) -> None:
    """Tell this checkout's inventory about the images and the secrets."""
    _images(progress)
    _secrets(progress)


def _images(progress: Progress) -> None:
    """Build the images where this checkout can, and tell the inventory about them."""
    if importlib.util.find_spec("lab.image_builds") is None:
        return
    module = importlib.import_module("lab.image_builds")
    try:
        references: dict[str, str] = module.ensure_images(progress, roots=False)
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
    needed = _MIN_FREE_WITH_DISKS if disks.exist() else _MIN_FREE
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
    """Down, then delete disks, snapshots, keys and secrets; with --cache also bases and images.

    With --disks the hosts' disks alone: the same fleet, its hosts bare. --keep-snapshots keeps
    the snapshots, which carry their own keys and secrets.
    """
    steps = Steps()
    with _exclusive(steps):
        _down(options.takeover, steps)
        if mounted := mounts_below(STATE):
            raise LabError(f"not deleting anything: {mounted[0]} is mounted; unmount it first")
        if (options.disks or options.keep_snapshots) and disks.exist():
            disks.apart("drop-current")
            steps("the hosts' disks: deleted")
        elif disks.remove():
            steps("disks and snapshots: deleted")
        names = ["ssh", "secrets", "logs"] + (["cache"] if options.cache else [])
        if options.disks:
            names = []
            _forget_connections()
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
        kept = _disks()["hosts"]
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
    _print_columns(table)


def _print_columns(table: Sequence[Sequence[str]]) -> None:
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


def save(options: argparse.Namespace) -> int:
    """Stop the hosts, keep their disks, keys and secrets as a snapshot, boot them again."""
    steps = Steps()
    disks.check_name(options.name)
    _check_storage()
    with _exclusive(steps):
        _mine()
        ran = ask("save", steps, name=options.name, key=options.key or key.key())["hosts"]
        _forget_connections()
        _wait_for_hosts(ran, steps, started=True)
    steps("lab: up")
    return 0


def restore(options: argparse.Namespace) -> int:
    """Bring a snapshot's hosts back, with its keys and secrets; throws away what they are now.

    Status 3: there is no such snapshot, or it was saved with another key; nothing has changed.
    """
    steps = Steps()
    disks.check_name(options.name)
    network.check_tools()
    _check_storage()
    with _exclusive(steps):
        _take_over(options.takeover, steps)
        started = living_owner() is None
        if started:
            _launch(steps)
        try:
            names = ask("restore", steps, name=options.name, key=options.key)["hosts"]
        except disks.NoSnapshotError:
            if started:
                _down(False, steps)
            raise
        _forget_connections()
        hosts.make_keys()
        _write_ssh_config()
        with ThreadPoolExecutor() as pool:
            inventory = [] if options.no_images else [pool.submit(_inventory, steps)]
            ask("start", steps, hosts=names, bases=bases.ensure_bases(SUITES, steps))
            _wait_for_hosts(names, steps, started=True)
            for result in inventory:
                result.result()
        steps("lab: up")
    return 0


def snapshots(options: argparse.Namespace) -> int:
    """List the snapshots."""
    found = _disks()["snapshots"]
    if options.json:
        print(json.dumps(found))
        return 0
    now = key.key()
    table = [("SNAPSHOT", "KEY", "SIZE", "AGE")]
    for name, row in found.items():
        shown = row["key"] + (" (this tree)" if row["key"] == now else "")
        size = f"{row['bytes'] / MIB:.0f} MiB"
        table.append((name, shown, size, _duration(time.time() - row["created"])))
    _print_columns(table)
    return 0


def forget(options: argparse.Namespace) -> int:
    """Delete a snapshot."""
    steps = Steps()
    disks.check_name(options.name)
    with _exclusive(steps):
        if living_owner() is None:
            disks.apart("forget", options.name)
        else:
            _mine()
            ask("forget", name=options.name)
    return 0


def _disks() -> dict[str, Any]:
    """What lies on the disks, see disks.report."""
    found: dict[str, Any] = {"hosts": [], "snapshots": {}}
    if living_owner() is not None:
        found = ask("disks")
    elif disks.exist():
        found = disks.apart("report")
    return found


def _forget_connections() -> None:
    """Connections that Ansible keeps open lead to hosts that are no more."""
    if OPEN_CONNECTIONS.exists():
        remove_tree(OPEN_CONNECTIONS)


def images(options: argparse.Namespace) -> int:
    """Build the images only."""
    del options
    _images(Steps())
    return 0


def _exclusive(progress: Progress) -> contextlib.AbstractContextManager[None]:
    """One `up`, `down` or `destroy` at a time on this machine."""
    RUNTIME.mkdir(parents=True, exist_ok=True, mode=0o755)
    said = "another command is changing the lab, waiting for it"
    return exclusive(CLI_LOCK, waiting=lambda: progress(said))


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
    command.add_argument(
        "--keep-snapshots", action="store_true", help="and with them the keys that they carry"
    )
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
    for function in (save, restore, forget):
        add(function).add_argument("name", metavar="NAME")
    commands.choices["save"].add_argument("--key", help="what led to this state; else `lab key`")
    command = commands.choices["restore"]
    command.add_argument("--key", help="status 3 unless the snapshot was saved with this key")
    command.add_argument("--takeover", action="store_true", help="stop another's lab first")
    command.add_argument("--no-images", action="store_true", help="as with `up`")
    add(snapshots).add_argument("--json", action="store_true")
    commands.add_parser(
        "key", help="Print the hash over everything that leads to a converged fleet."
    ).set_defaults(function=lambda _: print(key.key()) or 0)
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
        return disks.NO_SNAPSHOT_STATUS if isinstance(error, disks.NoSnapshotError) else 1
    except KeyboardInterrupt:
        return 130
    return result
