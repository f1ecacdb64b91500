"""The filters that several roles use."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from ansible_collections.prime_spark.fleet.plugins.filter import api, deadman
from ansible_collections.prime_spark.fleet.plugins.filter import prime_spark as filters
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError


def test_a_fernet_key_is_32_bytes_in_url_safe_base64_and_stable() -> None:
    key = filters.fernet_key("secret")
    assert len(base64.urlsafe_b64decode(key)) == 32
    assert key == filters.fernet_key("secret") != filters.fernet_key("another")


def test_a_scram_verifier_verifies_the_password_and_only_it() -> None:
    verifier = filters.scram_verifier("pencil", "ingest")
    mechanism, rest = verifier.split("$", 1)
    parameters, keys = rest.split("$")
    iterations, salt = parameters.split(":")
    stored, server = (base64.b64decode(key) for key in keys.split(":"))
    assert mechanism == "SCRAM-SHA-256"

    def keys_of(password: str) -> tuple[bytes, bytes]:
        # RFC 5802, section 3.
        salted = hashlib.pbkdf2_hmac(
            "sha256", password.encode(), base64.b64decode(salt), int(iterations)
        )
        client = hmac.digest(salted, b"Client Key", "sha256")
        return hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256")

    assert keys_of("pencil") == (stored, server)
    assert keys_of("pencils") != (stored, server)


def test_a_scram_verifier_is_stable_and_differs_between_users() -> None:
    assert filters.scram_verifier("x", "a") == filters.scram_verifier("x", "a")
    assert filters.scram_verifier("x", "a") != filters.scram_verifier("x", "b")


def test_credential_files_name_one_file_per_secret() -> None:
    assert filters.credential_files({"b": "2", "a": "1"}, "/etc/x") == [
        {"path": "/etc/x/a", "content": "1"},
        {"path": "/etc/x/b", "content": "2"},
    ]


def test_a_password_hash_of_the_api_verifies_and_is_stable() -> None:
    stored = api.argon2id("a password", "alice")
    assert stored == api.argon2id("a password", "alice") != api.argon2id("a password", "bob")
    assert PasswordHasher().verify(stored, "a password")
    with pytest.raises(VerificationError):
        PasswordHasher().verify(stored, "another")


def test_a_backend_names_its_credential_where_there_is_a_key() -> None:
    assert api.with_credential({"name": "cloud"}, {"cloud": "key"})["credential"] == "llm_cloud"
    assert api.with_credential({"name": "edge"}, {"cloud": "key"}) == {"name": "edge"}


def test_secrets_of_the_dead_man_s_channels_stand_apart_from_its_configuration() -> None:
    hooks = {"chat": {"url": "http://x", "token": "canary"}, "open": {"url": "http://y"}}
    mail = {"host": "mail", "password": "canary"}
    shown = [deadman.deadman_channels(hooks), deadman.deadman_mail(mail)]
    assert "canary" not in str(shown)
    named = {shown[0]["chat"]["credential"], shown[1]["credential"]}
    assert named == set(deadman.deadman_secrets(hooks, mail))
    assert shown[0]["open"] == {"url": "http://y"}
    assert deadman.deadman_mail({}) is None
