"""Password checks that take the same time for everyone and never block the event loop."""

from __future__ import annotations

import secrets

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from prime_spark.accounts.users import HashParameters, Users
from prime_spark.runtime.threads import BoundedCalls


class BusyError(Exception):
    """So many passwords are being checked that there was no turn in time."""


class Passwords:
    """Checks passwords in few threads: each hash takes its memory, and the machine is small."""

    def __init__(self, users: Users, max_calls: int, wait_seconds: float) -> None:
        self._users = users
        self._hasher = hasher(users.parameters)
        # What unknown users are checked against; nobody has its password.
        self._nobody = self._hasher.hash(secrets.token_urlsafe(32))
        self._calls = BoundedCalls("password", max_calls, wait_seconds)

    async def check(self, username: str, password: str) -> bool:
        """Return whether `username` exists and has this password; raises BusyError."""
        user = self._users.get(username)
        known = user.password_hash if user is not None else self._nobody
        try:
            matches = await self._calls.run(lambda: self._hasher.verify(password, known))
        except TimeoutError as error:
            raise BusyError(str(error)) from error
        return matches and user is not None


def hasher(parameters: HashParameters) -> PasswordHash:
    """Return an argon2id hasher with these parameters."""
    return PasswordHash(
        (
            Argon2Hasher(
                time_cost=parameters.time,
                memory_cost=parameters.memory,
                parallelism=parameters.parallelism,
            ),
        )
    )
