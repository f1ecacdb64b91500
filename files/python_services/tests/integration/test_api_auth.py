"""Logging in and out with a real Redis: tokens, sessions, lock-out, roles, limits."""

from __future__ import annotations

import base64
import hashlib
import json
import select
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from redis import Redis
from tests.integration.servers import RedisServer

from api_support import (
    PASSWORD,
    Api,
    Servers,
    api_config,
    create_redis_user,
    credentials,
    fields,
    password_hash,
    problem,
    redis_config,
    running_api,
    users_json,
)
from support import Command, eventually

KEY = credentials(Servers())["signing_key"]


@pytest.fixture(scope="module")
def api(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    servers = Servers(redis=redis)
    servers.prepare(folder)
    with running_api(servers, folder, lockout={"first_seconds": 0.4}) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(redis: RedisServer, request: pytest.FixtureRequest) -> None:
    with Redis.from_url(redis.url) as administrator:
        administrator.flushall()
    create_redis_user(redis)
    if "api" in request.fixturenames:
        request.getfixturevalue("api").forget_tokens()


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": "prime-spark",
        "aud": "prime-spark-api",
        "sub": "alice",
        "sid": "0" * 32,
        "pwd": fingerprint(),
        "iat": now,
        "nbf": now,
        "exp": now + 60,
        **changes,
    }


def fingerprint() -> str:
    return hashlib.sha256(password_hash().encode()).hexdigest()[:16]


def key_id(api: Api) -> str:
    return str(jwt.get_unverified_header(api.token("alice"))["kid"])


# -- tokens -------------------------------------------------------------------------------------


def test_log_in_ask_refresh_log_out(api: Api) -> None:
    answer = api.login("alice")
    assert answer.status_code == 200, answer.text
    tokens = answer.json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token"}
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 600)
    assert api.me(tokens["access_token"]).json() == {"username": "alice", "role": "admin"}

    following = api.refresh(tokens["refresh_token"]).json()
    assert following["refresh_token"] != tokens["refresh_token"]
    assert api.me(following["access_token"]).status_code == 200

    header = {"Authorization": f"Bearer {following['access_token']}"}
    assert api.ask("POST", "/api/auth/logout", headers=header).json() == {"status": "logged out"}
    for token in (tokens["access_token"], following["access_token"]):
        problem(api.me(token), 401, "not_authenticated")
    problem(api.refresh(following["refresh_token"]), 401, "not_authenticated")
    assert [line["user"] for line in api.audits("login", "logout")][-2:] == ["alice", "alice"]


def test_the_token_says_what_it_has_to_and_no_more(api: Api) -> None:
    token = api.token("alice")
    assert jwt.get_unverified_header(token)["alg"] == "HS256"
    said = jwt.decode(token, KEY, algorithms=["HS256"], audience="prime-spark-api")
    assert set(said) == set(claims())
    assert said["exp"] - said["nbf"] == 600


def test_only_a_token_that_is_right_in_every_point_is_taken(api: Api) -> None:
    def signed(headers: dict[str, Any] | None = None, key: str = KEY, **changes: Any) -> str:
        wanted = {"kid": key_id(api)} if headers is None else headers
        said = {name: value for name, value in claims(**changes).items() if value is not None}
        return jwt.encode(said, key, "HS256", headers=wanted)

    assert api.me(signed()).status_code == 200
    now = int(time.time())
    wrong = {
        "another key": signed(key="x" * 32),
        "no kid": signed(headers={}),
        "unknown kid": signed(headers={"kid": "0123456789abcdef"}),
        "kid no text": signed(headers={"kid": key_id(api)}).replace("a", "b", 1),
        "expired": signed(exp=now - 5),
        "not yet": signed(nbf=now + 60),
        "another issuer": signed(iss="someone"),
        "another audience": signed(aud="someone"),
        "unknown user": signed(sub="mallory"),
        "old password": signed(pwd="0" * 16),
        **{f"no {name}": signed(**{name: None}) for name in claims()},
        "other algorithm": jwt.encode(claims(), KEY, "HS384", headers={"kid": key_id(api)}),
        "garbage": "a.b.c",
    }
    none = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": key_id(api)}).encode())
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode())
    wrong["not signed"] = f"{none.decode().rstrip('=')}.{body.decode().rstrip('=')}."
    for what, token in wrong.items():
        answer = api.me(token)
        assert (what, answer.status_code) == (what, 401)
        problem(answer, 401, "not_authenticated")
        assert answer.headers["www-authenticate"].startswith('Bearer realm="prime-spark"')
    for header in ("", "Basic YTpi", "Bearer", f"Token {api.token('alice')}"):
        answer = api.ask("GET", "/api/auth/me", headers={"Authorization": header} if header else {})
        problem(answer, 401, "not_authenticated")


