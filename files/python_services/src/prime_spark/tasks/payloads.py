"""What the payload of each type of task looks like; the API checks early, the agent again."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

import msgspec

from prime_spark.llm.types import GenerateRequest
from prime_spark.tasks.protocol import TASK_ID, TaskType

SynthesisEngine = Literal["espeak-ng", "piper"]
RecognitionEngine = Literal["pocketsphinx", "vosk", "faster-whisper"]
ARTIFACTS = "artifacts/"
# Spoken texts: others may put their own files into the folder.
SPOKEN = f"{ARTIFACTS}voice"
SPOKEN_FILE = re.compile(rf"task-{TASK_ID}\.wav")

_LINE_BREAKS = {"\n", "\t"}
# A JSGF grammar may import others: files of the agent's host.
_JSGF_IMPORT = re.compile(r"\bimport\b", re.IGNORECASE)


class PayloadError(ValueError):
    """The payload does not fit the type of the task; the message names the field."""


class Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the payloads: an unknown field is an error."""


class VoiceSynthesis(Payload, frozen=True):
    """Speak `text`. `speed` is in words per minute, `engine` None is the agent's default."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=5000)]
    voice: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9+_-]{0,31}\Z")] = "en-us"
    speed: Annotated[int, msgspec.Meta(ge=80, le=450)] = 130
    pitch: Annotated[int, msgspec.Meta(ge=0, le=99)] = 50
    engine: SynthesisEngine | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("text is blank")
        for character in self.text:
            if unicodedata.category(character) == "Cc" and character not in _LINE_BREAKS:
                raise ValueError(f"text contains the control character {character!r}")


class VoiceRecognition(Payload, frozen=True):
    """Find what is said in a WAV file: the object `audio_key` of the NAS, or at `audio_url`.

    `words` (any number of them, in any order) or a JSGF `grammar` say what can be said; without
    either the engine's general language model does.
    """

    audio_key: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    audio_url: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)] | None = None
    words: (
        Annotated[
            list[Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z'-]{0,31}\Z")]],
            msgspec.Meta(min_length=1, max_length=500),
        ]
        | None
    ) = None
    grammar: Annotated[str, msgspec.Meta(min_length=1, max_length=20_000)] | None = None
    engine: RecognitionEngine | None = None

    def __post_init__(self) -> None:
        if (self.audio_key is None) == (self.audio_url is None):
            raise ValueError("give either audio_key or audio_url")
        if self.audio_key is not None and not self.audio_key.startswith(ARTIFACTS):
            raise ValueError(f"audio_key must begin with {ARTIFACTS}")
        if self.words is not None and self.grammar is not None:
            raise ValueError("give words or grammar, not both")
        if self.grammar is not None and _JSGF_IMPORT.search(self.grammar):
            raise ValueError("grammar must not import others")


AnyPayload = VoiceSynthesis | VoiceRecognition | GenerateRequest
PAYLOADS: dict[TaskType, type[AnyPayload]] = {
    "voice_synthesis": VoiceSynthesis,
    "voice_recognition": VoiceRecognition,
    "llm": GenerateRequest,
}


def check_payload(task_type: TaskType, payload: dict[str, Any]) -> AnyPayload:
    """Return `payload` as what `task_type` needs; raise PayloadError."""
    try:
        return msgspec.convert(payload, PAYLOADS[task_type])
    except msgspec.ValidationError as error:
        message = str(error).replace("`$.", "`payload.").replace("`$`", "`payload`")
        raise PayloadError(f"{task_type}: {message}") from None


def artifact_key(task_id: str) -> str:
    """Return the key of a spoken text on the NAS: the same task writes the same object."""
    return f"{SPOKEN}/task-{task_id}.wav"
