"""What goes wrong, said in two lines: what happened, and what to do about it."""

from __future__ import annotations

from typing import Any


class CliError(Exception):
    """Ends the command: `code` for programs, `remedy` for people, `status` for the shell."""

    def __init__(self, code: str, message: str, remedy: str = "", *, status: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.status = status

    def as_json(self) -> dict[str, Any]:
        """Return the error for `--json`."""
        return {"error": {"code": self.code, "message": self.message, "remedy": self.remedy}}


def not_logged_in() -> CliError:
    """Return the error for a command that needs a login."""
    return CliError("not_logged_in", "You are not logged in.", "Run `prime-spark login`.", status=3)


# HTTP status to what a person can do, and the exit status of the command.
_REMEDIES: dict[int, tuple[str, int]] = {
    401: ("Run `prime-spark login`.", 3),
    403: ("Ask an administrator for a role that may do this.", 3),
    404: ("", 4),
    413: ("Send less at a time.", 2),
    422: ("See `prime-spark --help` for what is allowed.", 2),
    429: ("Wait, then try again.", 5),
    503: ("See `prime-spark health` for what is down.", 5),
}


def from_answer(status: int, problem: dict[str, Any], retry_after: str | None) -> CliError:
    """Return the error for an answer of the API."""
    remedy, code = _REMEDIES.get(status, ("", 1))
    if status == 429 and retry_after:
        remedy = f"Try again in {retry_after} s."
    if status >= 500 and status != 503:
        remedy = f"Look for {problem.get('request_id', 'it')} in the API's log."
    message = str(problem.get("detail") or f"the API answered with status {status}")
    return CliError(str(problem.get("code", status)), message, remedy, status=code)
