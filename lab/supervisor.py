"""The process that owns the lab: started as PID 1 of its own PID and mount namespace.

PID 1 is a reaper that holds the lock; its only child is the real supervisor. When either dies, for
whatever reason, the kernel ends every process of the namespace, and mounts and network namespaces
go with the last of them. Commands arrive over a unix socket, one JSON object per line; answers are
{"event": "progress"|"done"|"error", …} lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab import bases, cgroups, disks, hosts, lxcfs, network, registry
from lab.common import (
    CACHE,
    CHECKOUT,
    LOCK,
    LOGS,
    OWNER,
    RUNTIME,
    SOCKET,
    LabError,
    Owner,
    run,
    write_if_changed,
)
from lab.topology import HOSTS, REGISTRY, REGISTRY_ADDRESS, REGISTRY_PORT, Host
from plugins.module_utils.lock import exclusive

Say = Callable[[str], None]

_PREPARE_SECONDS = 10
_POWEROFF_SECONDS = 40
_REBOOT_SECONDS = 60
_SERVICE_SECONDS = 10
_FIGURES_SECONDS = 20

# Joins the cgroups whose cgroup.procs files come before "--", then becomes the command after it.
_JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1"; shift; done; shift; exec "$@"'


def joining(procs_files: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """A command line that runs `argv` inside the given cgroups."""
    return ["sh", "-ec", _JOIN, "join", *map(str, procs_files), "--", *argv]


def _nothing() -> None:
    pass


async def _nothing_later() -> None:
    pass


def _bind_figures(leader: int) -> bool:
    return lxcfs.ready() and lxcfs.bind(leader)


class Machine:
    """One host's life: boots it, boots it again when it asks for it, ends it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = "off"
        self.cut = False
        self.since = time.time()
        self.boots = 0
        self.error = ""
        self.exceptions: list[IPv4Address] = []
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def start(self) -> None:
        """Boot the host unless it runs."""
        if self._task is None or self._task.done():
            self.error = ""
            self._become("booting")
            self._task = asyncio.create_task(self._live())

    def leader(self) -> int | None:
        """The host's PID 1, as a pid of the supervisor's namespace."""
        if self._process is None or self._process.returncode is not None:
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            for child in map(int, children.read_text().split()):
                status = Path(f"/proc/{child}/status").read_text()
                line = next(x for x in status.splitlines() if x.startswith("NSpid:"))
                if line.split()[-1] == "1":
                    return child
        return None

    async def stop(self) -> bool:
        """Power the host off; what does not stop in time is killed. Returns whether it stopped."""
        self._again = False
        await self._prepare_poweroff()
        stopped = await self._end(signal.SIGRTMIN + 4, _POWEROFF_SECONDS)
        if self._task is not None:
            await self._task
        return stopped

    async def _prepare_poweroff(self) -> None:
        leader = self.leader()
        if leader is None:
            return
        process = await asyncio.create_subprocess_exec(
            *["nsenter", "-t", str(leader), "--all", "--root", "--", "sh", "-c"],
            hosts.PREPARE_POWEROFF,
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            await asyncio.wait_for(process.wait(), _PREPARE_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
            print(f"{self.host.name}: Docker does not take its configuration", flush=True)

    async def kill(self) -> None:
        """End the host at once: for disks that nobody needs any more."""
        self._again = False
        if self._process is not None and self._process.returncode is None:
            await self._kill(self._process)
        if self._task is not None:
            await self._task

    async def reboot(self) -> None:
        """Reboot the host; returns when its next boot has begun."""
        boots = self.boots
        if self._task is None or self._task.done():
            self.start()
        else:
            self._again = True
            await self._end(signal.SIGRTMIN + 5, _REBOOT_SECONDS)
        while self.boots == boots and self._task is not None and not self._task.done():
            await asyncio.sleep(0.05)
        if self.boots == boots:
            raise LabError(f"{self.host.name} did not boot: {self.error}")

    async def set_cut(self, cut: bool) -> None:
        """Cut or heal the host's network; holds across reboots."""
        self.cut = cut
        if self.state == "running":
            await asyncio.to_thread(network.set_cut, self.host, cut=cut)

    async def _end(self, request: int, seconds: float) -> bool:
        process = self._process
        if process is None or process.returncode is not None:
            return True
        leader = self.leader()
        if leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leader, request)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), seconds)
        if process.returncode is not None:
            return True
        await self._kill(process)
        return False

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.to_thread(cgroups.kill, self.host.name)
        await process.wait()

    async def _live(self) -> None:
        try:
            status = hosts.REBOOT_STATUS
            while status == hosts.REBOOT_STATUS or self._again:
                self._again = False
                status = await self._boot()
            self._become("off")
            if status != 0:
                log = hosts.console_log(self.host)
                self.error = f"systemd-nspawn ended with {status}, see {log}"
                self._become("failed")
        except Exception as error:
            traceback.print_exc()
            self.error = str(error)
            self._become("failed")

    async def _boot(self) -> int:
        self._become("booting")
        await asyncio.to_thread(self._prepare)
        with hosts.console_log(self.host).open("ab") as console:
            console.write(f"\n--- boot {time.strftime('%F %T')} ---\n".encode())
            console.flush()
            self._process = await asyncio.create_subprocess_exec(
                *joining(cgroups.procs_files(self.host.name), hosts.nspawn_command(self.host)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=hosts.nspawn_environment(),
                start_new_session=True,
            )
        self.boots += 1
        self._become("running")
        figures = asyncio.create_task(self.show_own_figures())
        status = await self._process.wait()
        figures.cancel()
        await asyncio.to_thread(self._clear)
        return status

    def _prepare(self) -> None:
        # A new namespace for every boot: interfaces and rules do not survive one.
        network.build_host(self.host, self.exceptions, cut=self.cut)
        if not os.path.ismount(hosts.root(self.host)):
            hosts.mount_root(self.host)
        hosts.personalize(self.host)
        cgroups.create_host(self.host)

    def _clear(self) -> None:
        cgroups.kill(self.host.name)
        cgroups.remove(self.host.name)
        network.remove_host(self.host)

    async def show_own_figures(self) -> None:
        """Show the host its own memory and CPU figures, as soon as it has mounted /proc."""
        deadline = time.monotonic() + _FIGURES_SECONDS
        while lxcfs.available() and self.state == "running" and time.monotonic() < deadline:
            try:
                leader = self.leader()
                if leader is not None and await asyncio.to_thread(_bind_figures, leader):
                    return
            except (LabError, OSError) as error:
                # A convenience: the host works without it.
                print(f"{self.host.name}: no figures of its own: {error}", flush=True)
                return
            await asyncio.sleep(0.05)

    def _become(self, state: str) -> None:
        self.state = state
        self.since = time.time()

    def report(self) -> dict[str, Any]:
        """The host's row for `status`."""
        return {
            "state": "cut" if self.cut and self.state == "running" else self.state,
            "since": self.since,
            "boots": self.boots,
            "error": self.error,
            "leader": self.leader(),
            "memory_used": cgroups.memory_used(self.host.name),
            "limits": cgroups.limits(self.host.name),
        }


class Supervisor:
    """Builds the lab's network, keeps its services running and answers commands.

    `note` is told to the first who starts hosts.
    """

    def __init__(self, note: str | None) -> None:
        self.machines = {name: Machine(host) for name, host in HOSTS.items()}
        self._services: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self._starting = asyncio.Lock()
        self._ready = False
        self._note = note

    async def run(self) -> None:
        """Serve commands until `stop` or a signal, then end the lab in order."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._over.set)
        SOCKET.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, SOCKET)
        SOCKET.chmod(0o600)
        print("supervisor: ready", flush=True)
        await self._over.wait()
        server.close()
        await asyncio.gather(*(m.stop() for m in self.machines.values()), return_exceptions=True)
        self._unmount_roots()
        for service in self._services:
            service.cancel()
        await asyncio.gather(*self._services, return_exceptions=True)
        SOCKET.unlink(missing_ok=True)

    # --- commands -------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: dict[str, Any]) -> None:
            with contextlib.suppress(ConnectionError):
                writer.write(json.dumps(message).encode() + b"\n")

        try:
            line = await reader.readline()
            if not line:
                return
            request = json.loads(line)
            say: Say = lambda text: send({"event": "progress", "text": text})  # noqa: E731
            result = await self._answer(request, say)
            send({"event": "done", "result": result})
        except LabError as error:
            missing = isinstance(error, disks.NoSnapshotError)
            send({"event": "error", "text": str(error), "no_snapshot": missing})
        except Exception as error:
            traceback.print_exc()
            send({"event": "error", "text": f"{type(error).__name__}: {error}"})
        finally:
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                writer.close()
                await writer.wait_closed()

    async def _answer(self, request: dict[str, Any], say: Say) -> Any:
        commands: dict[str, Callable[[dict[str, Any], Say], Awaitable[Any]]] = {
            "start": self._start,
            "status": self._status,
            "reboot": self._reboot,
            "cut": self._cut,
            "heal": self._heal,
            "stop": self._stop,
            "save": self._save,
            "restore": self._restore,
            "forget": self._forget,
            "disks": self._disks,
        }
        try:
            command = commands[request["op"]]
        except KeyError:
            raise LabError(f"the supervisor knows no {request.get('op')!r}") from None
        return await command(request, say)

    async def _start(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        async with self._starting:
            if not self._ready:
                if self._note:
                    say(self._note)
                say("network: segments, router, filter")
                sources = await asyncio.to_thread(network.package_sources)
                await asyncio.to_thread(network.build, sources)
                exceptions = await asyncio.to_thread(sources.private_addresses)
                for machine in self.machines.values():
                    machine.exceptions = exceptions
                await self._start_services(sources, say)
                self._ready = True
            for note in await asyncio.to_thread(_make_disks, request["bases"]):
                say(note)
            names: list[str] = request["hosts"]
            await self._boot(names, say)
        return {}

    async def _boot(self, names: Sequence[str], say: Say) -> None:
        for name in names:
            if self.machines[name].state not in ("running", "booting"):
                say(f"{name}: booting")
                self.machines[name].start()
        while any(self.machines[name].state in ("off", "booting") for name in names):
            await asyncio.sleep(0.05)
        failed = {n: self.machines[n].error for n in names if self.machines[n].state == "failed"}
        if failed:
            raise LabError("; ".join(f"{name}: {error}" for name, error in failed.items()))

    async def _status(self, _: dict[str, Any], __: Say) -> dict[str, Any]:
        return {name: machine.report() for name, machine in self.machines.items()}

    async def _reboot(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        say(f"{request['host']}: rebooting")
        await self.machines[request["host"]].reboot()
        return {}

    async def _cut(self, request: dict[str, Any], _: Say) -> dict[str, Any]:
        await self.machines[request["host"]].set_cut(True)
        return {}

    async def _heal(self, request: dict[str, Any], _: Say) -> dict[str, Any]:
        await self.machines[request["host"]].set_cut(False)
        return {}

    async def _stop(self, _: dict[str, Any], say: Say) -> dict[str, Any]:
        say("hosts: powering off")
        # The answer has to leave before the socket goes.
        asyncio.get_running_loop().call_later(0.05, self._over.set)
        return {}

    # --- disks ----------------------------------------------------------------------------

    async def _save(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        """Stop what runs, keep the disks, boot again what ran; returns {"hosts": names}."""
        async with self._starting:
            disks.check_name(request["name"])
            ran = [name for name, m in self.machines.items() if m.leader() is not None]
            say("hosts: powering off")
            stopped = await asyncio.gather(*(self.machines[name].stop() for name in ran))
            self._unmount_roots()
            slow = [name for name, clean in zip(ran, stopped, strict=True) if not clean]
            try:
                if slow:
                    raise LabError(
                        f"{', '.join(slow)} did not power off within {_POWEROFF_SECONDS} s: "
                        "nothing is saved"
                    )
                await asyncio.to_thread(disks.save, request["name"], request["key"], ran)
                say(f"snapshot {request['name']}: saved")
            finally:
                await self._boot(ran, say)
        return {"hosts": ran}

    async def _restore(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        """Put the hosts on a snapshot's disks; returns the hosts that ran then, which are off."""
        async with self._starting:
            name, key = request["name"], request["key"]
            record = await asyncio.to_thread(disks.check, name, key, bases.BASES)
            await asyncio.gather(*(machine.kill() for machine in self.machines.values()))
            self._unmount_roots()
            await asyncio.to_thread(disks.restore, name)
            for machine in self.machines.values():
                machine.cut = False
            say(f"snapshot {name}: restored")
        return {"hosts": record["hosts"]}

    async def _forget(self, request: dict[str, Any], _: Say) -> dict[str, Any]:
        async with self._starting:
            await asyncio.to_thread(disks.forget, request["name"])
        return {}

    async def _disks(self, _: dict[str, Any], __: Say) -> dict[str, Any]:
        return await asyncio.to_thread(disks.report)

    def _unmount_roots(self) -> None:
        for machine in self.machines.values():
            hosts.unmount_root(machine.host)

    # --- services -------------------------------------------------------------------------

    async def _start_services(self, sources: network.Sources, say: Say) -> None:
        say("network: way out, resolver, registry")
        await self._service("slirp4netns", network.slirp_command())
        deadline = time.monotonic() + _SERVICE_SECONDS
        while not await asyncio.to_thread(network.slirp_ready):
            if time.monotonic() > deadline:
                log = network.log_path("slirp4netns")
                raise LabError(f"slirp4netns did not come up, see {log}")
            await asyncio.sleep(0.05)
        dnsmasq = network.dnsmasq_command(sources, RUNTIME / "dnsmasq.conf")
        await self._service("dnsmasq", dnsmasq)
        storage = CACHE / "registry"
        storage.mkdir(parents=True, exist_ok=True)
        argv, config = registry.serve_command(storage, f"{REGISTRY_ADDRESS}:{REGISTRY_PORT}")
        path = RUNTIME / "registry.yml"
        write_if_changed(path, config)
        await self._service("registry", [*network.enter(REGISTRY), *argv, str(path)])
        if lxcfs.available():
            await self._service(
                "lxcfs", lxcfs.command(), before=lxcfs.clear, after=self._show_own_figures
            )
        else:
            say("lxcfs is not installed: hosts will show the machine's memory and CPUs")

    async def _show_own_figures(self) -> None:
        """Hosts that run already have the files of a dead lxcfs over their /proc."""
        for machine in self.machines.values():
            await machine.show_own_figures()

    async def _service(
        self,
        name: str,
        argv: list[str],
        *,
        before: Callable[[], None] = _nothing,
        after: Callable[[], Awaitable[None]] = _nothing_later,
    ) -> None:
        service = self._keep_running(name, argv, before, after)
        self._services.append(asyncio.create_task(service))

    async def _keep_running(
        self,
        name: str,
        argv: list[str],
        before: Callable[[], None],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        while True:
            process = None
            try:
                await asyncio.to_thread(before)
                with network.log_path(name).open("ab") as log:
                    process = await asyncio.create_subprocess_exec(
                        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
                    )
                await after()
                status = await process.wait()
                print(f"{name} ended with {status}, starting it again", flush=True)
            except (LabError, OSError) as error:
                print(f"{name}: {error}", flush=True)
            finally:
                if process is not None and process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.sleep(1)


def _make_disks(base_names: dict[str, str]) -> list[str]:
    """Make what the hosts lack, delete what nobody needs; returns what is to be said."""
    disks.ensure_current()
    notes = [hosts.make_disk(host, base_names[host.suite]) for host in HOSTS.values()]
    bases.forget_unused({*base_names.values(), *disks.used_bases()})
    return [note for note in notes if note]


def _enter_namespaces() -> None:
    """Mounts that only the lab sees: its processes, its network namespaces, nspawn's state."""
    run(["mount", "-t", "proc", "proc", "/proc"])
    for path in ("/run/netns", "/run/systemd/nspawn"):
        Path(path).mkdir(parents=True, exist_ok=True)
        run(["mount", "-t", "tmpfs", "-o", "mode=0755", "lab", path])


def _reap(child: int) -> int:
    """PID 1's life: collect orphans, pass signals on, end with the child."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: os.kill(child, n))
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except InterruptedError:
            continue
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


def main() -> int:
    """Entry point: `unshare --pid --mount --fork --kill-child python3 -m lab.supervisor`."""
    if os.getpid() != 1:
        print("the supervisor is started by `python3 -m lab up`", file=sys.stderr)
        return 2
    LOGS.mkdir(parents=True, exist_ok=True)
    # For life: the child shares the lock, which is free when both are gone.
    lock = exclusive(LOCK, 3, busy=lambda _: LabError("another supervisor holds the lab's lock"))
    try:
        lock.__enter__()
        # /proc still is the machine's: these are the pids that others see.
        pid = int(os.readlink("/proc/self"))
        status = Path("/proc/self/status").read_text().splitlines()
        outer = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
        owner = Owner(checkout=str(CHECKOUT), pid=pid, outer_pid=outer, started=time.time())
        cgroups.prepare()
        for path in cgroups.procs_files(cgroups.SUPERVISOR):
            # "0" is the writer itself; the machine's pid namespace does not matter.
            path.write_text("0")
        _enter_namespaces()
        note = disks.attach()
        write_if_changed(OWNER, json.dumps(owner) + "\n")
    except (LabError, OSError) as error:
        print(f"supervisor: {error}", file=sys.stderr, flush=True)
        return 1
    child = os.fork()
    if child == 0:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(Supervisor(note).run())
        os._exit(0)
    return _reap(child)


if __name__ == "__main__":
    sys.exit(main())
