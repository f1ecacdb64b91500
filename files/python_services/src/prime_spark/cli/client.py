"""Speaks to the API: logs in, renews tokens by itself, turns answers into results or errors."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from prime_spark import __version__
from prime_spark.cli.errors import CliError, from_answer, not_logged_in
from prime_spark.cli.store import URL_VARIABLE, Store, configured_url

_CONNECT_SECONDS = 5.0
# A little before the access token ends, so that it does not end on its way.
_EARLY_SECONDS = 10.0


class Client:
    """One API, as one user."""

    def __init__(self, url: str | None, seconds: float, store: Store | None = None) -> None:
        self._store = store or Store()
        self._tokens = self._store.load()
        known = self._tokens or {}
        chosen = url or configured_url() or known.get("url")
        if not chosen:
            raise CliError(
                "no_url",
                "No API is known.",
                f"Give its address with --url or {URL_VARIABLE}, such as http://10.8.0.2:8000.",
                status=2,
            )
        self.url = str(chosen).rstrip("/")
        if known.get("url") != self.url:
            self._tokens = None  # another API's: never send them there
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
                headers={"User-Agent": f"prime-spark-cli/{__version__}"},
                follow_redirects=False,
            )
        except httpx.InvalidURL as error:
            raise CliError("bad_url", f"{self.url}: {error}", status=2) from error

    def login(self, username: str, password: str) -> None:
        """Log in and keep the tokens."""
        credentials = {"username": username, "password": password}
        answer = self._send("POST", "/api/auth/login", json=credentials)
        if answer.status_code == 401:
            raise CliError("wrong_credentials", "The name or the password is wrong.", status=3)
        with self._store.locked():
            self._keep(_result(answer), username)

    def logout(self) -> bool:
        """End the session; return False when there was none. The tokens are gone either way."""
        if self._tokens is None:
            return False
        try:
            self.ask("POST", "/api/auth/logout")
        except CliError as error:
            if error.code not in {"not_logged_in", "not_authenticated"}:
                raise
            return False
        finally:
            self._store.clear()
        return True

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Make a request as the user; raises CliError for every answer but a good one."""
        answer = self._send(method, path, headers=self._authorization(), **more)
        if answer.status_code == 401 and self._renew():
            answer = self._send(method, path, headers=self._authorization(), **more)
        return _checked(answer)

    def ask_openly(self, path: str) -> httpx.Response:
        """Make a request that needs no login."""
        return _checked(self._send("GET", path))

    @contextlib.contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[tuple[str, Any]]]:
        """Yield the events of a streamed answer, as pairs of name and data."""
        if self._expired():
            self._renew()
        headers = self._authorization()
        with (
            _reaching(self.url),
            self._http.stream("POST", path, json=body, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                _checked(answer)
            yield _events(answer)

    def _authorization(self) -> dict[str, str]:
        if self._tokens is None:
            raise not_logged_in()
        if self._expired():
            self._renew()
        return {"Authorization": f"Bearer {self._tokens['access_token']}"}

    def _expired(self) -> bool:
        tokens = self._tokens or {}
        return bool(time.time() > float(tokens.get("expires", 0)) - _EARLY_SECONDS)

    def _renew(self) -> bool:
        """Get new tokens; False when another command has just done so or it cannot be done."""
        with self._store.locked():
            stored = self._store.load()
            if stored is None or stored.get("url") != self.url:
                self._tokens = None
                return False
            mine = self._tokens or {}
            if stored.get("access_token") != mine.get("access_token"):
                self._tokens = stored  # another command was faster
                return True
            body = {"refresh_token": stored["refresh_token"]}
            answer = self._send("POST", "/api/auth/refresh", json=body)
            if answer.status_code == 401:
                self._store.clear()
                self._tokens = None
                raise CliError(
                    "session_ended",
                    "Your session has ended.",
                    "Run `prime-spark login`.",
                    status=3,
                )
            self._keep(_result(answer), str(stored.get("username", "")))
            return True

    def _keep(self, tokens: dict[str, Any], username: str) -> None:
        self._tokens = {
            "url": self.url,
            "username": username,
            "access_token": tokens["access_token"],
            "refresh_token": tokens["refresh_token"],
            "expires": time.time() + float(tokens["expires_in"]),
        }
        self._store.save(self._tokens)

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        with _reaching(self.url):
            return self._http.request(method, path, **more)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Say what a person can do when the API cannot be reached."""
    try:
        yield
    except httpx.TimeoutException:
        raise CliError(
            "timeout",
            f"{url} does not answer in time.",
            "Is the VPN up (`wg show`)? A long answer may need more: --timeout.",
            status=5,
        ) from None
    except httpx.UnsupportedProtocol:
        raise CliError(
            "bad_url", f"{url} is not an address of an API.", "Give http://HOST:PORT.", status=2
        ) from None
    except httpx.HTTPError as error:
        raise CliError(
            "unreachable",
            f"{url} cannot be reached: {error or type(error).__name__}",
            "Is the VPN up (`wg show`), and is the address right (--url)?",
            status=5,
        ) from None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        raise CliError(
            "not_the_api",
            f"{answer.url} answers with status {answer.status_code}, and not as the API would.",
            "Is the address right (--url)?",
        )
    raise from_answer(answer.status_code, problem, answer.headers.get("Retry-After"))


def _result(answer: httpx.Response) -> dict[str, Any]:
    result: dict[str, Any] = _checked(answer).json()
    return result


def _events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
