"""The agents as the dispatcher sees them: alive or not, busy or not, in cooldown or not."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence

from prime_spark.dispatcher.settings import AgentAddress
from prime_spark.dispatcher.store import Attempt
from prime_spark.tasks.protocol import HeartbeatMessage, TaskType


class Verdict(enum.Enum):
    """What is known about the agent that an attempt was given to."""

    ALIVE = enum.auto()
    UNKNOWN = enum.auto()  # its heartbeat is missing, but may only not have reached us yet
    RESTARTED = enum.auto()
    DEAD = enum.auto()


class Fleet:
    """Heartbeats, attempts under way, and cooldowns after failures, of the configured agents."""

    def __init__(self, agents: Sequence[AgentAddress], dead_seconds: float) -> None:
        self.urls = {agent.name: agent.url for agent in agents}
        self._dead_seconds = dead_seconds
        self._heartbeats: dict[str, HeartbeatMessage] = {}
        self._known: dict[str, HeartbeatMessage] = {}  # the last of each, down or not
        self._running: dict[str, set[str]] = {name: set() for name in self.urls}
        self._cooldown_until: dict[str, float] = {}
        self._watching_since: float | None = None

    @property
    def names(self) -> list[str]:
        """The agents' names."""
        return list(self.urls)

    def see(self, heartbeats: Mapping[str, HeartbeatMessage]) -> None:
        """Take in what Redis holds now."""
        if self._watching_since is None:
            self._watching_since = time.monotonic()
        self._heartbeats = dict(heartbeats)
        self._known |= self._heartbeats

    def blind(self) -> None:
        """Redis does not answer. The agents could not renew their heartbeats meanwhile."""
        self._watching_since = None

    def verdict(self, attempt: Attempt) -> Verdict:
        """Return what is known about the agent of an attempt."""
        if attempt.agent not in self.urls:
            return Verdict.DEAD
        if self._watching_since is None:
            return Verdict.UNKNOWN
        heartbeat = self._heartbeats.get(attempt.agent)
        if heartbeat is not None:
            return Verdict.ALIVE if heartbeat.instance == attempt.instance else Verdict.RESTARTED
        watched = time.monotonic() - self._watching_since
        return Verdict.DEAD if watched > self._dead_seconds else Verdict.UNKNOWN

    def took(self, attempt: Attempt) -> None:
        """Count an attempt against the agent's capacity."""
        if attempt.agent in self._running:
            self._running[attempt.agent].add(attempt.task_id)

    def gave_back(self, attempt: Attempt) -> None:
        """The attempt has ended."""
        if attempt.agent in self._running:
            self._running[attempt.agent].discard(attempt.task_id)

    def cool_down(self, name: str, seconds: float) -> None:
        """Give the agent no task for `seconds`."""
        self._cooldown_until[name] = max(
            self._cooldown_until.get(name, 0.0), time.monotonic() + seconds
        )

    def free(self) -> list[tuple[str, HeartbeatMessage]]:
        """Return the agents that may be given a task, the least busy first."""
        now = time.monotonic()
        free = [
            (len(self._running[name]), name, heartbeat)
            for name, heartbeat in self._heartbeats.items()
            if len(self._running[name]) < heartbeat.capacity
            and self._cooldown_until.get(name, 0.0) <= now
        ]
        return [(name, heartbeat) for _, name, heartbeat in sorted(free, key=lambda item: item[:2])]

    def others(self, task_type: TaskType, tried: Sequence[str]) -> bool:
        """Whether an agent that has not tried it yet could do such a task.

        One that is down may come back; one that was never seen may be able to do anything.
        """
        untried = [name for name in self.urls if name not in tried]
        return any(
            name not in self._known or task_type in self._known[name].task_types for name in untried
        )