def test_a_signing_key_can_be_replaced_without_logging_anyone_out(
    api: Api, redis: RedisServer, tmp_path: Path
) -> None:
    old = api.token("alice")
    keys = {"signing_key": "f" * 48, "signing_key_old": KEY}
    auth = {"signing_keys": [{"credential": name} for name in keys]}
    with running_api(Servers(redis=redis), tmp_path, keys, auth=auth) as renewed:
        assert renewed.me(old).status_code == 200
        assert api.me(renewed.token("alice")).status_code == 401


# -- refresh tokens -----------------------------------------------------------------------------


def test_an_older_refresh_token_ends_the_session_for_both(api: Api) -> None:
    first = api.login("alice").json()
    other = api.login("alice").json()
    second = api.refresh(first["refresh_token"]).json()
    third = api.refresh(second["refresh_token"]).json()
    problem(api.refresh(first["refresh_token"]), 401, "not_authenticated")
    # Neither the thief's nor the owner's tokens are worth anything; the other session lives.
    problem(api.refresh(third["refresh_token"]), 401, "not_authenticated")
    problem(api.me(third["access_token"]), 401, "not_authenticated")
    assert api.me(other["access_token"]).status_code == 200
    assert api.refresh(other["refresh_token"]).status_code == 200
    assert [line["user"] for line in api.audits("refresh_reused")][-1:] == ["alice"]


def test_of_many_at_once_all_get_the_same_next_token(api: Api) -> None:
    reused = len(api.audits("refresh_reused"))
    token = api.login("alice").json()["refresh_token"]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: api.refresh(token), range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    (following,) = {answer.json()["refresh_token"] for answer in answers}
    assert following != token
    assert api.refresh(following).status_code == 200
    assert len(api.audits("refresh_reused")) == reused


def test_a_repeat_from_another_address_is_theft(api: Api) -> None:
    token = api.login("alice").json()["refresh_token"]
    following = api.refresh(token).json()["refresh_token"]
    with elsewhere(api) as thief:
        answer = thief.post("/api/auth/refresh", json={"refresh_token": token})
    problem(answer, 401, "not_authenticated")
    problem(api.refresh(following), 401, "not_authenticated")


def test_a_repeat_after_the_grace_is_theft(redis: RedisServer, tmp_path: Path) -> None:
    auth = {"refresh_grace_seconds": 0}
    with running_api(Servers(redis=redis), tmp_path, auth=auth) as api:
        token = api.login("alice").json()["refresh_token"]
        following = api.refresh(token).json()["refresh_token"]
        problem(api.refresh(token), 401, "not_authenticated")
        problem(api.refresh(following), 401, "not_authenticated")
        assert api.audits("refresh_reused")


def test_an_invalid_token_does_not_end_the_session_that_it_names(api: Api) -> None:
    tokens = api.login("alice").json()
    session = jwt.decode(tokens["access_token"], options={"verify_signature": False})["sid"]
    for made_up in ("A" * 43, f"{'A' * 22}.{'A' * 43}"):
        problem(api.refresh(f"{session}.{made_up}"), 401, "not_authenticated")
    assert api.me(tokens["access_token"]).status_code == 200
    assert api.refresh(tokens["refresh_token"]).status_code == 200


def test_a_refresh_whose_reply_is_lost_can_be_repeated(redis: RedisServer, tmp_path: Path) -> None:
    with Wire(redis.port) as wire:
        near = {"redis": {**redis_config(redis), "port": wire.port}}
        with running_api(Servers(redis=redis), tmp_path, **near) as api:
            token = api.login("alice").json()["refresh_token"]
            rotations = calls(redis, "evalsha")
            wire.lose_the_reply_to(b"EVALSHA")
            problem(api.refresh(token), 503, "unavailable")
            assert wire.lost
            # Redis has done it, and is not told to do it again by whoever cannot know that.
            assert calls(redis, "evalsha") == rotations + 1
            repeated = api.refresh(token)
            assert repeated.status_code == 200, repeated.text
            assert api.refresh(repeated.json()["refresh_token"]).status_code == 200


