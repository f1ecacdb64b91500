"""What each type of task does."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import structlog

from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.executor import Handler
from prime_spark.agent.fetch import AudioFetcher
from prime_spark.agent.recognition import Recognizer
from prime_spark.agent.synthesis import Synthesizer
from prime_spark.llm.router import LLMRouter
from prime_spark.llm.types import GenerateRequest, LLMError, LLMRejectedError
from prime_spark.memory.nas import (
    NASError,
    NASKeyError,
    NASNotFoundError,
    NASStorage,
    NASTooLargeError,
)
from prime_spark.runtime.threads import BoundedCalls
from prime_spark.tasks.payloads import (
    SPOKEN,
    SPOKEN_FILE,
    VoiceRecognition,
    VoiceSynthesis,
    artifact_key,
)
from prime_spark.tasks.protocol import TaskType

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Handlers:
    """The agent's engines behind the types of tasks."""

    def __init__(
        self,
        *,
        storage: NASStorage,
        calls: BoundedCalls,
        artifact_bytes: int,
        synthesizer: Synthesizer,
        recognizer: Recognizer,
        fetcher: AudioFetcher,
        max_audio_bytes: int,
        router: LLMRouter | None,
    ) -> None:
        self._storage = storage
        self._calls = calls
        self._artifact_bytes = artifact_bytes
        self._unpruned = artifact_bytes  # unknown at first
        self._synthesizer = synthesizer
        self._recognizer = recognizer
        self._fetcher = fetcher
        self._max_audio_bytes = max_audio_bytes
        self._router = router

    def by_type(self) -> dict[TaskType, Handler]:
        """Return the handlers of the types that this agent can do."""
        handlers: dict[TaskType, Handler] = {
            "voice_synthesis": self.speak,
            "voice_recognition": self.listen,
        }
        if self._router is not None:
            handlers["llm"] = self.generate
        return handlers

    async def speak(self, task_id: str, payload: VoiceSynthesis) -> dict[str, Any]:
        """Speak a text; the WAV file lands on the NAS, named by the task."""
        await self._nas(self._storage.check)  # before the work, not after it
        data = await self._synthesizer.speak(payload)
        with wave.open(io.BytesIO(data)) as file:
            rate, frames = file.getframerate(), file.getnframes()
        key = artifact_key(task_id)
        await self._nas(lambda: self._storage.store(key, data))
        await self._prune(len(data))
        return {
            "artifact": key,
            "content_type": "audio/wav",
            "bytes": len(data),
            "seconds": round(frames / rate, 3),
            "sample_rate": rate,
            "engine": self._synthesizer.engine(payload),
        }

    async def listen(self, task_id: str, payload: VoiceRecognition) -> dict[str, Any]:  # noqa: ARG002
        """Recognize what is said in a WAV file of the NAS or of a URL."""
        heard = await self._recognizer.listen(payload, await self._audio(payload))
        return {
            "text": heard.text,
            "words": heard.text.split(),
            "seconds": heard.seconds,
            "engine": self._recognizer.engine(payload),
        }

    async def generate(self, task_id: str, payload: GenerateRequest) -> Any:  # noqa: ARG002
        """Have a language model answer."""
        if self._router is None:
            raise TaskFailedError("this agent has no language model", unable=True)
        try:
            result = await self._router.generate(payload)
        except LLMRejectedError as error:
            raise TaskFailedError(str(error), retryable=False) from error
        except LLMError as error:
            raise TaskFailedError(str(error)) from error
        return msgspec.to_builtins(result)

    async def _prune(self, written: int) -> None:
        """Let the oldest of what was spoken go, not each time: looking at all of it takes long."""
        self._unpruned += written
        if self._unpruned < self._artifact_bytes // 16:
            return
        self._unpruned = 0
        try:
            limit = self._artifact_bytes
            removed = await self._calls.run(lambda: self._storage.prune(SPOKEN, limit, SPOKEN_FILE))
            if removed:
                _log.info("oldest spoken files removed", files=removed, limit_bytes=limit)
        except (NASError, TimeoutError) as error:  # the task is done anyway
            _log.warning("spoken files not pruned", error=str(error))

    async def _audio(self, payload: VoiceRecognition) -> bytes:
        if payload.audio_url is not None:
            return await self._fetcher.fetch(payload.audio_url)
        key = payload.audio_key or ""
        limit = self._max_audio_bytes
        value = await self._nas(lambda: self._storage.retrieve(key, max_bytes=limit))
        if not isinstance(value, bytes):
            raise TaskFailedError(f"audio_key: {key} is not a file", retryable=False)
        return value

    async def _nas(self, call: Callable[[], T]) -> T:
        try:
            return await self._calls.run(call)
        except (NASKeyError, NASNotFoundError, NASTooLargeError) as error:
            raise TaskFailedError(str(error), retryable=False) from error
        except (NASError, TimeoutError) as error:
            raise TaskFailedError(f"NAS: {error}") from error
