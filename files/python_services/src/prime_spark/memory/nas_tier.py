"""Tier 2: files on the NAS."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from prime_spark.memory.ledger import Ledger
from prime_spark.memory.nas import NASError, NASNotFoundError, NASStorage, NASUnavailableError
from prime_spark.memory.settings import NasTierConfig
from prime_spark.memory.tier import ENTRY_BYTES, Entry, TierDownError
from prime_spark.runtime.threads import BoundedCalls

T = TypeVar("T")

_FOLDER = "memory"


class NasTier:
    """Keeps each entry as one file `memory/<key>`; colons become spaces, which no key has."""

    name = "nas"

    def __init__(self, config: NasTierConfig, ledger: Ledger) -> None:
        self.max_bytes = config.max_bytes
        self._config = config
        self._ledger = ledger
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

    async def set(self, key: str, entry: Entry, ttl: int | None, owner: str) -> None:  # noqa: ARG002
        """Keep `entry`."""
        await self._change(lambda given_up: self._store(key, entry, owner, given_up))

    async def delete(self, key: str) -> bool:
        """Remove the entry; return whether there was one."""
        return await self._change(lambda given_up: self._delete(key, given_up))

    async def check(self) -> None:
        """Raise TierDownError when the share takes no value: away, full, read-only."""
        await self._call(self._check)  # in one call, which is bounded as a whole

    async def close(self) -> None:
        """Nothing to close."""

    def _check(self) -> None:
        free = self._storage.free_bytes()
        if free is not None and free < self.max_bytes:
            raise TierDownError(f"the NAS is full: {free} bytes free", answers=True)
        self._storage.check()

    def _store(self, key: str, entry: Entry, owner: str, given_up: threading.Event) -> None:
        self._ledger.recount(self._there)
        value = msgspec.Raw(entry.data) if entry.json else entry.data
        path = _path(key)
        counting = self._ledger.taking(
            key,
            owner,
            len(entry.data) + ENTRY_BYTES,
            owner_bytes=self._config.user_bytes,
            all_bytes=self._config.all_bytes,
        )
        with self._alone(path, given_up), counting:
            self._storage.store(path, value)

    def _delete(self, key: str, given_up: threading.Event) -> bool:
        self._ledger.recount(self._there)  # which would count what is deleted meanwhile
        path = _path(key)
        with self._alone(path, given_up):
            try:
                self._storage.delete(path)
                found = True
            except NASNotFoundError:
                found = False
            self._ledger.gone(key)
        return found

    def _there(self) -> dict[str, int]:
        sizes = self._storage.sizes(_FOLDER)
        return {name.replace(" ", ":"): size + ENTRY_BYTES for name, size in sizes.items()}

    @contextlib.contextmanager
    def _alone(self, path: str, given_up: threading.Event) -> Iterator[None]:
        """Change the file inside, as nobody else does meanwhile; TimeoutError once given up.

        What was given up may have been followed by a newer change already.
        """
        with self._storage.alone(path):
            if given_up.is_set():
                raise TimeoutError("given up")
            yield

    async def _change(self, change: Callable[[threading.Event], T]) -> T:
        """Make a change, which is told when it is given up."""
        given_up = threading.Event()
        try:
            return await self._call(lambda: change(given_up))
        finally:
            given_up.set()

    async def _call(self, call: Callable[[], T]) -> T:
        try:
            return await self._calls.run(call)
        except NASNotFoundError:
            raise
        except (NASUnavailableError, TimeoutError) as error:
            raise TierDownError(str(error)) from error
        except (NASError, sqlite3.Error) as error:  # full or read-only, say
            raise TierDownError(str(error), answers=True) from error


def _path(key: str) -> str:
    return f"{_FOLDER}/{key.replace(':', ' ')}"
