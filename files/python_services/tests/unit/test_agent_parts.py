"""The agent's parts that need no server: payloads, audio, credentials, the kept answers."""

from __future__ import annotations

import asyncio
import contextlib
import io
import math
import os
import struct
import time
import wave
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_spark.agent.audio import AudioError, read_wav, with_room_noise
from prime_spark.agent.auth import Callers
from prime_spark.agent.errors import TaskFailedError
from prime_spark.agent.executor import PrioritySemaphore
from prime_spark.agent.fetch import AudioFetcher
from prime_spark.agent.handlers import Handlers
from prime_spark.agent.process import run_program
from prime_spark.agent.recognition import Recognizer
from prime_spark.agent.settings import (
    AudioConfig,
    CallerConfig,
    RecognitionConfig,
    SynthesisConfig,
)
from prime_spark.agent.store import AnswerStore, Kept
from prime_spark.agent.synthesis import Synthesizer
from prime_spark.memory.nas import SENTINEL, NASStorage, NASTooLargeError
from prime_spark.runtime.threads import BoundedCalls
from prime_spark.tasks.payloads import (
    SPOKEN,
    PayloadError,
    VoiceSynthesis,
    artifact_key,
    check_payload,
)
from prime_spark.tasks.protocol import TaskType


@pytest.mark.parametrize(
    ("task_type", "payload", "message"),
    [
        ("voice_synthesis", {}, "text"),
        ("voice_synthesis", {"text": ""}, "payload.text"),
        ("voice_synthesis", {"text": " \n"}, "blank"),
        ("voice_synthesis", {"text": "a\x00b"}, "control character"),
        ("voice_synthesis", {"text": "a\x1bb"}, "control character"),
        ("voice_synthesis", {"text": "x" * 5001}, "payload.text"),
        ("voice_synthesis", {"text": "x", "voice": "-w/etc/passwd"}, "payload.voice"),
        ("voice_synthesis", {"text": "x", "voice": "../../x"}, "payload.voice"),
        ("voice_synthesis", {"text": "x", "speed": 10_000}, "payload.speed"),
        ("voice_synthesis", {"text": "x", "engine": "sh"}, "payload.engine"),
        ("voice_synthesis", {"text": "x", "volume": 3}, "volume"),
        ("voice_recognition", {}, "either audio_key or audio_url"),
        ("voice_recognition", {"audio_key": "artifacts/a", "audio_url": "https://x"}, "either"),
        ("voice_recognition", {"audio_key": "memory/secret"}, "begin with artifacts/"),
        ("voice_recognition", {"audio_key": "artifacts/a", "words": []}, "payload.words"),
        ("voice_recognition", {"audio_key": "artifacts/a", "words": ["a; b"]}, "payload.words"),
        (
            "voice_recognition",
            {"audio_key": "artifacts/a", "grammar": "#JSGF V1.0; import <etc.passwd>;"},
            "must not import",
        ),
        ("voice_recognition", {"audio_key": "artifacts/a", "words": ["a"], "grammar": "g"}, "both"),
        ("llm", {"prompt": ""}, "payload.prompt"),
        ("llm", {"prompt": "x", "temperature": 9}, "payload.temperature"),
        ("llm", {"prompt": "x", "max_token": 9}, "max_token"),
    ],
)
def test_payloads_that_are_refused(
    task_type: TaskType, payload: dict[str, Any], message: str
) -> None:
    with pytest.raises(PayloadError, match=message) as failure:
        check_payload(task_type, payload)
    assert str(failure.value).startswith(f"{task_type}: ")


def test_a_task_names_its_artifact() -> None:
    assert artifact_key("a.1") == "artifacts/voice/task-a.1.wav"


# -- audio ----------------------------------------------------------------------------------------


