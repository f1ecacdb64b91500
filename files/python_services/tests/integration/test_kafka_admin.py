"""prime-spark-kafka-admin against a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.servers import KafkaServer

from prime_spark.kafka_admin import scram
from support import kafka_admin

TOPICS: dict[str, Any] = {
    "one": {"partitions": 2, "configs": {"retention.ms": "3600000", "cleanup.policy": "delete"}},
    "two": {"partitions": 1},
}
ACLS: list[dict[str, Any]] = [
    {"principal": "User:reader", "resource_type": "TOPIC", "name": "one", "operations": ["READ"]},
    {
        "principal": "User:reader",
        "resource_type": "GROUP",
        "name": "group-",
        "pattern": "PREFIXED",
        "operations": ["READ", "DESCRIBE"],
    },
]
USERS = {"reader": "first password", "writer": "pa=ss,word%with odd characters"}


@pytest.fixture(scope="module", autouse=True)
def clean(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    yield
    kafka_admin(kafka, tmp_path_factory.mktemp("clean"), purge_topics=True).answer("apply")


def can_log_in(server: KafkaServer, name: str, password: str) -> bool:
    return scram.can_log_in(server.bootstrap_servers, name, password, "SCRAM-SHA-512", 10)


def test_applies_once_then_finds_nothing_to_do(kafka: KafkaServer, tmp_path: Path) -> None:
    admin = kafka_admin(kafka, tmp_path, topics=TOPICS, users=USERS, acls=ACLS, purge_topics=True)

    predicted = admin.answer("apply", "--check")
    assert predicted["changed"]
    first = admin.answer("apply")
    assert first == predicted, "check mode has to predict what a run does"
    assert "create topic one with 2 partitions" in first["changes"]
    assert "create user reader" in first["changes"]
    assert "allow User:reader READ on GROUP prefixed group-" in first["changes"]
    assert not any("password" in change for change in first["changes"])
    assert can_log_in(kafka, "reader", USERS["reader"])
    assert can_log_in(kafka, "writer", USERS["writer"])

    assert admin.answer("apply") == {"changed": False, "changes": []}
    assert admin.answer("apply", "--check") == {"changed": False, "changes": []}


def test_changed_password_is_found_and_replaced(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka_admin(kafka, tmp_path, topics=TOPICS, users=USERS, acls=ACLS).answer("apply")
    users = {**USERS, "reader": "second password"}
    admin = kafka_admin(kafka, tmp_path, topics=TOPICS, users=users, acls=ACLS)

    expected = {"changed": True, "changes": ["change the password of user reader"]}
    assert admin.answer("apply", "--check") == expected
    assert can_log_in(kafka, "reader", "first password"), "check mode changed something"
    assert admin.answer("apply") == expected
    assert can_log_in(kafka, "reader", "second password")
    assert not can_log_in(kafka, "reader", "first password")


def test_what_is_not_listed_goes(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka_admin(kafka, tmp_path, topics=TOPICS, users=USERS, acls=ACLS).answer("apply")
    fewer = {"one": {"partitions": 3, "configs": {"retention.ms": "7200000"}}}
    options: dict[str, Any] = {"users": {"reader": USERS["reader"]}, "acls": ACLS[1:]}

    kept = kafka_admin(kafka, tmp_path, topics=fewer, **options).answer("apply")
    assert kept["changes"] == [
        "grow topic one from 2 to 3 partitions",
        "configure topic one: retention.ms=7200000",
        "reset configuration of topic one: cleanup.policy",
        "disable user writer",
        "take away User:reader READ on TOPIC one",
    ]
    assert not can_log_in(kafka, "writer", USERS["writer"])

    purging = kafka_admin(kafka, tmp_path, topics=fewer, purge_topics=True, **options)
    assert purging.answer("apply")["changes"] == ["delete topic two"]
    assert purging.answer("apply")["changes"] == []


def test_disabled_user_comes_back(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka_admin(kafka, tmp_path, users=USERS).answer("apply")
    none = kafka_admin(kafka, tmp_path)
    assert none.answer("apply")["changes"] == ["disable user reader", "disable user writer"]
    assert none.answer("apply")["changes"] == []
    back = kafka_admin(kafka, tmp_path, users=USERS)
    assert back.answer("apply")["changes"] == ["create user reader", "create user writer"]
    assert can_log_in(kafka, "reader", USERS["reader"])


def test_users_survive_a_restart_after_others_have_gone(kafka: KafkaServer, tmp_path: Path) -> None:
    # Of so many names some lie before the administrator's in Kafka's hash map, whatever it is.
    kafka_admin(kafka, tmp_path, users={f"u{n}": "x" for n in range(16)}).answer("apply")
    kafka_admin(kafka, tmp_path, users=USERS).answer("apply")
    kafka.kill()
    kafka.start()  # returns once the administrator can log in
    assert can_log_in(kafka, "reader", USERS["reader"])
    assert not can_log_in(kafka, "u5", "x")


def test_refuses_to_shrink_and_unknown_configuration(kafka: KafkaServer, tmp_path: Path) -> None:
    kafka_admin(kafka, tmp_path, topics={"big": {"partitions": 3}}).answer("apply")
    smaller = kafka_admin(kafka, tmp_path, topics={"big": {"partitions": 2}})
    assert "topic big has 3 partitions, 2 are wanted" in smaller.run("apply", expect=1).stderr

    odd = {"big": {"partitions": 3, "configs": {"retention.sm": "1"}}}
    unknown = kafka_admin(kafka, tmp_path, topics=odd)
    assert "Kafka knows no configuration retention.sm" in unknown.run("apply", expect=1).stderr


def test_wrong_admin_password_is_one_clear_line(kafka: KafkaServer, tmp_path: Path) -> None:
    admin = kafka_admin(kafka, tmp_path)
    admin.credentials = {**admin.credentials, "admin": "wrong"}
    error = admin.run("apply", expect=1).stderr
    assert error == "error: Kafka refuses the login of admin\n"


def test_the_administrator_gets_a_new_password_with_the_previous_one(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    admin = kafka_admin(kafka, tmp_path)
    admin.credentials = {"admin": "another one"}
    unknown = admin.run("rekey", expect=1, stdin="wrong\n")
    assert unknown.stderr == (
        "error: Kafka refuses the login of admin, with the new password and with the previous one\n"
    )
    changed = {"changed": True, "changes": ["change the password of user admin"]}
    try:
        assert admin.answer("rekey", stdin=f"{kafka.admin_password}\n") == changed
        assert can_log_in(kafka, "admin", "another one")
        assert not can_log_in(kafka, "admin", kafka.admin_password)
        again = admin.answer("rekey", stdin=f"{kafka.admin_password}\n")
        assert again == {"changed": False, "changes": []}
    finally:
        back = kafka_admin(kafka, tmp_path)
        assert back.answer("rekey", stdin="another one\n") == changed


def test_logins_are_tried_with_passwords_from_standard_input(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    kafka_admin(kafka, tmp_path, users=USERS).answer("apply")
    attempts = {"reader": [USERS["reader"], "wrong"], "nobody": ["wrong"]}
    admin = kafka_admin(kafka, tmp_path)
    assert admin.answer("login", stdin=json.dumps(attempts)) == {
        "accepted": {"reader": [True, False], "nobody": [False]}
    }
    assert "expected JSON" in admin.run("login", expect=1, stdin='{"reader": "secret"}').stderr


def test_absent_broker_is_one_clear_line(kafka: KafkaServer, tmp_path: Path) -> None:
    admin = kafka_admin(kafka, tmp_path, bootstrap_servers=["127.0.0.1:9"], wait_seconds=0.5)
    assert "no answer from 127.0.0.1:9" in admin.run("apply", expect=1).stderr
