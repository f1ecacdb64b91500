"""Filters of playbooks/rotate.yml."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from ansible_collections.prime_spark.fleet.plugins.filter import rotation
from argon2 import PasswordHasher
from prime_spark.accounts.users import User
from prime_spark.api.auth.tokens import AccessTokens, TokenError
from prime_spark.api.settings import AuthConfig


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


def test_every_attempt_is_made_on_every_server_and_its_answers_are_put_together() -> None:
    attempts = {"admin": ["new", "old"]}
    urls = {"One": "http://one", "Two": "http://two"}
    requests = rotation.rotation_requests(attempts, urls)
    assert [(r["name"], r["user"], r["secret"], r["url"]) for r in requests] == [
        ("admin at One", "admin", "new", "http://one"),
        ("admin at One", "admin", "old", "http://one"),
        ("admin at Two", "admin", "new", "http://two"),
        ("admin at Two", "admin", "old", "http://two"),
    ]
    statuses = [200, 401, 200, 200]
    results = [{"item": r, "status": s} for r, s in zip(requests, statuses, strict=True)]
    seen = rotation.rotation_answers(results, 200)
    assert seen == {"admin at One": [True, False], "admin at Two": [True, True]}
    assert [r["name"] for r in rotation.rotation_requests(attempts)] == ["admin", "admin"]
    assert rotation.rotation_requests({}, urls) == []


def test_users_of_the_api_are_known_by_their_hash() -> None:
    cheap = PasswordHasher(1, 8, 1)
    users = {
        "b": {"role": "viewer", "password_hash": cheap.hash("new")},
        "other": {"role": "viewer", "password_hash": cheap.hash("another")},
    }
    assert rotation.rotation_api_users(users, "new", "old") == {"b": ["new", "old"]}
    assert rotation.rotation_api_users({}, "new", "old") == {}


def test_the_api_takes_an_access_token_of_its_key_and_no_other() -> None:
    new, old = "n" * 48, "o" * 48
    defaults = {field.name: field.default for field in msgspec.structs.fields(AuthConfig)}
    tokens = AccessTokens([new], defaults["issuer"], defaults["audience"], 600)
    user = User(role="viewer", password_hash="$argon2id$of-alice")
    claims = tokens.read(rotation.rotation_access_token(new, "alice", user.password_hash))
    assert (claims.username, claims.fingerprint) == ("alice", user.fingerprint)
    with pytest.raises(TokenError, match="unknown key"):
        tokens.read(rotation.rotation_access_token(old, "alice", user.password_hash))
