"""How an alarm leaves: a web hook or a mail server. Blocking; called in threads."""

from __future__ import annotations

import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import EmailMessage
from http.client import HTTPException
from typing import Any

import msgspec

from prime_spark.config import read_credential
from prime_spark.deadman.settings import DeadmanConfig, EmailConfig, WebhookConfig
from prime_spark.deadman.watch import Notice

SEND_SECONDS = 10.0

Channel = Callable[[Notice], None]


class DeliveryError(Exception):
    """A channel did not take a notice; the message says why, without address or secret."""


def channels(config: DeadmanConfig) -> dict[str, Channel]:
    """Return the configured ways out by name; secrets are read once, here."""
    found: dict[str, Channel] = {
        name: _webhook(hook, read_credential(hook.credential) if hook.credential else "")
        for name, hook in config.webhooks.items()
    }
    if config.email is not None:
        mail = config.email
        found["email"] = _email(mail, read_credential(mail.credential) if mail.credential else "")
    return found


def title(notice: Notice) -> str:
    """Return the subject of a notice; it names the host that noticed."""
    what = "monitoring is silent" if notice.alarm else "monitoring is back"
    return f"Prime Spark: {what} (seen by {socket.gethostname()})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and count as delivered."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _webhook(config: WebhookConfig, token: str) -> Channel:
    opener = urllib.request.build_opener(_NoRedirect)

    def send(notice: Notice) -> None:
        headers = {"User-Agent": "prime-spark-deadman"}
        if config.format == "text":
            body = notice.text.encode()
            headers |= {"Content-Type": "text/plain; charset=utf-8", "Title": title(notice)}
            headers["Priority"] = "urgent" if notice.alarm else "default"
        else:
            body = msgspec.json.encode(
                {
                    "text": f"{title(notice)}\n{notice.text}",
                    "status": "firing" if notice.alarm else "resolved",
                    "since": notice.since,
                }
            )
            headers["Content-Type"] = "application/json"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(config.url, body, headers)  # noqa: S310 (http or https)
        try:
            opener.open(request, timeout=SEND_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise DeliveryError(f"answers {error.code}") from None
        except (OSError, HTTPException) as error:
            raise DeliveryError(f"cannot be reached: {error}") from None

    return send


def _email(config: EmailConfig, password: str) -> Channel:
    def send(notice: Notice) -> None:
        message = EmailMessage()
        message["Subject"] = title(notice)
        message["From"] = config.sender
        message["To"] = ", ".join(config.recipients)
        message.set_content(notice.text)
        try:
            with smtplib.SMTP(config.host, config.port, timeout=SEND_SECONDS) as server:
                if config.starttls:
                    server.starttls(context=ssl.create_default_context())
                if config.username:
                    server.login(config.username, password)
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"the mail server does not take it: {error}") from None

    return send
