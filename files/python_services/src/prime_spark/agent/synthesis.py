"""Text to speech: espeak-ng, or piper where it is installed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.process import run_program
from prime_spark.agent.settings import PiperConfig, SynthesisConfig
from prime_spark.tasks.payloads import SynthesisEngine, VoiceSynthesis


class Synthesizer:
    """Speaks a text with the engine that the task or the configuration names."""

    def __init__(self, config: SynthesisConfig) -> None:
        self._config = config

    def missing(self, engine: SynthesisEngine | None = None) -> str:
        """Return what `engine` lacks and how to get it; empty when it is ready."""
        engine = engine or self._config.engine
        if engine == "espeak-ng":
            executable = self._config.espeak_executable
            hint = "install the package espeak-ng"
        elif self._config.piper is None:
            return "the engine piper is not set up: give synthesis.piper its model"
        else:
            executable = self._config.piper.executable
            hint = "install the program piper"
            if not Path(self._config.piper.model).is_file():
                return f"the engine piper is not ready: no model {self._config.piper.model}"
        if shutil.which(executable) is None:
            return f"the engine {engine} is not installed ({executable} not found): {hint}"
        return ""

    def engine(self, payload: VoiceSynthesis) -> SynthesisEngine:
        """Return the engine that speaks `payload`."""
        return payload.engine or self._config.engine

    async def speak(self, payload: VoiceSynthesis) -> bytes:
        """Return the text as a WAV file; raises TaskFailedError.

        The text goes through standard input: there is no shell, and no option it could be.
        """
        engine = self.engine(payload)
        if missing := self.missing(engine):
            raise TaskFailedError(missing, unable=True)
        with tempfile.TemporaryDirectory(prefix="prime-spark-voice-") as folder:
            # Into a file: what espeak-ng writes to a pipe has no lengths in its header.
            target = Path(folder) / "speech.wav"
            if engine == "piper" and self._config.piper is not None:
                argv = _piper(self._config.piper, payload, target)
            else:
                argv = _espeak(self._config.espeak_executable, payload, target)
            text = payload.text.encode()
            done = await run_program(argv, text, self._config.seconds)
            if done.status != 0 or not target.is_file():
                raise TaskFailedError(
                    f"{engine} failed with {done.status}: {done.errors}", retryable=done.status < 0
                )
            return target.read_bytes()


def _espeak(executable: str, payload: VoiceSynthesis, target: Path) -> list[str]:
    options = ["-v", payload.voice, "-s", str(payload.speed), "-p", str(payload.pitch)]
    return [executable, *options, "-b", "1", "-w", str(target), "--stdin"]


def _piper(config: PiperConfig, payload: VoiceSynthesis, target: Path) -> list[str]:
    # Piper knows no words per minute; at its scale of 1 it speaks about 160.
    scale = f"{160 / payload.speed:.2f}"
    options = ["--model", config.model, "--length_scale", scale]
    return [config.executable, *options, "--output_file", str(target)]