def calls(redis: RedisServer, command: str) -> int:
    """How often Redis has been given a command since it started."""
    with Redis.from_url(redis.url) as administrator:
        stats = administrator.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


@contextmanager
def elsewhere(api: Api, address: str = "127.0.0.2") -> Iterator[httpx.Client]:
    """A client of the API with another address."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=api.url, transport=transport, timeout=30) as client:
        yield client


class Wire:
    """A wire to a server of this machine, which can lose a reply as a network does."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._word: bytes | None = None
        self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_the_reply_to(self, word: bytes) -> None:
        """Break the connection that the next command with `word` came by, once it is done."""
        self._word = word

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(
                    target=self._carry, args=(self._listener.accept()[0],), daemon=True
                ).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    with suppress(ConnectionResetError):
                        if not (data := ready.recv(65536)):
                            return
                    if ready is server:
                        client.sendall(data)
                        continue
                    server.sendall(data)
                    if self._word is not None and self._word in data:
                        self._word = None
                        server.recv(65536)
                        self.lost += 1
                        return


def test_redis_holds_no_token(api: Api, redis: RedisServer) -> None:
    tokens = api.login("alice").json()
    session, *secrets = tokens["refresh_token"].split(".")
    with Redis.from_url(redis.url) as administrator:
        # The watch of the health puts a value of its own into the memory now and then.
        keys = sorted(administrator.scan_iter("auth:*"))
        own = [f"auth:session:{session}".encode(), b"auth:session:of:alice"]
        assert [key for key in keys if b":known:" not in key] == own
        stored = repr([keys, *map(administrator.hgetall, own)])
        assert 0 < administrator.ttl(own[0]) <= 7 * 24 * 3600
        assert 0 < administrator.ttl(own[1]) <= 30 * 24 * 3600
    for secret in (*secrets, tokens["access_token"]):
        assert secret not in stored


@pytest.mark.parametrize("token", ["x", "0" * 32, f"{'0' * 32}.{'A' * 22}.{'A' * 43}", "é" * 99])
def test_a_made_up_refresh_token_is_refused(api: Api, token: str) -> None:
    problem(api.refresh(token), 401, "not_authenticated")


def test_sessions_end_by_themselves(redis: RedisServer, tmp_path: Path) -> None:
    auth = {"access_seconds": 1, "refresh_idle_seconds": 2, "refresh_max_seconds": 3}
    with running_api(Servers(redis=redis), tmp_path, auth=auth) as api:
        tokens = api.login("alice").json()
        deadline = time.monotonic() + 30
        # Kept alive by being used, but not for longer than a session may last.
        while (answer := api.refresh(tokens["refresh_token"])).status_code == 200:
            tokens = answer.json()
            assert time.monotonic() < deadline, "the session does not end"
            time.sleep(0.3)
        eventually(lambda: api.me(tokens["access_token"]).status_code == 401)
        idle = api.login("alice").json()["refresh_token"]
        with Redis.from_url(redis.url) as administrator:
            eventually(lambda: not list(administrator.scan_iter("auth:session:*")))
        problem(api.refresh(idle), 401, "not_authenticated")


def test_one_login_too_many_ends_the_oldest_session(redis: RedisServer, tmp_path: Path) -> None:
    with running_api(Servers(redis=redis), tmp_path, auth={"max_sessions": 2}) as api:
        others = api.login("oscar").json()
        logins = [api.login("alice").json() for _ in range(5)]
        for tokens in logins[:-2]:
            problem(api.refresh(tokens["refresh_token"]), 401, "not_authenticated")
            access = tokens["access_token"]
            eventually(lambda access=access: api.me(access).status_code == 401)
        for tokens in (*logins[-2:], others):
            assert api.me(tokens["access_token"]).status_code == 200
            assert api.refresh(tokens["refresh_token"]).status_code == 200
    with Redis.from_url(redis.url) as administrator:
        assert len(list(administrator.scan_iter("auth:session:*"))) == 3 + 2, "and who has which"


