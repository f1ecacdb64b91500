"""Speech to text, in a process of its own that is killed when it takes too long."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import msgspec

from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.process import run_program
from prime_spark.agent.settings import RecognitionConfig
from prime_spark.tasks.payloads import RecognitionEngine, VoiceRecognition

_MODULES = {"pocketsphinx": "pocketsphinx", "vosk": "vosk", "faster-whisper": "faster_whisper"}


class Job(msgspec.Struct, frozen=True):
    """What the process is told, on one line of JSON before the audio."""

    engine: RecognitionEngine
    max_audio_seconds: float
    words: list[str] | None = None
    grammar: str | None = None
    model: str | None = None


class Heard(msgspec.Struct, frozen=True):
    """What the process answers; `error` when there is nothing to hear in what it was given."""

    text: str = ""
    seconds: float = 0.0
    error: str = ""


class Recognizer:
    """Recognizes speech with the engine that the task or the configuration names."""

    def __init__(self, config: RecognitionConfig) -> None:
        self._config = config

    def missing(self, engine: RecognitionEngine | None = None) -> str:
        """Return what `engine` lacks and how to get it; empty when it is ready."""
        engine = engine or self._config.engine
        module = _MODULES[engine]
        if importlib.util.find_spec(module) is None:
            return (
                f"the engine {engine} is not installed: its Python package {module!r} is missing "
                f"in {sys.prefix}"
            )
        if engine == "pocketsphinx":
            return ""
        model = self._model(engine)
        if model is None:
            return f"the engine {engine} has no model: give recognition its directory"
        return "" if Path(model).is_dir() else f"the engine {engine} has no model in {model}"

    def engine(self, payload: VoiceRecognition) -> RecognitionEngine:
        """Return the engine that listens to `payload`."""
        return payload.engine or self._config.engine

    async def listen(self, payload: VoiceRecognition, audio: bytes) -> Heard:
        """Return what is said in a WAV file; raises TaskFailedError."""
        engine = self.engine(payload)
        if missing := self.missing(engine):
            raise TaskFailedError(missing, unable=True)
        if payload.grammar is not None and engine != "pocketsphinx":
            raise TaskFailedError(f"the engine {engine} takes no grammar", retryable=False)
        job = Job(
            engine=engine,
            max_audio_seconds=self._config.max_audio_seconds,
            words=payload.words,
            grammar=payload.grammar,
            model=self._model(engine),
        )
        argv = [sys.executable, "-I", "-m", "prime_spark.agent.recognition_worker"]
        data = msgspec.json.encode(job) + b"\n" + audio
        done = await run_program(argv, data, self._config.seconds)
        if done.status != 0:
            raise TaskFailedError(f"{engine} ended with {done.status}: {done.errors}")
        heard = msgspec.json.decode(done.output, type=Heard)
        if heard.error:
            raise TaskFailedError(heard.error, retryable=False)
        return heard

    def _model(self, engine: RecognitionEngine) -> str | None:
        models = {"vosk": self._config.vosk_model, "faster-whisper": self._config.whisper_model}
        return models.get(engine)
