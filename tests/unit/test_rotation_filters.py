"""Filters of playbooks/rotate.yml."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import pytest

rotation: Any = sys.modules["prime_spark_filter.rotation"]


def test_users_with_the_rotated_password_are_tried_with_both() -> None:
    users = {"b": "new", "a": "new", "other": "another"}
    assert rotation.rotation_attempts(users, "new", "old") == {
        "a": ["new", "old"],
        "b": ["new", "old"],
    }
    assert rotation.rotation_attempts({"other": "another"}, "new", "old") == {}


def test_answers_of_redis() -> None:
    attempts = {"a": ["new", "old"], "b": ["new", "old"]}
    commands = rotation.rotation_redis_commands(attempts)
    assert commands == "AUTH a new\nAUTH a old\nAUTH b new\nAUTH b old\n"
    refused = "WRONGPASS invalid username-password pair or user is disabled."
    lines = ["OK", refused, "", "OK", "OK"]
    seen = rotation.rotation_redis_answers(lines, attempts)
    assert seen == {"a": [True, False], "b": [True, True]}


@pytest.mark.parametrize("lines", [["OK"], ["OK", "LOADING Redis is loading"], []])
def test_an_odd_answer_of_redis_is_no_answer(lines: list[str]) -> None:
    with pytest.raises(rotation.AnsibleFilterError, match="redis-cli answered"):
        rotation.rotation_redis_answers(lines, {"a": ["new", "old"]})


def test_preshared_keys_are_compared_by_digest() -> None:
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in ("new one", "old two")]
    seen = rotation.rotation_keys(
        digests, {"one": "new one", "two": "new two"}, {"one": "old one", "two": "old two"}
    )
    assert seen == {"one": [True, False], "two": [False, True]}


def test_what_is_wrong_is_said_without_a_secret() -> None:
    seen = {"good": [True, False], "both": [True, True], "neither": [False, False]}
    assert rotation.rotation_wrong(seen) == [
        "both: the new one is accepted, the old one is ACCEPTED",
        "neither: the new one is REFUSED, the old one is refused",
    ]
