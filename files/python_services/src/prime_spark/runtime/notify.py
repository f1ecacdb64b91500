"""Messages to systemd (sd_notify): READY, STOPPING, STATUS and the watchdog."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

_SEND_SECONDS = 0.5


class Notifier:
    """Sends sd_notify messages; does nothing when the process was not started by systemd."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_usec = _watchdog_usec(environ)

    @property
    def watchdog_seconds(self) -> float | None:
        """How often to call `watchdog`, half of what the unit allows; None without WatchdogSec."""
        return self._watchdog_usec / 2e6 if self._watchdog_usec else None

    def ready(self) -> None:
        """The service has finished starting."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service has begun to shut down."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The service is alive."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Show one line of `text` in `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def _send(self, message: str) -> None:
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        # Nobody listens while systemd re-executes itself, say; the next message will arrive.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sender:
            sender.settimeout(_SEND_SECONDS)  # systemd's queue may be full; do not stall for it
            sender.connect(self._address)
            sender.sendall(message.encode())


def _watchdog_usec(environ: Mapping[str, str]) -> int:
    """Return WATCHDOG_USEC when it is meant for this process, else 0."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0")))
    except ValueError:
        return 0
