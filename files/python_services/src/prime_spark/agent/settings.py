"""Configuration of the Spark agent."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

import msgspec

from prime_spark.config import (
    Config,
    CredentialName,
    HttpConfig,
    KafkaConfig,
    LogLevel,
    NonEmpty,
    Positive,
    PositiveSeconds,
    RedisConfig,
)
from prime_spark.events import Name
from prime_spark.kafka.publisher import PublisherConfig
from prime_spark.llm.settings import LLMConfig
from prime_spark.tasks.payloads import RecognitionEngine, SynthesisEngine

_HOST_PATTERN = re.compile(r"(\*|(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:\d{1,5})?")


class CallerConfig(Config, frozen=True):
    """Who may hand out tasks: whoever sends this credential as bearer token."""

    credential: CredentialName


class NasConfig(Config, frozen=True):
    """Where the share is mounted, and how long and how often its answer is waited for.

    What was spoken takes about `artifact_bytes` there, of all agents together: the oldest files go.
    """

    directory: NonEmpty = "/mnt/nas"
    timeout_seconds: PositiveSeconds = 20.0
    max_calls: Positive = 4
    artifact_bytes: Positive = 4 * 1024 * 1024 * 1024


class LimitsConfig(Config, frozen=True):
    """How much is done at a time, and how long.

    `capacity` tasks run, `queue` more wait for it. `drain_seconds` is what running tasks have
    left when the agent is told to stop; keep it below 10, after which requests are cut off.
    """

    capacity: Positive = 2
    queue: Annotated[int, msgspec.Meta(ge=0)] = 4
    task_seconds: PositiveSeconds = 600.0
    max_request_bytes: Positive = 256 * 1024
    drain_seconds: Annotated[float, msgspec.Meta(ge=0, le=9)] = 8.0


class PiperConfig(Config, frozen=True):
    """The piper program and the voice model it speaks with."""

    model: NonEmpty
    executable: NonEmpty = "piper"


class SynthesisConfig(Config, frozen=True):
    """Which engine speaks when a task names none; `seconds` is what it may take."""

    engine: SynthesisEngine = "espeak-ng"
    seconds: PositiveSeconds = 60.0
    espeak_executable: NonEmpty = "espeak-ng"
    piper: PiperConfig | None = None


class RecognitionConfig(Config, frozen=True):
    """Which engine listens when a task names none; `seconds` is what it may take.

    `vosk_model` and `whisper_model` are directories of models, for the engines of these names.
    """

    engine: RecognitionEngine = "pocketsphinx"
    seconds: PositiveSeconds = 120.0
    max_audio_seconds: PositiveSeconds = 120.0
    vosk_model: NonEmpty | None = None
    whisper_model: NonEmpty | None = None


class AudioConfig(Config, frozen=True):
    """Where audio may be fetched from, and how large it may be.

    `hosts`: names, `*.name` for all below a name, `*` for every public host; each with `:port`
    unless the scheme's own is meant. None are allowed by default. An address that is not public
    is refused also under an allowed name, unless it lies in one of `private_networks`.
    """

    schemes: list[Literal["http", "https"]] = msgspec.field(default_factory=lambda: ["https"])
    hosts: list[str] = msgspec.field(default_factory=list)
    private_networks: list[str] = msgspec.field(default_factory=list)
    max_bytes: Positive = 16 * 1024 * 1024
    timeout_seconds: PositiveSeconds = 30.0
    max_redirects: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3

    def __post_init__(self) -> None:
        for pattern in self.hosts:
            if not _HOST_PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"hosts: {pattern!r} is not a host name in lower case, *.name or *, with or "
                    "without :port"
                )
        for text in self.private_networks:
            try:
                network = ipaddress.ip_network(text)
            except ValueError as error:
                raise ValueError(f"private_networks: {error}") from None
            if network[0].is_global or network[-1].is_global:
                raise ValueError(f"private_networks: {text} is not a private network")
            if network[0].is_link_local or network[0].is_multicast or network[0].is_unspecified:
                raise ValueError(f"private_networks: {text} can never be allowed")


class HeartbeatConfig(Config, frozen=True):
    """How often the agent sends a heartbeat, and how long that one is believed."""

    interval_seconds: PositiveSeconds = 5.0
    ttl_seconds: PositiveSeconds = 15.0


class AgentConfig(Config, frozen=True):
    """Configuration of prime-spark-agent."""

    name: Name
    http: HttpConfig
    callers: Annotated[dict[str, CallerConfig], msgspec.Meta(min_length=1)]
    state: NonEmpty = "/var/lib/prime-spark-agent/tasks.sqlite"
    redis: RedisConfig | None = None
    kafka: KafkaConfig | None = None
    publisher: PublisherConfig = PublisherConfig()
    heartbeat: HeartbeatConfig = HeartbeatConfig()
    nas: NasConfig = NasConfig()
    limits: LimitsConfig = LimitsConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    recognition: RecognitionConfig = RecognitionConfig()
    audio: AudioConfig = msgspec.field(default_factory=AudioConfig)
    llm: LLMConfig | None = None
    log_level: LogLevel = "info"
