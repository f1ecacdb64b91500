"""The users: names, roles and password hashes, from a credential that the operator provisions."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

import msgspec

from prime_spark.config import ConfigError

Role = Literal["viewer", "operator", "admin"]
RANKS: dict[Role, int] = {"viewer": 0, "operator": 1, "admin": 2}
USERNAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"

_HASH = re.compile(r"\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
# What OWASP asks for at least: KiB of memory, passes.
_MIN_MEMORY, _MIN_TIME = 19_456, 2


class HashParameters(msgspec.Struct, frozen=True):
    """What computing an argon2id hash costs; `memory` in KiB."""

    memory: int = _MIN_MEMORY
    time: int = _MIN_TIME
    parallelism: int = 1


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user. Whoever had tokens before the password changed has them no more."""

    role: Role
    password_hash: str
    name: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes with the password; says nothing about it."""
        return hashlib.sha256(self.password_hash.encode()).hexdigest()[:16]


class Users:
    """All users. Their hashes share one set of parameters, so that timing tells no names."""

    def __init__(self, text: str) -> None:
        """Read the JSON of the credential; raises ConfigError, which never shows a hash."""
        names = Annotated[str, msgspec.Meta(pattern=USERNAME_PATTERN)]
        try:
            found = msgspec.json.decode(text, type=dict[names, User])
        except msgspec.DecodeError as error:
            raise ConfigError(f"users: {error}") from None
        self.parameters = HashParameters()
        chosen_by = ""
        for name, user in found.items():
            parameters = _parameters(name, user)
            if chosen_by and parameters != self.parameters:
                raise ConfigError(
                    f"users: the hashes of {chosen_by} and {name} were made with different "
                    "parameters, which their timing would tell: make one of them again"
                )
            self.parameters, chosen_by = parameters, name
        self._users = {
            name: User(role=user.role, password_hash=user.password_hash, name=name)
            for name, user in found.items()
        }
        self._fingerprints = {name: user.fingerprint for name, user in self._users.items()}

    def __len__(self) -> int:
        return len(self._users)

    def get(self, name: str) -> User | None:
        """Return the user with this name."""
        return self._users.get(name)

    def fingerprint(self, name: str) -> str | None:
        """Return the fingerprint of the user's password hash, None for an unknown user."""
        return self._fingerprints.get(name)


def _parameters(name: str, user: User) -> HashParameters:
    match = _HASH.fullmatch(user.password_hash)
    if match is None:
        raise ConfigError(
            f"users: the password_hash of {name} is not an argon2id hash ($argon2id$v=19$…)"
        )

    parameters = HashParameters(*map(int, match.groups()))
    if parameters.memory < _MIN_MEMORY or parameters.time < _MIN_TIME:
        raise ConfigError(
            f"users: the password_hash of {name} is too weak: m={parameters.memory},"
            f"t={parameters.time}, expected at least m={_MIN_MEMORY},t={_MIN_TIME}"
        )
    return parameters
