"""The routes of the page. Forms are plain POSTs, and nothing needs JavaScript."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from pydantic import AfterValidator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prime_spark.accounts.users import Users
from prime_spark.hook.directory import RunDirectory
from prime_spark.hook.drift import HostDrift
from prime_spark.hook.firing import Alert
from prime_spark.hook.people import People, Person
from prime_spark.hook.queue import DecisionError, Run
from prime_spark.hook.rules import Action, Condition
from prime_spark.hook.settings import HookConfig, PageConfig
from prime_spark.hook.web.events import Events, follow, found_in, text_of
from prime_spark.hook.web.guard import (
    Caller,
    Form,
    Guard,
    LoginNeededError,
    PageError,
    address_of,
    login_path,
)
from prime_spark.hook.web.logins import Store
from prime_spark.hook.web.text import plain, short
from prime_spark.hook.web.view import context, environment, static_files
from prime_spark.vpn import PeerStatus, VPNManager, VPNStatusError

_log = structlog.get_logger(__name__)

_PAGE_RUNS = 50
# All that are kept, as a rule; the page looks no further back.
_NEWEST = 1000
_FIND_CHARS = 200
_MAX_STREAMS = 40

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # `no-referrer` would take the origin out of our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FILTERS: dict[str, tuple[str, frozenset[str]]] = {
    "waiting": ("Waiting", frozenset({"waiting_approval"})),
    "active": ("Active", frozenset({"queued", "starting", "running"})),
    "failed": (
        "Failed",
        frozenset({"failed", "unreachable", "timed_out", "lost", "plan_changed"}),
    ),
    "succeeded": ("Succeeded", frozenset({"succeeded", "approved"})),
    "other": ("Not run", frozenset({"cancelled", "skipped", "rejected", "expired"})),
}


# Returns the alerts that fire, None while nobody knows.
AlertsKnown = Callable[[], Sequence[Alert] | None]

# A number that SQLite cannot hold is that of no run.
Number = Annotated[int, AfterValidator(lambda number: min(max(number, 0), 2**63 - 1))]


class Page:
    """The page of a hook; `stop` is set when the service ends."""

    def __init__(
        self,
        config: HookConfig,
        page: PageConfig,
        users: Users,
        people: People,
        store: Store,
        *,
        stop: asyncio.Event,
        alerts: AlertsKnown | None = None,
    ) -> None:
        self._config = config
        self._alerts = alerts
        self._vpn = VPNManager(config.vpn_status)
        self._queue = people.queue
        self._rules = people.rules
        self._people = people
        self.guard = Guard(page, users, store)
        self._stop = stop
        self._runs = Path(config.state) / "runs"
        self._events = Events()
        self._streams = 0
        self._templates = environment()

    def mount(self, app: FastAPI) -> None:
        """Add the page to an application, below all that this serves already."""
        app.add_middleware(_SafeHeaders)
        app.add_exception_handler(PageError, self._refuse)
        app.add_exception_handler(HTTPException, self._not_found)
        app.add_exception_handler(RequestValidationError, self._unreadable)
        app.add_exception_handler(sqlite3.Error, self._not_stored)
        app.include_router(self._public())
        app.include_router(self._looks())
        app.include_router(self._acts())

    # -- for everybody ------------------------------------------------------------------------

    def _public(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        files = static_files()

        @router.get("/static/{name}")
        async def static(name: str) -> Response:
            if name not in files:
                raise HTTPException(404)
            data, kind = files[name]
            headers = {"Cache-Control": "public, max-age=31536000, immutable"}
            return Response(data, 200, headers, media_type=kind)

        @router.get("/login")
        async def login_page(request: Request, next: str = "/") -> Response:  # noqa: A002
            return self._login(request, next)

        @router.post("/login")
        async def login(request: Request) -> Response:
            try:
                return await self.guard.log_in(request)
            except PageError as error:
                return self._login(request, "/", error)

        return router

    def _login(self, request: Request, wanted: str, error: PageError | None = None) -> Response:
        form, bind = self.guard.login_form(request)
        status = 200 if error is None else error.status
        response = self._render(
            "login.html", None, status, form=form, wanted=wanted, error=str(error or "")
        )
        if error is not None and error.seconds:
            response.headers["Retry-After"] = str(error.seconds)
        bind(response)
        return response

    # -- to look at ---------------------------------------------------------------------------

    def _looks(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        viewer = Depends(self.guard.may("viewer"))

        @router.get("/")
        def fleet(caller: Caller = viewer) -> Response:
            return self._fleet(caller)

        @router.get("/hosts/{host:path}")
        def host(host: str, caller: Caller = viewer) -> Response:
            return self._host(caller, host)

        @router.get("/runs")
        def runs(state: str = "", before: int | None = None, caller: Caller = viewer) -> Response:
            return self._list(caller, state, before)

        @router.get("/runs/{run}")
        def run(run: Number, find: str = "", caller: Caller = viewer) -> Response:
            return self._run(caller, self._one(run), plain(find[:_FIND_CHARS]))

        @router.get("/runs/{run}/log.txt", dependencies=[viewer])
        def log(run: Number) -> Response:
            return StreamingResponse(
                text_of(self._directory(self._one(run)).events), media_type="text/plain"
            )

        @router.get("/runs/{run}/events", dependencies=[viewer])
        async def events(request: Request, run: Number, start: Number = 0) -> Response:
            return await self._stream(request, run, start)

        @router.get("/rules")
        def rules(caller: Caller = viewer) -> Response:
            return self._list_rules(caller)

        return router

    def _fleet(self, caller: Caller) -> Response:
        drift = {each.host: each for each in self._people.drift.latest()}
        newest = self._queue.newest(_NEWEST)
        last: dict[str, Run] = {}
        for run in newest:
            for host in run.hosts:
                last.setdefault(host, run)
        firing = None if self._alerts is None else self._alerts()
        peers = self._peers()
        names = {*drift, *last}
        hosts = [
            {
                "name": host,
                "drift": drift.get(host),
                "run": last.get(host),
                "peer": peers.get(host),
                "alerts": [alert for alert in firing or () if alert.host == host],
            }
            for host in sorted(names)
        ]
        # What needs somebody comes first.
        hosts.sort(key=_calm)
        states = [_drift_state(entry["drift"]) for entry in hosts]
        return self._render(
            "fleet.html",
            caller,
            hosts=hosts,
            counts={state: states.count(state) for state in dict.fromkeys(states)},
            reported=max((each.at for each in drift.values()), default=None),
            report=max((each.run for each in drift.values()), default=None),
            waiting=self._queue.waiting(),
            active=self._queue.active(),
            breakers=self._queue.breakers(),
            firing=firing,
            asks=self._alerts is not None,
            others=[alert for alert in firing or () if alert.host not in names],
        )

    def _peers(self) -> dict[str, PeerStatus]:
        """Return the peers of this host's VPN; of a hub these are all other hosts."""
        try:
            return {peer.name: peer for peer in self._vpn.get_peer_status()}
        except VPNStatusError:
            return {}

    def _host(self, caller: Caller, host: str) -> Response:
        history = self._people.drift.history(host)
        runs = [run for run in self._queue.newest(_NEWEST) if host in run.hosts][:_PAGE_RUNS]
        firing = None if self._alerts is None else self._alerts()
        alerts = [alert for alert in firing or () if alert.host == host]
        if not history and not runs:
            raise PageError(404, "No run and no report of drift has this host.")
        return self._render(
            "host.html",
            caller,
            host=host,
            history=history,
            runs=runs,
            peer=self._peers().get(host),
            alerts=alerts,
            mends=self._rules.mend is not None,
        )

    def _list(self, caller: Caller, state: str, before: int | None) -> Response:
        every = self._queue.newest(_NEWEST)
        counts = {
            key: sum(run.state in states for run in every) for key, (_, states) in _FILTERS.items()
        }
        _, wanted = _FILTERS.get(state, ("", None))
        found = [
            run
            for run in every
            if (wanted is None or run.state in wanted) and (before is None or run.id < before)
        ]
        return self._render(
            "runs.html",
            caller,
            runs=found[:_PAGE_RUNS],
            older=found[_PAGE_RUNS - 1].id if len(found) > _PAGE_RUNS else None,
            state=state if wanted is not None else "",
            filters=[(key, title, counts[key]) for key, (title, _) in _FILTERS.items()],
            total=len(every),
            newest=before is None,
        )

    def _run(self, caller: Caller, run: Run, find: str) -> Response:
        directory = self._directory(run)
        seen = self._events.seen(directory.events)
        plan = directory.plan()
        found, more = found_in(directory.events, find) if find else ([], False)
        failed = [host for host, result in run.results.items() if result in _FAILURES]
        return self._render(
            "run.html",
            caller,
            run=run,
            command=self._command(run),
            deliveries=self._queue.deliveries(run.id),
            plan=plan,
            changes=plan.changes if plan is not None else seen.changes,
            seen=seen,
            hosts={host: seen.hosts.get(host, {}) for host in {*run.hosts, *seen.hosts}},
            failed=failed,
            find=find,
            found=found,
            more=more,
        )

    def _command(self, run: Run) -> str:
        """Return what is run, as one would type it in the checkout."""
        if run.job is None:
            return ""
        variables = run.job.variables
        arguments = ["ansible-playbook", "--inventory", self._config.ansible.inventory]
        if variables:
            # In ASCII: all of it can be seen, and means the same.
            arguments += ["--extra-vars", json.dumps(variables)]
        return short(shlex.join([*arguments, *run.job.arguments()]))

    async def _stream(self, request: Request, number: int, start: int) -> Response:
        run = await asyncio.to_thread(self._one, number)
        if self._streams >= _MAX_STREAMS:
            raise PageError(503, "Too many logs are followed just now.", 5)
        given = request.headers.get("last-event-id", "")
        offset = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else start

        def state() -> str | None:
            if self.guard.caller(request) is None:
                return "ended"  # The page loads itself again, and leads to the login.
            now = self._queue.get(run.id)
            return None if now is not None and now.ended is None and not _waits(now) else "ended"

        async def pieces() -> Any:
            self._streams += 1
            log = follow(self._directory(run).events, offset, state, self._stop)
            try:
                async with contextlib.aclosing(log):
                    async for piece in log:
                        yield piece
            finally:
                self._streams -= 1

        return StreamingResponse(pieces(), media_type="text/event-stream")

    def _list_rules(self, caller: Caller) -> Response:
        last = self._queue.scheduled()
        schedules = [
            (each, last.get(each.name), each.next(last[each.name]) if each.name in last else None)
            for each in self._rules.schedules
        ]
        return self._render(
            "rules.html",
            caller,
            rules=self._rules,
            schedules=schedules,
            breakers=self._queue.breakers(),
            starts=_starts,
            conditions=_conditions,
        )

    # -- to do --------------------------------------------------------------------------------

    def _acts(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        viewed = Depends(self.guard.sent_by("viewer"))
        operated = Depends(self.guard.sent_by("operator"))
        administered = Depends(self.guard.sent_by("admin"))

        @router.post("/logout")
        async def logout(form: Form = viewed) -> Response:
            return await self.guard.log_out(form)

        @router.post("/runs/{run}/approve")
        def approve(request: Request, run: Number, form: Form = operated) -> Response:
            plan = form.fields.get("plan", "")
            return self._do(lambda: self._people.approve(_person(request, form), run, plan))

        @router.post("/runs/{run}/reject")
        def reject(request: Request, run: Number, form: Form = operated) -> Response:
            plan = form.fields.get("plan", "")
            return self._do(lambda: self._people.reject(_person(request, form), run, plan), run)

        @router.post("/runs/{run}/cancel")
        def cancel(request: Request, run: Number, form: Form = operated) -> Response:
            return self._do(lambda: self._people.cancel(_person(request, form), run), run)

        @router.post("/runs/{run}/again")
        def again(request: Request, run: Number, form: Form = operated) -> Response:
            only = form.fields.get("hosts") == "failed"
            who = _person(request, form)
            return self._do(lambda: self._people.again(who, run, failed_only=only))

        @router.post("/mend")
        def mend(request: Request, form: Form = operated) -> Response:
            host, role = form.fields.get("host", ""), form.fields.get("role", "")
            return self._do(lambda: self._people.mend(_person(request, form), host, role))

        @router.post("/start")
        def start(request: Request, form: Form = operated) -> Response:
            name = form.fields.get("schedule", "")
            return self._do(lambda: self._people.start(_person(request, form), name))

        @router.post("/reset")
        def reset(request: Request, form: Form = administered) -> Response:
            rule, host = form.fields.get("rule", ""), form.fields.get("host", "")
            who = _person(request, form)
            return self._do(lambda: self._people.reset(who, rule, host), where="/rules")

        return router

    def _do(
        self, act: Callable[[], int | None], run: int | None = None, where: str = ""
    ) -> Response:
        """Act, and show the run that came of it or the one that it is about."""
        try:
            started = act()
        except DecisionError as error:
            raise PageError(409, _sentence(str(error))) from None
        return RedirectResponse(where or f"/runs/{run if started is None else started}", 303)

    # -----------------------------------------------------------------------------------------

    def _one(self, number: int) -> Run:
        run = self._queue.get(number)
        if run is None:
            raise PageError(404, "There is no such run, or it is no longer kept.")
        return run

    def _directory(self, run: Run) -> RunDirectory:
        return RunDirectory(self._runs / str(run.id))

    def _render(
        self, template: str, caller: Caller | None, status: int = 200, **values: Any
    ) -> Response:
        text = self._templates.get_template(template).render(context(me=caller, **values))
        return HTMLResponse(text, status, {"Cache-Control": "no-store"})

    def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, PageError)  # noqa: S101 (it is registered for no other)
        if isinstance(error, LoginNeededError) and request.method in {"GET", "HEAD"}:
            if request.url.path.endswith("/events"):
                return Response(str(error), 401, media_type="text/plain")
            return RedirectResponse(login_path(request), 303)
        caller = self.guard.caller(request)
        response = self._render(
            "error.html", caller, error.status, message=str(error), code=error.status
        )
        if error.seconds:
            response.headers["Retry-After"] = str(error.seconds)
        return response

    def _unreadable(self, request: Request, _error: Exception) -> Response:
        return self._refuse(request, PageError(422, "That is nothing that one can ask for."))

    def _not_stored(self, _request: Request, error: Exception) -> Response:
        _log.error("the page cannot read or write", error=str(error))
        message = "This cannot be stored now. Look at the disk of the hook's host."
        return self._render("error.html", None, 503, message=message, code=503)

    def _not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for no other)
        if request.url.path.startswith("/hooks/"):
            return Response(
                msgspec.json.encode({"detail": error.detail}),
                error.status_code,
                error.headers,
                media_type="application/json",
            )
        message = "There is no such page." if error.status_code == 404 else str(error.detail)
        return self._refuse(request, PageError(error.status_code, message))


