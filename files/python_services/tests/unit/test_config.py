from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_spark.config import (
    ConfigError,
    check_credentials,
    credentials_of,
    decode_config,
    load_config,
    read_credential,
    service_main,
)
from prime_spark.ingest.settings import IngestConfig
from prime_spark.kafka_admin.cli import KafkaAdminConfig
from prime_spark.runtime.asgi import WebConfig
from prime_spark.telemetry.settings import TelemetryConfig

KAFKA = {"bootstrap_servers": ["10.90.8.2:9092"], "username": "t", "credential": "kafka"}
TELEMETRY: dict[str, Any] = {
    "device_id": "control-pc-1",
    "interval_seconds": 30,
    "kafka": KAFKA,
    "buffer": {"path": "/var/lib/x"},
    "http": {"host": "10.90.8.2", "port": 9101},
}
INGEST: dict[str, Any] = {
    "kafka": KAFKA,
    "group_id": "g",
    "database": {"host": "h", "name": "d", "username": "u", "credential": "db"},
    "http": {"host": "127.0.0.1", "port": 9102},
}


def changed(config: dict[str, Any], path: str, value: object) -> bytes:
    config = json.loads(json.dumps(config))
    *parents, last = path.split(".")
    block = config
    for name in parents:
        block = block[name]
    block[last] = value
    return json.dumps(config).encode()


def test_defaults() -> None:
    telemetry = decode_config(json.dumps(TELEMETRY), TelemetryConfig)
    assert telemetry.topic == "edge.telemetry"
    assert telemetry.redis is None
    ingest = decode_config(json.dumps(INGEST), IngestConfig)
    assert set(ingest.topics.event_types()) == {
        "edge.telemetry",
        "edge.ai.inference",
        "analytics.events",
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("devise_id", "x", "unknown field `devise_id` (did you mean `device_id`?)"),
        ("kafka.bootstrap_server", [], "did you mean `bootstrap_servers`?"),
        ("kafka.password", "x", "unknown field `password` - at `$.kafka`"),
        ("kafka.bootstrap_servers", [], "length >= 1 - at `$.kafka.bootstrap_servers`"),
        ("kafka.bootstrap_servers", ["nohost"], "$.kafka.bootstrap_servers[0]"),
        ("kafka.security_protocol", "PLAINTEXT", "$.kafka.security_protocol"),
        ("kafka.credential", "../../etc/shadow", "$.kafka.credential"),
        ("interval_seconds", 0, "$.interval_seconds"),
        ("interval_seconds", "30", "$.interval_seconds"),
        ("device_id", "a b", "$.device_id"),
        ("buffer.max_bytes", 10, "$.buffer.max_bytes"),
        ("http.host", "0.0.0.0", "host must be the VPN address or loopback"),
        ("http.port", 70000, "$.http.port"),
        ("http.metrics_readers", ["prometheus"], "'prometheus' does not appear to be an IPv4"),
        ("log_level", "verbose", "$.log_level"),
    ],
)
def test_mistakes_are_named(path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_config(changed(TELEMETRY, path, value), TelemetryConfig, "/etc/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("/etc/config.json: ")


def test_missing_and_broken() -> None:
    with pytest.raises(ConfigError, match="missing required field `kafka`"):
        decode_config(b'{"device_id":"a","interval_seconds":1}', TelemetryConfig)
    for text in (b"", b"{", b"\xff", b"[]"):
        with pytest.raises(ConfigError):
            decode_config(text, TelemetryConfig)
    with pytest.raises(ConfigError, match="dead_letter_topic"):
        decode_config(changed(INGEST, "dead_letter_topic", "edge.telemetry"), IngestConfig)
    with pytest.raises(ConfigError, match="different names"):
        decode_config(changed(INGEST, "topics", {"telemetry": "analytics.events"}), IngestConfig)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "absent.json", WebConfig)


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match="CREDENTIALS_DIRECTORY is not set"):
        read_credential("kafka")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot read"):
        read_credential("kafka")
    (tmp_path / "kafka").write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_credential("kafka")
    (tmp_path / "kafka").write_text(" p w \r\n")
    assert read_credential("kafka") == " p w "
    config = decode_config(json.dumps(INGEST), IngestConfig)
    assert credentials_of(config) == {"kafka", "db"}
    with pytest.raises(ConfigError, match="'db'"):
        check_credentials(config)
    admin = {**KAFKA, "topics": {}, "acls": [], "users": {"a": {"credential": "user_a"}}}
    found = credentials_of(decode_config(json.dumps(admin), KafkaAdminConfig))
    assert found == {"kafka", "user_a"}


def test_check_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = tmp_path / "config.json"

    def check() -> object:
        arguments = ["--config", str(path), "--check-config"]
        with pytest.raises(SystemExit) as caught:
            service_main("prog", "text", TelemetryConfig, lambda _: 99, arguments)
        return caught.value.code

    path.write_text(json.dumps(TELEMETRY))
    assert check() == 0
    assert capsys.readouterr().out == f"{path}: ok\n"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert check() == 2
    assert "credential 'kafka'" in capsys.readouterr().err
    (tmp_path / "kafka").write_text("x")
    assert check() == 0
    path.write_text("{}")
    assert check() == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_runs_with_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = tmp_path / "config.json"
    path.write_text('{"http":{"host":"127.0.0.1","port":8000}}')
    ports: list[int] = []

    def run(config: WebConfig) -> int:
        ports.append(config.http.port)
        return 7

    assert service_main("prog", "text", WebConfig, run, ["--config", str(path)]) == 7
    assert ports == [8000]
