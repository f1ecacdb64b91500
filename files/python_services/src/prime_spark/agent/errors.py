"""How tasks fail."""

from __future__ import annotations


class TaskFailedError(Exception):
    """The task has no result. `retryable`: it may have one later, or on another agent."""

    def __init__(self, reason: str, *, retryable: bool = True) -> None:
        super().__init__(reason)
        self.retryable = retryable


class BusyError(Exception):
    """The agent takes no task now."""


class ConflictError(Exception):
    """A task with this id and another content is known already."""