class _SafeHeaders:
    """ASGI middleware: what a browser may do with our answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(key.lower().encode(), value.encode()) for key, value in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


_CALM = {"unreachable": 1, "unknown": 2, "in sync": 3}
_FAILURES = frozenset({"failed", "unreachable"})


def _waits(run: Run) -> bool:
    """Whether nothing happens until somebody decides."""
    return run.state == "waiting_approval"


def _person(request: Request, form: Form) -> Person:
    return Person(form.caller.user.name, address_of(request))


def _calm(entry: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the place of a host among the others: one with alerts comes before its equals."""
    state = _drift_state(entry["drift"])
    alerts: list[Alert] = entry["alerts"]
    return (min(_CALM.get(state, 0), 0 if alerts else 9), not alerts)


def _drift_state(drift: object) -> str:
    return drift.state if isinstance(drift, HostDrift) else "unknown"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _starts(run: Action) -> str:
    """Return what a rule starts, as a command; values of the body by their fields."""
    command = ["ansible-playbook"]
    command += ["--check", "--diff"] if run.check else []
    command += ["--tags", ",".join(run.tags)] if run.tags else []
    if run.limit is not None:
        limit = run.limit if isinstance(run.limit, str) else f"<{run.limit.field}>"
        command += ["--limit", limit]
    return " ".join([*command, run.playbook])


def _conditions(conditions: dict[str, Condition]) -> Iterator[tuple[str, str, str]]:
    """Yield fields, what they have to be, and the values."""
    for path, condition in conditions.items():
        for how, value in msgspec.to_builtins(condition).items():
            shown = value if isinstance(value, list) else [value]
            yield path, how, ", ".join(map(str, shown))
