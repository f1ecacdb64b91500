"""From the queue to processes and back: starts runs, follows them, and takes over those it finds.

What it does depends on the queue and the runs' directories alone, so it goes on after `kill -9`
where it was. A run that is `starting` may have a process or not: starting it again is harmless,
since its directory can be claimed once.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from prime_spark.hook.directory import Order, Result, RunDirectory
from prime_spark.hook.drift import Drift
from prime_spark.hook.hosts import HostsError, hosts_of
from prime_spark.hook.metrics import HookMetrics
from prime_spark.hook.queue import Breaker, Ended, HostResult, Queue, Run
from prime_spark.hook.repository import GitError, Repository
from prime_spark.hook.rules import Job
from prime_spark.hook.settings import AnsibleConfig, HookConfig
from prime_spark.hook.starter import Starter, StartError
from prime_spark.runtime.health import Health
from prime_spark.runtime.service import Service

_log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.3
_IDLE_LOOK_SECONDS = 1.0
# What a command has changed in the queue is seen after so long; all else wakes us.
_IDLE_SECONDS = 5.0
# Until a process that was started has claimed its run; then it is started again.
_CLAIM_SECONDS = 30.0
_STARTS = 3
# How long hosts that were looked up are believed.
_HOSTS_SECONDS = 30.0
# What a run's process has for its end on top of the grace that it gives Ansible.
_SPARE_SECONDS = 20.0
_UNREADABLE = "cannot be read"
# The worktree in which hosts are looked up.
_LOOK = "look"
# The two loops, for the watchdog and for /health.
STARTING = "starting runs"
FOLLOWING = "following runs"


@dataclass
class _Attempt:
    """What this service knows of a run's process, beside what stands on the disk."""

    starts: int = 0
    started: float = 0.0
    stopped: float = 0.0


