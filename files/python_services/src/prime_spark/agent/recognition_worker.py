"""The process that recognizes speech: a Job and a WAV file in, a Heard out.

It handles audio that strangers made, so it holds no secret and no connection; the agent kills it
when it takes too long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec

from prime_spark.agent.audio import Audio, AudioError, read_wav, with_room_noise
from prime_spark.agent.recognition import Heard, Job

_SPHINX_RATE = 16_000  # the lowest that its acoustic model can be used with


class JobError(ValueError):
    """The job cannot be done as it was given."""


def _pocketsphinx(job: Job, audio: Audio) -> str:
    from pocketsphinx import Decoder  # noqa: PLC0415 (optional, and slow to import)

    if audio.rate < _SPHINX_RATE:
        raise JobError(f"pocketsphinx needs at least {_SPHINX_RATE} samples/s, not {audio.rate}")
    grammar = job.grammar
    options: dict[str, Any] = {"samprate": audio.rate, "loglevel": "FATAL"}
    if job.words or grammar:
        options["lm"] = None
    decoder = Decoder(**options)
    if job.words:
        unknown = [word for word in job.words if decoder.lookup_word(word) is None]
        if unknown:
            raise JobError(f"words that are not in the dictionary: {', '.join(unknown)}")
        grammar = _grammar(job.words)
    if grammar is not None:
        try:
            decoder.add_jsgf_string("task", grammar)
            decoder.activate_search("task")
        except (RuntimeError, ValueError) as error:
            raise JobError(f"grammar: not usable as JSGF, or with unknown words: {error}") from None
    heard = with_room_noise(audio)
    decoder.start_utt()
    decoder.process_raw(heard.samples.tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def _grammar(words: list[str]) -> str:
    """Return a JSGF grammar of these words, any number of them in any order."""
    return f"#JSGF V1.0;\ngrammar task;\npublic <words> = ( {' | '.join(words)} )+;\n"


def _vosk(job: Job, audio: Audio) -> str:
    import vosk  # noqa: PLC0415

    vosk.SetLogLevel(-1)
    arguments = [msgspec.json.encode([*job.words, "[unk]"]).decode()] if job.words else []
    recognizer = vosk.KaldiRecognizer(vosk.Model(job.model), audio.rate, *arguments)
    recognizer.AcceptWaveform(audio.samples.tobytes())
    return str(msgspec.json.decode(recognizer.FinalResult())["text"])


def _faster_whisper(job: Job, audio: Audio) -> str:
    import io  # noqa: PLC0415
    import wave  # noqa: PLC0415

    from faster_whisper import WhisperModel  # noqa: PLC0415

    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(audio.rate)
        out.writeframes(audio.samples.tobytes())
    file.seek(0)
    model = WhisperModel(job.model, device="cpu", compute_type="int8", local_files_only=True)
    hint = " ".join(job.words) if job.words else None
    segments, _ = model.transcribe(file, language="en", initial_prompt=hint)
    return " ".join(segment.text.strip() for segment in segments)


_ENGINES: dict[str, Callable[[Job, Audio], str]] = {
    "pocketsphinx": _pocketsphinx,
    "vosk": _vosk,
    "faster-whisper": _faster_whisper,
}


def main() -> int:
    """Do the job on standard input."""
    head, _, data = sys.stdin.buffer.read().partition(b"\n")
    job = msgspec.json.decode(head, type=Job)
    try:
        audio = read_wav(data, job.max_audio_seconds)
        heard = Heard(text=_ENGINES[job.engine](job, audio), seconds=round(audio.seconds, 3))
    except (AudioError, JobError) as error:
        heard = Heard(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(heard))
    return 0


if __name__ == "__main__":
    sys.exit(main())