def test_a_session_that_ended_elsewhere_ends_here(
    api: Api, redis: RedisServer, tmp_path: Path
) -> None:
    with running_api(Servers(redis=redis), tmp_path) as second:
        token = api.token("alice")
        assert second.me(token).status_code == 200
        assert api.ask("POST", "/api/auth/logout", user="alice").status_code == 200
        eventually(lambda: second.me(token).status_code == 401)
        # And a third, that was not there when it happened.
    with running_api(Servers(redis=redis), tmp_path / "third") as third:
        eventually(lambda: third.me(token).status_code == 401)


def test_a_new_password_ends_what_the_old_one_began(
    api: Api, redis: RedisServer, tmp_path: Path
) -> None:
    tokens = api.login("alice").json()
    users = json.dumps({"alice": {"role": "viewer", "password_hash": hashed("new")}})
    with running_api(Servers(redis=redis), tmp_path, {"users": users}) as changed:
        problem(changed.me(tokens["access_token"]), 401, "not_authenticated")
        problem(changed.refresh(tokens["refresh_token"]), 401, "not_authenticated")
        problem(changed.login("alice"), 401, "not_authenticated")
        assert changed.login("alice", "new").status_code == 200


def hashed(password: str) -> str:
    return password_hash(password)


# -- passwords ----------------------------------------------------------------------------------


def test_unknown_user_and_wrong_password_cannot_be_told_apart(
    redis: RedisServer, tmp_path: Path
) -> None:
    lockout = {"failures": 100}
    with running_api(Servers(redis=redis), tmp_path, lockout=lockout) as api:

        def attempt(name: str) -> tuple[float, dict[str, Any]]:
            started = time.perf_counter()
            answer = api.login(name, "wrong")
            seconds = time.perf_counter() - started
            body = problem(answer, 401, "not_authenticated")
            headers = {
                key: value
                for key, value in answer.headers.items()
                if key not in {"date", "x-request-id"}
            }
            return seconds, {**body, "request_id": "", "headers": headers}

        known, unknown = [], []
        for _ in range(15):  # in turns: the machine's other work falls on both alike
            (seconds, body), (other_seconds, other_body) = attempt("alice"), attempt("nobody")
            known.append(seconds)
            unknown.append(other_seconds)
            assert body == other_body
        # A hash takes tens of milliseconds; without one an answer takes about one.
        assert min(unknown) > 0.5 * min(known)
        assert statistics.median(unknown) > 0.5 * statistics.median(known)
        # What was typed as a name may be a password: it is nowhere to be found.
        assert "nobody" not in api.daemon.log.read_text()
        assert [line["account"] for line in api.audits("login_failed")][-2:] == ["alice", "unknown"]


def test_the_event_loop_goes_on_while_passwords_are_checked(
    redis: RedisServer, tmp_path: Path
) -> None:
    with (
        running_api(Servers(redis=redis), tmp_path, lockout={"failures": 100}) as api,
        ThreadPoolExecutor(12) as pool,
    ):
        logins = [pool.submit(api.login, "alice") for _ in range(12)]
        answers = 0
        while not all(login.done() for login in logins):
            assert api.ask("GET", "/health").status_code == 200
            answers += 1
        assert {login.result().status_code for login in logins} <= {200, 503}
        # Where each waits for a hash, there are no more of them than of logins.
        assert answers > 2 * len(logins)


def test_so_many_logins_at_once_that_some_have_to_come_again(
    redis: RedisServer, tmp_path: Path
) -> None:
    auth = {"hash_calls": 1, "hash_wait_seconds": 0.01}
    with running_api(Servers(redis=redis), tmp_path, auth=auth) as api:
        answer = problem(api.login("alice"), 503, "unavailable")
        assert "no answer within 0.01 s" in answer["detail"]


def two_users(other_hash: str) -> str:
    users = {
        "alice": {"role": "admin", "password_hash": password_hash()},
        "bob": {"role": "admin", "password_hash": other_hash},
    }
    return json.dumps(users)