def wav(samples: list[int], *, width: int = 2, channels: int = 1, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        if width == 1:
            data = bytes((sample >> 8) + 128 for sample in samples)
        else:
            shift = 8 * (width - 2)
            data = b"".join((s << shift).to_bytes(width, "little", signed=True) for s in samples)
        out.writeframes(data)
    return file.getvalue()


TONE = [int(10_000 * math.sin(n / 5)) & ~0xFF for n in range(1000)]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_gives_the_same_samples(width: int) -> None:
    audio = read_wav(wav(TONE, width=width), 10)
    assert audio.samples == array("h", TONE)
    assert audio.seconds == pytest.approx(1000 / 16000)


def test_channels_are_mixed() -> None:
    both = [value for sample in TONE for value in (sample, 0)]
    assert read_wav(wav(both, channels=2), 10).samples == array("h", [s // 2 for s in TONE])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "breaks off"),
        (b"ID3 no wav at all", "not a PCM WAV file"),
        (wav([]), "no samples"),
        (wav(TONE, rate=100), "sample rate"),
        (wav(TONE * 20), "more than the 1 s"),
        (wav(TONE)[:30], "not a PCM WAV file"),
    ],
)
def test_audio_that_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        read_wav(data, 1)


def test_a_header_that_promises_more_than_there_is() -> None:
    data = bytearray(wav(TONE))
    struct.pack_into("<I", data, 4, 0x7FFFFFFF)
    struct.pack_into("<I", data, 40, 0x7FFFF000)  # as espeak-ng writes to a pipe
    assert read_wav(bytes(data), 10).samples[:1000] == array("h", TONE)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 60))
def test_broken_wav_files_are_refused_or_read(noise: bytes, position: int) -> None:
    data = bytearray(wav(TONE[:50]))
    data[position : position + len(noise)] = noise
    with contextlib.suppress(AudioError):
        assert read_wav(bytes(data), 10).samples


def test_room_noise_is_small_and_always_the_same() -> None:
    audio = read_wav(wav(TONE), 10)
    noisy = with_room_noise(audio)
    assert noisy.samples == with_room_noise(audio).samples
    pause = int(0.3 * 16000)
    assert max(abs(value) for value in noisy.samples[:pause]) <= 60
    differences = [a - b for a, b in zip(noisy.samples[pause:-pause], TONE, strict=True)]
    assert 0 < max(map(abs, differences)) <= 60
    assert with_room_noise(read_wav(wav([32767, -32768] * 50), 10)).samples


# -- credentials ----------------------------------------------------------------------------------


@pytest.fixture
def callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callers:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"secret-{name}\n")
    return Callers({name: CallerConfig(credential=name) for name in ("one", "two")})


@pytest.mark.parametrize(
    ("header", "caller"),
    [
        ("Bearer secret-one", "one"),
        ("bearer secret-two", "two"),
        ("Bearer secret-three", None),
        ("Bearer secret-one\udcff", None),
        ("Bearer ", None),
        ("Bearer", None),
        ("Basic secret-one", None),
        ("secret-one", None),
        ("", None),
        (None, None),
    ],
)
def test_callers_are_known_by_their_token(
    callers: Callers, header: str | None, caller: str | None
) -> None:
    assert callers.identify(header) == caller


