"""Whether the heartbeat still comes, and who has been told; kept across restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from prime_spark.runtime import atomic

_log = structlog.get_logger(__name__)

Clock = Callable[[], float]


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """What a channel was told last: the alarm or the all-clear, and when (Unix seconds)."""

    alarm: bool
    at: float


class State(msgspec.Struct, forbid_unknown_fields=True):
    """What outlives the process. Times are Unix seconds, 0 for never."""

    heartbeat: float = 0.0
    silent_since: float = 0.0
    told: dict[str, Told] = {}


class Notice(msgspec.Struct, frozen=True):
    """Something a channel has to be told: alarm or all-clear, since when, and a sentence."""

    alarm: bool
    since: float
    text: str


class StateFile:
    """The state on disk; an unreadable one counts as none, since an alarm must not depend on it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> State:
        """Return the state, empty when there is none."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("state unreadable, starting without it", error=str(error))
            return State()

    def write(self, state: State) -> None:
        """Replace the file in one step; OSError when the disk does not take it."""
        atomic.replace(self._path, msgspec.json.encode(state))


class Watch:
    """Decides when the heartbeat has stopped and what is still to be said about it.

    Silence is measured from the start of this process at the earliest: while it did not run,
    nobody could reach it. It is measured by the monotonic clock, so a corrected clock raises no
    alarm. An alarm that was raised before a restart goes on until a heartbeat comes.
    """

    def __init__(
        self,
        state: State,
        *,
        timeout_seconds: float,
        repeat_seconds: float,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.state = state
        self._timeout = timeout_seconds
        self._repeat = repeat_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._heard = monotonic()

    @property
    def alarm(self) -> bool:
        """Whether the heartbeat has stopped."""
        return self.state.silent_since > 0

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat, or since the start."""
        return self._monotonic() - self._heard

    def heartbeat(self) -> bool:
        """Note a heartbeat; return whether it ends an alarm."""
        self._heard = self._monotonic()
        self.state.heartbeat = self._clock()
        ended, self.state.silent_since = self.alarm, 0.0
        return ended

    def check(self) -> bool:
        """Raise the alarm when it is due; return whether it was raised just now."""
        if self.alarm or self.silence < self._timeout:
            return False
        self.state.silent_since = self._clock() - self.silence
        return True

    def due(self, channels: Iterable[str]) -> dict[str, Notice]:
        """Return what each channel has to be told now; nothing for one that knows."""
        return {name: self._notice() for name in channels if self._is_due(name)}

    def told(self, channel: str, notice: Notice) -> None:
        """Note that a channel has been told."""
        self.state.told[channel] = Told(notice.alarm, self._clock())

    def forget(self, channels: Iterable[str]) -> None:
        """Forget what channels were told that are no longer configured."""
        kept = set(channels)
        self.state.told = {k: v for k, v in self.state.told.items() if k in kept}

    def _is_due(self, channel: str) -> bool:
        last = self.state.told.get(channel)
        if last is None:
            return self.alarm
        if last.alarm != self.alarm:
            return True
        # The clock may have been set back since.
        return self.alarm and not 0 <= self._clock() - last.at < self._repeat

    def _notice(self) -> Notice:
        if not self.alarm:
            return Notice(False, self.state.heartbeat, "The heartbeat of the monitoring is back.")
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.state.silent_since))
        return Notice(
            True,
            self.state.silent_since,
            f"No heartbeat of the monitoring since {since}: Prometheus, Alertmanager or the way "
            "from them is down, and no other alert can be relied upon.",
        )


class _Alert(msgspec.Struct):
    status: str
    labels: dict[str, str]


class _Message(msgspec.Struct):
    alerts: list[_Alert]


class MessageError(Exception):
    """A request is no message of Alertmanager's webhook."""


def is_heartbeat(body: bytes, alert: str) -> bool:
    """Return whether Alertmanager's webhook message (version 4) says that `alert` fires.

    https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
    """
    try:
        message = msgspec.json.decode(body, type=_Message)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageError(f"no message of Alertmanager: {error}") from None
    return any(
        entry.status == "firing" and entry.labels.get("alertname") == alert
        for entry in message.alerts
    )
