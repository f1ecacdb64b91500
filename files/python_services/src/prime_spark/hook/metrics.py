"""Metrics of the hook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from prime_spark.hook.drift import DriftState, HostDrift
from prime_spark.hook.queue import Breaker, Ended

_PENDING = ("queued", "starting", "running", "waiting_approval")
# A rule that is no longer in the file.
_OTHER = "other"
# So people end runs, and maybe while the service is down.
_DECIDED = {"approved", "rejected"}


class HookMetrics:
    """Counters of the hook, in `registry`. `rules` are the names that runs have as their rule."""

    def __init__(self, registry: CollectorRegistry, rules: Iterable[str] = ()) -> None:
        prefix = "prime_spark_hook"
        self.deliveries = Counter(
            f"{prefix}_deliveries",
            "Deliveries by the status of the answer",
            ["source", "status"],
            registry=registry,
        )
        self._ended = Counter(
            f"{prefix}_runs_ended",
            "Runs by how they ended",
            ["rule", "state"],
            registry=registry,
        )
        self._runs = Gauge(
            f"{prefix}_runs", "Runs that have not ended", ["state"], registry=registry
        )
        self._breakers = Gauge(
            f"{prefix}_breakers_open",
            "Hosts on which a rule starts no more until somebody resets that",
            ["rule"],
            registry=registry,
        )
        self._drift = Gauge(
            f"{prefix}_drift_hosts",
            "Hosts by what the newest report of drift says",
            ["state"],
            registry=registry,
        )
        self._drifted = Gauge(
            f"{prefix}_drift_host_drifted",
            "1 where the host has drifted",
            ["target"],
            registry=registry,
        )
        self._reported = Gauge(
            f"{prefix}_drift_report_timestamp_seconds",
            "When the newest report of drift was made, 0 for never",
            registry=registry,
        )
        self._rules = {*rules, _OTHER}
        # A series that begins with its first event has no rate then.
        for rule in self._rules:
            for state in set(get_args(Ended)) - _DECIDED:
                self._ended.labels(rule, state)
        self.count_states({})
        self.count_breakers([])
        self.show_drift([])

    def count_end(self, rule: str, state: Ended) -> None:
        """Count a run that has ended."""
        self._ended.labels(self._rule(rule), state).inc()

    def count_states(self, counts: Mapping[str, int]) -> None:
        """Show how many runs are in which state."""
        for state in _PENDING:
            self._runs.labels(state).set(counts.get(state, 0))

    def count_breakers(self, breakers: Iterable[Breaker]) -> None:
        """Show how many breakers are open."""
        open_now = [self._rule(breaker.rule) for breaker in breakers]
        for rule in self._rules:
            self._breakers.labels(rule).set(open_now.count(rule))

    def show_drift(self, hosts: Sequence[HostDrift]) -> None:
        """Show what the newest reports say."""
        states = [host.state for host in hosts]
        for state in get_args(DriftState):
            self._drift.labels(state.replace(" ", "_")).set(states.count(state))
        self._drifted.clear()
        for host in hosts:
            self._drifted.labels(host.host).set(host.state == "drifted")
        self._reported.set(max((host.at for host in hosts), default=0.0))

    def _rule(self, rule: str) -> str:
        return rule if rule in self._rules else _OTHER
