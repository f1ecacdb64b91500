"""WAV files as the recognizers want them: one channel of 16-bit samples."""

from __future__ import annotations

import io
import random
import sys
import wave
from array import array
from dataclasses import dataclass

# Speech that was synthesized or cleaned contains digital silence, which acoustic models have never
# heard: espeak-ng's words are found far more often with a noise of this size under them.
_NOISE = 60
_PAUSE_SECONDS = 0.3


class AudioError(ValueError):
    """The bytes are not audio that can be used; the message says why."""


@dataclass(frozen=True)
class Audio:
    """Mono audio; samples are between -32768 and 32767."""

    rate: int
    samples: array[int]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


def read_wav(data: bytes, max_seconds: float) -> Audio:
    """Return the audio of a PCM WAV file of any width and number of channels."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if not 8000 <= rate <= 192_000:
                raise AudioError(f"the sample rate {rate} is not between 8000 and 192000 Hz")
            # Not what the header says: it may promise more than there is.
            frames = min(file.getnframes(), len(data) // (channels * width))
            if frames > max_seconds * rate:
                raise AudioError(
                    f"{frames / rate:.0f} s of audio are more than the {max_seconds:g} s allowed"
                )
            raw = file.readframes(frames)
    except (wave.Error, EOFError, RuntimeError, ZeroDivisionError) as error:
        raise AudioError(f"not a PCM WAV file: {str(error) or 'it breaks off'}") from None
    samples = _mono(
        _sixteen_bits(raw[: len(raw) // (channels * width) * channels * width], width), channels
    )
    if not samples:
        raise AudioError("the WAV file has no samples")
    return Audio(rate, samples)


def with_room_noise(audio: Audio) -> Audio:
    """Return `audio` between two short pauses, over a little noise; the same each time."""
    pause = array("h", bytes(2 * int(audio.rate * _PAUSE_SECONDS)))
    samples = pause + audio.samples + pause
    noise = random.Random(0)  # noqa: S311 (no secret)
    levels = [noise.randint(-_NOISE, _NOISE) for _ in range(8191)]
    noisy = (
        max(-32768, min(32767, value + levels[index % 8191])) for index, value in enumerate(samples)
    )
    return Audio(audio.rate, array("h", noisy))


def _sixteen_bits(raw: bytes, width: int) -> array[int]:
    """Return little-endian PCM samples of `width` bytes as 16-bit ones."""
    if width == 1:
        return array("h", ((value - 128) << 8 for value in raw))
    if width not in {2, 3, 4}:
        raise AudioError(f"samples of {width} bytes are not supported")
    if width > 2:  # the two most significant bytes
        high = bytearray(len(raw) // width * 2)
        high[0::2], high[1::2] = raw[width - 2 :: width], raw[width - 1 :: width]
        raw = bytes(high)
    samples = array("h", raw)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _mono(samples: array[int], channels: int) -> array[int]:
    if channels == 1:
        return samples
    parts = [samples[channel::channels] for channel in range(channels)]
    return array("h", (sum(values) // channels for values in zip(*parts, strict=True)))