@pytest.mark.parametrize(
    ("users", "complaint"),
    [
        ("{", "users"),
        ('{"bad name": {"role": "admin", "password_hash": "x"}}', "users"),
        ('{"alice": {"role": "root", "password_hash": "x"}}', "users"),
        ('{"alice": {"role": "admin", "password": "x"}}', "users"),
        ('{"alice": {"role": "admin", "password_hash": "$2b$12$abc"}}', "not an argon2id hash"),
        (
            two_users("$argon2id$v=19$m=1024,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g"),
            "too weak",
        ),
        (
            two_users("$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g"),
            "different parameters",
        ),
    ],
)
def test_unusable_users_are_refused_at_the_start(
    redis: RedisServer, tmp_path: Path, users: str, complaint: str
) -> None:
    servers = Servers(redis=redis)
    config = api_config(servers, tmp_path / "share")
    command = Command("api", tmp_path, config, {**credentials(servers), "users": users})
    done = command.run(expect=2)
    assert done.stderr.count("\n") == 1
    assert complaint in done.stderr
    assert "c2FsdHNhbHQ" not in done.stderr


def test_without_users_nobody_can_log_in(redis: RedisServer, tmp_path: Path) -> None:
    with running_api(Servers(redis=redis), tmp_path, {"users": "{}"}) as api:
        for name in ("admin", "root", "alice"):
            problem(api.login(name), 401, "not_authenticated")


# -- lock-out -----------------------------------------------------------------------------------


def test_an_account_is_locked_for_ever_longer(redis: RedisServer, tmp_path: Path) -> None:
    lockout = {"failures": 3, "first_seconds": 1.5, "max_seconds": 100.0}
    with running_api(Servers(redis=redis), tmp_path, lockout=lockout) as api:
        for name in ("alice", "nobody"):
            for _ in range(3):
                problem(api.login(name, "wrong"), 401, "not_authenticated")
            refused = api.login(name)
            problem(refused, 429, "locked")  # the right password, but locked
            assert 1 <= int(refused.headers["retry-after"]) <= 2
            eventually(lambda n=name: api.login(n, "wrong").status_code == 401)  # type: ignore[misc]
            again = api.login(name, "wrong")
            problem(again, 429, "locked")
            assert int(again.headers["retry-after"]) == 3
        # Others are not concerned, and the right password ends it.
        assert api.login("vera").status_code == 200
        answer = eventually(lambda: a if (a := api.login("alice")).status_code == 200 else None)
        assert answer.status_code == 200, answer.text
        for _ in range(2):
            problem(api.login("alice", "wrong"), 401, "not_authenticated")
        assert api.login("alice").status_code == 200
        assert api.audits("login_locked")


def test_guesses_at_the_same_moment_do_not_slip_through(redis: RedisServer, tmp_path: Path) -> None:
    lockout = {"failures": 5, "first_seconds": 60.0}
    with running_api(Servers(redis=redis), tmp_path, lockout=lockout) as api:
        with ThreadPoolExecutor(30) as pool:
            answers = list(pool.map(lambda n: api.login("alice", f"guess {n}"), range(30)))
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(401) <= 5
        assert set(statuses) == {401, 429}


def test_a_stranger_does_not_lock_the_owner_out(redis: RedisServer, tmp_path: Path) -> None:
    lockout = {"failures": 3, "first_seconds": 60.0}
    with running_api(Servers(redis=redis), tmp_path, lockout=lockout) as api:
        session = api.login("alice").json()
        with elsewhere(api) as stranger:
            assert [guess(stranger) for _ in range(5)] == [401, 401, 401, 429, 429]
        assert api.login("alice").status_code == 200
        assert api.refresh(session["refresh_token"]).status_code == 200
        # Nor does a login of the owner give the stranger more guesses.
        with elsewhere(api) as stranger:
            assert guess(stranger) == 429
            # Not even with the right password.
            assert guess(stranger, PASSWORD) == 429


def test_guesses_from_many_addresses_shut_out_all_but_the_known(
    redis: RedisServer, tmp_path: Path
) -> None:
    lockout = {"failures": 3, "failures_anywhere": 6, "first_seconds": 60.0}
    with running_api(Servers(redis=redis), tmp_path, lockout=lockout) as api:
        session = api.login("alice").json()
        statuses = []
        for number in range(2, 7):
            with elsewhere(api, f"127.0.0.{number}") as stranger:
                statuses += [guess(stranger), guess(stranger)]
        assert statuses == [401] * 6 + [429] * 4
        assert api.login("alice").status_code == 200
        assert api.refresh(session["refresh_token"]).status_code == 200
        # The known address still has its own limit.
        assert [guess(api.http) for _ in range(4)] == [401, 401, 401, 429]


