"""How tasks fail."""

from __future__ import annotations


class TaskFailedError(Exception):
    """The task has no result.

    `retryable`: it may have one later, or on another agent. `unable`: on another agent only.
    """

    def __init__(self, reason: str, *, retryable: bool = True, unable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable
        self.unable = unable


class BusyError(Exception):
    """The agent takes no task now."""


class ConflictError(Exception):
    """A task with this id and another content is known already."""
