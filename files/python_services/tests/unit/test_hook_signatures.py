"""Signatures of deliveries: what each sender signs is taken, anything else is not."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from hook_deliveries import KINDS, SECRETS, SIGNING_SECRET, body_of, encoded, lowered, signed
from prime_spark.hook.rules import Kind
from prime_spark.hook.signatures import UnverifiedError, check_secret, events_of, verify

NOW = 1_764_500_000.0
SIGNED = [kind for kind in KINDS if kind not in {"gitlab", "alertmanager"}]
STAMPED = ["gitlab_signed", "standard_webhooks"]


def kind_of(name: str) -> Kind:
    return name.removesuffix("_signed")  # type: ignore[return-value]


def check(
    name: str, headers: dict[str, str], body: bytes, secrets: Sequence[str] = ()
) -> tuple[str, ...]:
    secrets = secrets or [SECRETS[name]]
    return verify(kind_of(name), secrets, lowered(headers), body, lambda: NOW)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_sender_signs_is_taken(name: str) -> None:
    headers, body = signed(name, at=NOW)
    keys = check(name, headers, body)
    assert len(keys) == len(set(keys))
    # One secret is replaced by another.
    check(name, headers, body, [SIGNING_SECRET[:-5] + "aaaa=", SECRETS[name]])


def test_vectors_that_the_senders_publish() -> None:
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": "1"}
    check("github", headers, b"Hello, World!", ["It's a Secret to Everybody"])
    standard = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    keys = verify("standard_webhooks", [secret], standard, body, lambda: 1614265330.0)
    assert keys == ("id:msg_p5jXN8AQM9LWM0D4loKWxJek",)


@pytest.mark.parametrize("name", KINDS)
def test_another_secret_is_refused(name: str) -> None:
    headers, body = signed(name, at=NOW, secret=SIGNING_SECRET[:-5] + "bbbb=")
    with pytest.raises(UnverifiedError, match="wrong") as refused:
        check(name, headers, body)
    assert SECRETS[name] not in str(refused.value)


@pytest.mark.parametrize("name", SIGNED)
def test_the_signature_is_of_the_bytes_that_came(name: str) -> None:
    headers, body = signed(name, at=NOW)
    again = json.dumps(json.loads(body), separators=(", ", ":")).encode()
    assert again != body
    with pytest.raises(UnverifiedError):
        check(name, headers, again)
    with pytest.raises(UnverifiedError):
        check(name, headers, body + b" ")


@pytest.mark.parametrize("name", KINDS)
def test_without_a_header_that_is_needed_it_is_refused(name: str) -> None:
    headers, body = signed(name, at=NOW)
    needed = [
        key
        for key in headers
        if key.lower().startswith("webhook-") or "Signature" in key or key == "Authorization"
    ]
    for key in needed or ["X-Gitlab-Token"]:
        if name == "forgejo" and key != "X-Forgejo-Signature":
            continue
        rest = {other: value for other, value in headers.items() if other != key}
        rest.pop("X-Gitea-Signature", None)
        with pytest.raises(UnverifiedError):
            check(name, rest, body)


@pytest.mark.parametrize("name", STAMPED)
@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_timestamp_is_believed_for_five_minutes(name: str, seconds: int) -> None:
    headers, body = signed(name, at=NOW + seconds)
    with pytest.raises(UnverifiedError, match="too far from now"):
        check(name, headers, body)
    check(name, *signed(name, at=NOW + seconds / 301 * 300))


@pytest.mark.parametrize("stamp", ["", "now", "-1", "1e9", "\uff11", "9" * 400])
def test_a_timestamp_is_a_number(stamp: str) -> None:
    headers, body = signed("standard_webhooks", at=NOW)
    with pytest.raises(UnverifiedError):
        check("standard_webhooks", headers | {"webhook-timestamp": stamp}, body)


@pytest.mark.parametrize("header", ["webhook-id", "webhook-timestamp"])
def test_id_and_timestamp_are_signed(header: str) -> None:
    headers, body = signed("standard_webhooks", at=NOW)
    other = {"webhook-id": "msg_2", "webhook-timestamp": str(int(NOW) + 1)}[header]
    with pytest.raises(UnverifiedError, match="signature is wrong"):
        check("standard_webhooks", headers | {header: other}, body)


def test_one_of_several_signatures_is_enough() -> None:
    headers, body = signed("standard_webhooks", at=NOW)
    headers["webhook-signature"] = "v1a,xyz v1,AAAA " + headers["webhook-signature"]
    check("standard_webhooks", headers, body)


def test_a_signing_secret_of_gitlab_is_no_token_and_a_token_signs_nothing() -> None:
    headers, body = signed("gitlab", secret=SIGNING_SECRET)
    with pytest.raises(UnverifiedError):
        check("gitlab", headers, body, [SIGNING_SECRET])
    headers, body = signed("gitlab_signed", at=NOW)
    with pytest.raises(UnverifiedError):
        check("gitlab_signed", headers, body, [SECRETS["gitlab"]])
    # While the one replaces the other, both are taken.
    check("gitlab", *signed("gitlab"), [SECRETS["gitlab"], SIGNING_SECRET])
    check("gitlab_signed", headers, body, [SECRETS["gitlab"], SIGNING_SECRET])


@pytest.mark.parametrize("name", ["github", "forgejo"])
def test_the_same_body_under_another_id_is_the_same_delivery(name: str) -> None:
    keys = [set(check(name, *signed(name, identity=identity))) for identity in ("one", "two")]
    assert keys[0] & keys[1]
    other = signed(name, encoded(name, body_of(name) | {"after": "0" * 40}), identity="three")
    assert not keys[0] & set(check(name, *other))


@pytest.mark.parametrize("identity", ["", "a b", "x" * 201, "é", "a\nb"])
def test_an_id_is_a_short_word(identity: str) -> None:
    headers, body = signed("github", identity=identity)
    with pytest.raises(UnverifiedError, match="is no id"):
        check("github", headers, body)


def test_alertmanager_tells_of_alerts_and_those_that_are_over_start_nothing() -> None:
    notification = body_of("alertmanager")
    (event,) = events_of("alertmanager", encoded("alertmanager", notification))
    assert event.body["labels"]["host"] == "control-pc-1"
    # Told again, it is the same; after it was over, it is another.
    (again,) = events_of("alertmanager", encoded("alertmanager", notification))
    assert event.keys == again.keys
    notification["alerts"][0]["startsAt"] = "2026-11-30T12:00:00Z"
    (later,) = events_of("alertmanager", encoded("alertmanager", notification))
    assert event.keys != later.keys


@pytest.mark.parametrize(
    "change",
    [
        {"version": "3"},
        {"alerts": {}},
        {"alerts": [1]},
        {"groupKey": None},
        {"alerts": [{"status": "firing"}]},
        {"alerts": [{"status": "firing", "fingerprint": 1, "startsAt": "x"}]},
        {"alerts": [{"status": "resolved"}] * 101},
    ],
)
def test_what_is_no_notification_of_alertmanager_is_refused(change: dict[str, object]) -> None:
    body = body_of("alertmanager") | change
    with pytest.raises(ValueError, match="lert"):
        events_of("alertmanager", encoded("alertmanager", body))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b'{"a":' * 100_000, b"a=b"])
def test_a_body_is_a_json_object(body: bytes) -> None:
    for kind in ("github", "alertmanager"):
        with pytest.raises(ValueError, match="the body is no"):
            events_of(kind_of(kind), body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_none_is_told_the_same_of_every_kind(kind: str) -> None:
    for number in (b"1e999", b"NaN", b"01"):
        with pytest.raises(ValueError, match=r"^the body is no JSON$"):
            events_of(kind_of(kind), b'{"a": %s}' % number)


@pytest.mark.parametrize(
    ("kind", "secret"),
    [
        ("github", "short"),
        ("gitlab", "whsec_!"),
        ("standard_webhooks", "no base64 at all"),
        ("standard_webhooks", "whsec_AAAA"),
    ],
)
def test_a_secret_that_is_none_is_refused(kind: Kind, secret: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        check_secret(kind, secret)
    check_secret("gitlab", SIGNING_SECRET)
    check_secret(kind, SIGNING_SECRET)