def test_who_logs_in_well_does_not_count_as_guessing(redis: RedisServer, tmp_path: Path) -> None:
    with running_api(
        Servers(redis=redis), tmp_path, lockout={"failures_anywhere": 2, "first_seconds": 60.0}
    ) as api:
        for number in range(2, 7):
            with elsewhere(api, f"127.0.0.{number}") as client:
                assert guess(client, PASSWORD) == 200


def guess(client: httpx.Client, password: str = "wrong") -> int:
    body = {"username": "alice", "password": password}
    return client.post("/api/auth/login", json=body).status_code


# -- roles and limits ---------------------------------------------------------------------------

READS = [
    ("GET", "/api/auth/me", 200),
    ("GET", "/api/health/detailed", 200),
    ("GET", "/api/llm/models", 503),  # allowed, but no model answers here
    ("GET", "/api/tasks/unknown", 404),
    ("GET", "/api/tasks/unknown/artifact", 404),
]
WRITES = [
    ("POST", "/api/memory/set", {"key": "k", "value": 1}),
    ("DELETE", "/api/memory/k", None),
    ("POST", "/api/llm/generate", {"prompt": "hello"}),
    ("POST", "/api/tasks/submit", {"task_type": "llm", "payload": {"prompt": "hello"}}),
]


def test_each_route_asks_for_a_role(api: Api) -> None:
    for method, path, status in READS:
        problem(api.ask(method, path), 401, "not_authenticated")
        assert api.ask(method, path, user="vera").status_code == status
    for method, path, body in WRITES:
        problem(api.ask(method, path, json=body), 401, "not_authenticated")
        refused = problem(api.ask(method, path, user="vera", json=body), 403, "forbidden")
        assert refused["detail"] == "needs the role operator, yours is viewer"
        for user in ("oscar", "alice"):
            assert api.ask(method, path, user=user, json=body).status_code not in {401, 403}
    assert {line["user"] for line in api.audits("denied")} == {"vera"}


def test_every_route_but_the_open_ones_is_guarded(api: Api) -> None:
    document = api.ask("GET", "/openapi.json").json()
    open_ones = {"/health", "/api/auth/login", "/api/auth/refresh"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert ("security" in operation) == (path not in open_ones), path
            if path not in open_ones:
                url = path.replace("{key}", "k").replace("{task_id}", "t")
                assert api.ask(method.upper(), url).status_code == 401


def test_rates_are_limited_by_user_and_by_address(redis: RedisServer, tmp_path: Path) -> None:
    limits = {"login": "4/minute", "read": "3/minute", "write": "2/minute"}
    with running_api(Servers(redis=redis), tmp_path, limits=limits) as api:
        for user in ("alice", "vera"):
            statuses = [api.ask("GET", "/api/auth/me", user=user).status_code for _ in range(5)]
            assert statuses == [200, 200, 200, 429, 429]
        refused = api.ask("GET", "/api/auth/me", user="alice")
        body = problem(refused, 429, "too_many_requests")
        assert body["detail"] == "more than 3 requests per minute"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        # Other kinds of requests have limits of their own.
        assert api.ask("DELETE", "/api/memory/k", user="alice").status_code != 429
        api.login("alice")
        api.login("alice")
        problem(api.login("alice"), 429, "too_many_requests")
        problem(api.refresh("x"), 429, "too_many_requests")
        assert api.ask("GET", "/health").status_code == 200


def test_limits_hold_while_redis_is_away(tmp_path: Path) -> None:
    with running_api(Servers(), tmp_path, limits={"login": "2/minute"}) as api:
        assert [api.login("alice").status_code for _ in range(3)] == [503, 503, 429]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": "alice"}, "body.password"),
        ({"username": "", "password": PASSWORD}, "body.username"),
        ({"username": "a" * 65, "password": PASSWORD}, "body.username"),
        ({"username": "alice", "password": "a" * 257}, "body.password"),
        ({"username": ["alice"], "password": PASSWORD}, "body.username"),
        ({"username": "alice", "password": PASSWORD, "role": "admin"}, "body.role"),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(
    api: Api, body: dict[str, Any], field: str
) -> None:
    answer = api.ask("POST", "/api/auth/login", json=body)
    assert fields(problem(answer, 422, "invalid")) == [field]
    assert PASSWORD not in answer.text
    assert PASSWORD not in api.daemon.log.read_text()


def test_the_users_file_of_the_tests_is_one() -> None:
    assert set(json.loads(users_json())) == {"alice", "oscar", "vera"}