class Scheduler:
    """Starts what may start, and notes what became of it."""

    def __init__(
        self,
        config: HookConfig,
        queue: Queue,
        starter: Starter,
        metrics: HookMetrics,
        *,
        health: Health,
        repository: Repository | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._queue = queue
        self._drift = Drift(queue)
        self._breakers: list[Breaker] = queue.breakers()
        self._starter = starter
        self._metrics = metrics
        metrics.show_drift(self._drift.latest())
        self._health = health
        for part in (STARTING, FOLLOWING):
            health.expect(part, essential=True)
            health.set(part, True)
        self._repository = repository
        self._beat = beat
        self._runs = Path(config.state) / "runs"
        self._attempts: dict[int, _Attempt] = {}
        self._lock = threading.Lock()
        self._hosts: dict[tuple[str | None, ...], tuple[float, frozenset[str]]] = {}
        self._heads: tuple[float, dict[str, str]] = (0.0, {})
        self._changed = asyncio.Event()
        self._following = True

    def wake(self) -> None:
        """There is something new in the queue."""
        self._changed.set()

    async def run(self, service: Service) -> None:
        """Work until told to stop; runs go on without us."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(service))
            tasks.create_task(self._start(service))
            await service.stop.wait()
            self._changed.set()

    async def _follow(self, service: Service) -> None:
        while not await service.pause(_LOOK_SECONDS if self._following else _IDLE_LOOK_SECONDS):
            service.beat(FOLLOWING)
            if await asyncio.to_thread(self.guarded, FOLLOWING, self.look):
                self._changed.set()

    async def _start(self, service: Service) -> None:
        while not service.stop.is_set():
            service.beat(STARTING)
            self._changed.clear()
            await asyncio.to_thread(self.guarded, STARTING, self.start_what_can)
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def guarded(self, part: str, work: Callable[[], bool | None]) -> bool:
        """Work, or tell why that cannot be done now (a full disk). The next look tries again."""
        try:
            result = work()
        except (OSError, sqlite3.Error) as error:
            if self._health.set(part, False, str(error)):
                _log.error("the scheduler cannot work", part=part, error=str(error))
            return False
        self._health.set(part, True)
        return bool(result)

    # -- starting -----------------------------------------------------------------------------

    def start_what_can(self) -> None:
        """Start waiting runs in their order. What waits for a host keeps later ones from it."""
        active = self._queue.active()
        taken = {host for run in active for host in run.hosts}
        places = self._config.limits.parallel_runs - len(active)
        pending = self._queue.pending()
        self._remove_worktrees(active, pending)
        for run in pending:
            self._beat()
            if run.job is None:
                self._end(run, "failed", _UNREADABLE)
                continue
            if places <= 0:
                return
            job = self._at_commit(run, run.job)
            hosts = None if job is None else self._hosts_of(run, job, taken)
            if job is None or hosts is None:
                continue
            if hosts & taken:
                taken |= hosts
                continue
            if reason := self._brake(job, hosts):
                self._end(run, "skipped", reason)
                continue
            try:
                self._checkout(job, str(run.id))
            except GitError as error:
                self._end(run, "failed", str(error))
                continue
            self._directory(run).prepare(self._order(run, job))
            if self._queue.start(run.id, hosts, job):
                self._launch(run)
                taken |= hosts
                places -= 1

    def _at_commit(self, run: Run, job: Job) -> Job | None:
        """Return the job at the commit that its ref has now; None when the run has ended."""
        if job.ref is None or job.commit is not None or self._repository is None:
            return job
        at, heads = self._heads
        if job.ref not in heads or time.monotonic() - at > _HOSTS_SECONDS:
            try:
                heads = self._repository.heads()
            except GitError as error:
                self._end(run, "failed", str(error))
                return None
            self._heads = (time.monotonic(), heads)
        if job.ref not in heads:
            self._end(run, "failed", f"there is no {job.ref}")
            return None
        return msgspec.structs.replace(job, commit=heads[job.ref])

    def _hosts_of(self, run: Run, job: Job, taken: set[str]) -> frozenset[str] | None:
        """Return the run's hosts; None when it has ended because there are none."""
        key = (job.commit, job.playbook, job.limit)
        at, hosts = self._hosts.get(key, (0.0, frozenset()))
        if hosts and (hosts & taken or time.monotonic() - at < _HOSTS_SECONDS):
            return hosts
        try:
            self._checkout(job, _LOOK)
            hosts = hosts_of(self._ansible(job, _LOOK), job)
        except (GitError, HostsError) as error:
            self._end(run, "failed", str(error))
            return None
        self._hosts[key] = (time.monotonic(), hosts)
        return hosts

    def _checkout(self, job: Job, name: str) -> None:
        """Make the worktree that `_ansible` names, of a job that is for a commit."""
        if job.commit is not None and self._repository is not None:
            self._repository.checkout(job.commit, name)

    def _remove_worktrees(self, active: list[Run], pending: list[Run]) -> None:
        """Remove the worktrees that no active run needs, and forget hosts that nobody asks for."""
        if self._repository is None:
            return
        try:
            self._repository.keep_only([str(run.id) for run in active])
        except GitError as error:
            _log.error("old worktrees stay", error=str(error))
        needed = {run.job.commit for run in pending if run.job is not None}
        needed |= set(self._heads[1].values())
        self._hosts = {
            key: entry for key, entry in self._hosts.items() if key[0] is None or key[0] in needed
        }

    def _ansible(self, job: Job, name: str) -> AnsibleConfig:
        """Return what the job is run with: the worktree of that name, or the checkout."""
        if job.commit is None or self._repository is None:
            return self._config.ansible
        checkout = str(self._repository.path(name))
        return msgspec.structs.replace(self._config.ansible, checkout=checkout)

    def _brake(self, job: Job, hosts: frozenset[str]) -> str | None:
        """Return why a remediation is not to start now."""
        brakes = job.remediation
        # A plan that somebody has approved is to be applied.
        if brakes is None or job.applies is not None:
            return None
        for breaker in self._queue.breakers():
            if breaker.rule == job.rule and breaker.host in hosts:
                return (
                    f"breaker: {breaker.failures} runs in a row failed on {breaker.host}; "
                    f"prime-spark-hook reset {breaker.rule} {breaker.host}"
                )
        recent = self._queue.started_within(job.rule, brakes.window_seconds)
        if len(recent) >= brakes.max_runs:
            return f"{len(recent)} runs of the rule within {brakes.window_seconds:g} s"
        for other in self._queue.started_within(job.rule, brakes.cooldown_seconds):
            if shared := hosts.intersection(other.hosts):
                host = min(shared)
                return f"run {other.id} was on {host} within {brakes.cooldown_seconds:g} s"
        return None

    def _launch(self, run: Run) -> None:
        """Start the run's process; when that fails, `look` tries again."""
        with self._lock:
            attempt = self._attempts.setdefault(run.id, _Attempt())
            attempt.starts += 1
            attempt.started = time.monotonic()
        try:
            self._starter.start(self._directory(run))
        except StartError as error:
            _log.error("a run's process does not start", run=run.id, error=str(error))
            with self._lock:
                attempt.started = 0.0
        else:
            _log.info("run started", run=run.id, rule=run.rule, start=attempt.starts)

    # -- following ----------------------------------------------------------------------------

    def look(self) -> bool:
        """See how the runs stand that may have a process; return whether one has ended."""
        active = self._queue.active()
        self._following = bool(active)
        ended = [run for run in active if self._look_at(run)]
        for run in self._queue.expire():
            self._metrics.count_end(run.rule, "expired")
            _log.info("nobody approved a plan in time", run=run.id, rule=run.rule)
        self._metrics.count_states(self._queue.counts())
        self._look_at_breakers()
        return bool(ended)

    def _look_at_breakers(self) -> None:
        breakers = self._queue.breakers()
        for breaker in breakers:
            if breaker not in self._breakers:
                # For an alert: the rule is no help there.
                _log.error("breaker open", rule=breaker.rule, host=breaker.host)
        self._breakers = breakers
        self._metrics.count_breakers(breakers)

    def _look_at(self, run: Run) -> bool:
        directory = self._directory(run)
        status = directory.status()
        if isinstance(status, Result):
            return self._close(run, status, directory)
        if status == "lost":
            return self._close_lost(run, directory)
        if status == "alive":
            if run.state == "starting":
                self._queue.running(run.id)
            if run.cancel:
                self._stop(run, directory)
            return False
        return self._start_again(run, directory)

    def _close(self, run: Run, result: Result, directory: RunDirectory) -> bool:
        """Note how a run ended; with a plan it has not, but waits for approval."""
        job = run.job
        if job is not None and result.state == "succeeded":
            plan = directory.plan() if job.plans else None
            if plan is not None and plan.total:
                if self._queue.wait_approval(run.id, plan.hash, plan.total):
                    _log.info("run waits for approval", run=run.id, changes=plan.total)
                    return True
                # The plan was there before the cancel reached its process.
                return self._end(run, "cancelled", "before it was applied", result.ended)
            if job.report is not None and not run.cancel and (report := directory.drift()):
                whole = job.limit is None
                for host in self._drift.store(run.id, result.ended, report, whole=whole):
                    _log.info("drift", host=host.host, state=host.state, run=run.id)
                self._metrics.show_drift(self._drift.latest())
        reason = "nothing would change" if job and job.plans else ""
        return self._end(run, result.state, result.reason or reason, result.ended, result.results)

    def _start_again(self, run: Run, directory: RunDirectory) -> bool:
        """Nobody has claimed the run: start its process, unless one may be on its way."""
        attempt = self._attempts.get(run.id, _Attempt())
        if time.monotonic() - attempt.started < _CLAIM_SECONDS and attempt.started:
            return False
        if run.job is not None and attempt.starts < _STARTS and not run.cancel:
            directory.prepare(self._order(run, run.job))
            self._launch(run)
            return False
        # While we hold the claim, no process begins any more.
        claim = directory.claim()
        if claim is None:
            return False
        claim.release()
        state: Ended = "cancelled" if run.cancel else "failed"
        reason = f"its process did not start ({attempt.starts} attempts)"
        return self._end(run, state, _UNREADABLE if run.job is None else reason)

    def _stop(self, run: Run, directory: RunDirectory) -> None:
        attempt = self._attempts.setdefault(run.id, _Attempt())
        if not attempt.stopped:
            attempt.stopped = time.monotonic()
            _log.info("stopping a run", run=run.id)
            self._starter.stop(directory)
        elif (
            time.monotonic() - attempt.stopped > self._config.limits.grace_seconds + _SPARE_SECONDS
        ):
            _log.error("a run does not end, killing it", run=run.id)
            self._starter.end(directory)

    def _close_lost(self, run: Run, directory: RunDirectory) -> bool:
        """The run's process ended without a result: end what it has left, then unlock its hosts."""
        left = self._starter.end(directory)
        reason = "its process ended without a result"
        if left:
            reason += f"; still there: processes {', '.join(map(str, left))}"
        shutil.rmtree(directory.private, ignore_errors=True)
        return self._end(run, "cancelled" if run.cancel else "lost", reason)

    # -----------------------------------------------------------------------------------------

    def _end(
        self,
        run: Run,
        state: Ended,
        reason: str,
        ended: float | None = None,
        results: Mapping[str, HostResult] | None = None,
    ) -> bool:
        if not self._queue.end(run.id, state, reason, ended, results):
            return False
        with self._lock:
            self._attempts.pop(run.id, None)
        self._metrics.count_end(run.rule, state)
        _log.info("run ended", run=run.id, rule=run.rule, state=state, reason=reason)
        self._prune()
        return True

    def _prune(self) -> None:
        """Forget the oldest of the runs that have ended, and before those their directories."""
        limits = self._config.limits
        gone = self._queue.prune(limits.kept_runs)
        used = 0
        for number, run in enumerate(self._queue.ended()):
            used += _size(self._runs / str(run))
            if number and used > limits.kept_bytes:
                gone.append(run)
        for run in gone:
            shutil.rmtree(self._runs / str(run), ignore_errors=True)

    def _directory(self, run: Run) -> RunDirectory:
        return RunDirectory(self._runs / str(run.id))

    def _order(self, run: Run, job: Job) -> Order:
        limits = self._config.limits
        return Order(
            run=run.id,
            job=job,
            ansible=self._ansible(job, str(run.id)),
            grace_seconds=limits.grace_seconds,
            event_bytes=limits.event_bytes,
        )


def _size(directory: Path) -> int:
    """Return the bytes of the files of a run that has ended."""
    try:
        return sum(file.stat().st_size for file in directory.iterdir())
    except OSError:
        return 0