def test_every_token_is_compared_in_constant_time(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    callers.identify("Bearer secret-one")  # the first: the second is compared anyway
    callers.identify("Bearer x")
    assert len(compared) == 4
    assert {len(value) for pair in compared for value in pair} == {32}


# -- kept answers ---------------------------------------------------------------------------------


def test_answers_are_kept_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tasks.sqlite"
    store = AnswerStore(path)
    assert store.get("a") is None
    store.put("a", Kept("f", b"1"))
    store.put("a", Kept("f", b"2"))
    store.close()
    assert AnswerStore(path).get("a") == Kept("f", b"2")


def test_the_oldest_answers_are_forgotten(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "tasks", max_tasks=3)
    for number in range(5):
        store.put(str(number), Kept("f", b""))
    assert [str(n) for n in range(5) if store.get(str(n))] == ["2", "3", "4"]
    aging = AnswerStore(tmp_path / "other", keep_seconds=0)
    aging.put("a", Kept("f", b""))
    aging.put("b", Kept("f", b""))
    assert aging.get("a") is None


# -- permits ---------------------------------------------------------------------------------------


def test_urgent_waiters_go_first_and_nobody_is_lost() -> None:
    async def go() -> None:
        permits = PrioritySemaphore(1)
        order: list[str] = []
        free = asyncio.Event()

        async def work(name: str, rank: int) -> None:
            async with permits.take(rank):
                order.append(name)
                await free.wait()

        tasks = {}
        for name, rank in (("first", 2), ("low", 2), ("gone", 0), ("high", 0), ("normal", 1)):
            tasks[name] = asyncio.create_task(work(name, rank))
            await asyncio.sleep(0)
        tasks["gone"].cancel()
        await asyncio.sleep(0)
        free.set()
        await asyncio.wait(tasks.values(), timeout=30)
        assert order == ["first", "high", "normal", "low"]
        async with asyncio.timeout(1), permits.take(2):
            pass

    asyncio.run(go())


# -- programs -------------------------------------------------------------------------------------


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(TaskFailedError, match=r"sh took longer than 0\.3 s"):
        asyncio.run(run_program(["sh", "-c", script], b"", 0.3))
    child = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 30  # a signal is delivered when the process is looked at next
    with contextlib.suppress(OSError):  # it is gone
        while state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(TaskFailedError, match="cannot start /nowhere/espeak"):
        asyncio.run(run_program(["/nowhere/espeak"], b"", 1))


def test_a_program_gets_no_secrets_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    done = asyncio.run(run_program(["env"], b"", 5))
    assert b"CREDENTIALS" not in done.output


# -- the NAS --------------------------------------------------------------------------------------


def test_objects_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    (tmp_path / SENTINEL).touch()
    storage = NASStorage(tmp_path)
    storage.store("a", b"12345")
    assert storage.retrieve("a", max_bytes=5) == b"12345"
    with pytest.raises(NASTooLargeError, match="more than 4 bytes"):
        storage.retrieve("a", max_bytes=4)


# -- files ----------------------------------------------------------------------------------------


def test_what_was_spoken_takes_no_more_than_it_may(tmp_path: Path) -> None:
    (tmp_path / SENTINEL).touch()
    storage = NASStorage(tmp_path)
    spoken = io.BytesIO()
    with wave.open(spoken, "wb") as file:
        file.setparams((1, 2, 22050, 0, "NONE", ""))
        file.writeframes(b"\0" * 1000)
    size = len(spoken.getvalue())
    # Not the agent's own, and the oldest.
    others = ["greeting.wav", "task-list.txt", "task-one two.wav"]
    (tmp_path / SPOKEN).mkdir(parents=True)
    for name in others:
        (tmp_path / SPOKEN / name).write_bytes(bytes(9 * size))
        os.utime(tmp_path / SPOKEN / name, (0, 0))

    class Engine(Synthesizer):
        async def speak(self, payload: VoiceSynthesis) -> bytes:
            return spoken.getvalue()

    async def main() -> None:
        speak = Handlers(
            storage=storage,
            calls=BoundedCalls("nas", 4, 60),
            artifact_bytes=3 * size,
            synthesizer=Engine(SynthesisConfig()),
            recognizer=Recognizer(RecognitionConfig()),
            fetcher=AudioFetcher(AudioConfig()),
            max_audio_bytes=1,
            router=None,
        ).speak
        for number in range(6):
            await speak(f"task{number}", VoiceSynthesis(text="hello"))
            # As far apart as they are meant to be, whatever the clock of the file system shows.
            os.utime(tmp_path / artifact_key(f"task{number}"), (number, number))

    asyncio.run(main())
    left = [artifact_key(f"task{number}") for number in (3, 4, 5)]
    assert storage.keys() == sorted([*left, *(f"{SPOKEN}/{name}" for name in others)])
