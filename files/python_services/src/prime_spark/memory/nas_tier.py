"""Tier 2: files on the NAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from prime_spark.memory.nas import NASError, NASNotFoundError, NASStorage, NASUnavailableError
from prime_spark.memory.settings import NasTierConfig
from prime_spark.memory.tier import Entry, TierDownError
from prime_spark.runtime.threads import BoundedCalls

T = TypeVar("T")

_FOLDER = "memory"


class NasTier:
    """Keeps each entry as one file `memory/<key>`; colons become spaces, which no key has."""

    name = "nas"

    def __init__(self, config: NasTierConfig) -> None:
        self.max_bytes = config.max_bytes
        self._storage = NASStorage(config.directory)
        self._calls = BoundedCalls("nas", config.max_calls, config.timeout_seconds)

    async def get(self, key: str) -> Entry | None:
        """Return the entry, or None."""
        try:
            value = await self._call(lambda: self._storage.retrieve(_path(key)))
        except NASNotFoundError:
            return None
        if isinstance(value, bytes):
            return Entry(value, json=False)
        return Entry(msgspec.json.encode(value), json=True)

    async def set(self, key: str, entry: Entry, ttl: int | None) -> None:  # noqa: ARG002
        """Keep `entry`."""
        value = msgspec.Raw(entry.data) if entry.json else entry.data
        await self._call(lambda: self._storage.store(_path(key), value))

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""
        try:
            await self._call(lambda: self._storage.delete(_path(key)))
        except NASNotFoundError:
            return False
        return True

    async def check(self) -> None:
        """Raise TierDownError when the share is not mounted or does not answer."""
        await self._call(self._storage.check)

    async def close(self) -> None:
        """Nothing to close."""

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await self._calls.run(call)
        except NASNotFoundError:
            raise
        except (NASUnavailableError, TimeoutError) as error:
            raise TierDownError(str(error)) from error
        except NASError as error:  # full or read-only, say
            raise TierDownError(str(error), answers=True) from error


def _path(key: str) -> str:
    return f"{_FOLDER}/{key.replace(':', ' ')}"
