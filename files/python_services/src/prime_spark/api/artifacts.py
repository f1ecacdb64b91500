"""Files that tasks left on the NAS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from prime_spark.api.settings import ArtifactsConfig
from prime_spark.memory.nas import NASError, NASNotFoundError, NASStorage, NASTooLargeError
from prime_spark.runtime.threads import BoundedCalls

PREFIX = "artifacts/"
_TYPES = frozenset({"audio/wav", "audio/ogg", "audio/mpeg", "text/plain", "application/json"})


class NoArtifactError(Exception):
    """There is no file; the message says why."""


class ArtifactsUnavailableError(Exception):
    """The NAS does not answer; the message says why."""


class Artifact(msgspec.Struct, frozen=True):
    """A file, its type and the name to save it under."""

    data: bytes
    content_type: str
    name: str


class Artifacts:
    """Reads artifacts in few threads: a NAS that hangs holds up nothing else.

    Whole into memory, so what is larger than `max_bytes` is not read at all.
    """

    def __init__(self, config: ArtifactsConfig) -> None:
        self._storage = NASStorage(config.root)
        self._max_bytes = config.max_bytes
        self._calls = BoundedCalls("artifact", config.max_calls, config.timeout_seconds)

    async def read(self, result: object) -> Artifact:
        """Return the file that a task's `result` names.

        Raises NoArtifactError or ArtifactsUnavailableError.
        """
        key = result.get("artifact") if isinstance(result, Mapping) else None
        if not isinstance(key, str) or not key.startswith(PREFIX):
            raise NoArtifactError("the task left no file")
        try:
            data: object = await self._calls.run(
                lambda: self._storage.retrieve(key, max_bytes=self._max_bytes)
            )
        except NASNotFoundError:
            raise NoArtifactError("the file is no longer on the NAS") from None
        except NASTooLargeError as error:
            raise NoArtifactError(str(error)) from None
        except (NASError, TimeoutError) as error:
            raise ArtifactsUnavailableError(str(error)) from error
        if not isinstance(data, bytes):
            raise NoArtifactError("the task left no file")
        return Artifact(data, _content_type(result), key.rpartition("/")[2])


def _content_type(result: Any) -> str:
    """Return the type that the agent gave, if it is one that no browser runs."""
    given = result.get("content_type")
    return given if given in _TYPES else "application/octet-stream"
