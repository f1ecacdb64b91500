"""The hook's page: who may do what, forms of others, logs that go on, and text that is hostile."""

from __future__ import annotations

import asyncio
import html
import json
import re
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import structlog
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from hook_page import ORIGIN, PASSWORD, Browser, Fleet, changed, example, heading, job, task
from prime_spark.accounts.lockout import LockoutConfig
from prime_spark.accounts.users import Users
from prime_spark.hook.web.events import Events, follow, text_of
from prime_spark.hook.web.logins import form_token
from prime_spark.hook.web.text import diff_html, line_html, marked, plain
from prime_spark.hook.web.view import duration

LOCKOUT = LockoutConfig(failures=3, failures_anywhere=6, first_seconds=30)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, lockout=LOCKOUT)
    yield fleet
    fleet.close()


def browser(fleet: Fleet, name: str, address: str = "10.8.0.9") -> Browser:
    """Return the browser of somebody who is logged in."""
    found = Browser(fleet, address)
    found.enter(name)
    return found


def at_once(people: list[Browser], path: str, forms: list[dict[str, str]]) -> list[int]:
    """Let everybody send a form at the same moment; return the answers' statuses."""

    async def send() -> list[int]:
        answers = await asyncio.gather(
            *(
                person.send("POST", path, data=form, headers={"Origin": ORIGIN})
                for person, form in zip(people, forms, strict=True)
            )
        )
        return [answer.status_code for answer in answers]

    return asyncio.run(send())


# -- who may do what ------------------------------------------------------------------------------

OPEN = {
    ("GET", "/static/{name}"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("GET", "/health"),
    ("GET", "/metrics"),
}
ROLES = {
    ("GET", "/"): "viewer",
    ("GET", "/hosts/{host:path}"): "viewer",
    ("GET", "/runs"): "viewer",
    ("GET", "/runs/{run}"): "viewer",
    ("GET", "/runs/{run}/log.txt"): "viewer",
    ("GET", "/runs/{run}/events"): "viewer",
    ("GET", "/rules"): "viewer",
    ("POST", "/logout"): "viewer",
    ("POST", "/runs/{run}/approve"): "operator",
    ("POST", "/runs/{run}/reject"): "operator",
    ("POST", "/runs/{run}/cancel"): "operator",
    ("POST", "/runs/{run}/again"): "operator",
    ("POST", "/mend"): "operator",
    ("POST", "/start"): "operator",
    ("POST", "/reset"): "admin",
}
RANKS = {"vera": 0, "otto": 1, "anna": 2}
NEEDED = {"viewer": 0, "operator": 1, "admin": 2}


def routes(found: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for route in found:
        if isinstance(route, APIRoute):
            yield from ((method, route.path) for method in route.methods)
        else:
            yield from routes(route.original_router.routes)


def test_every_route_is_for_a_role(fleet: Fleet) -> None:
    assert set(routes(fleet.app.routes)) == OPEN | set(ROLES)


@pytest.mark.parametrize(("method", "path"), sorted(ROLES))
def test_who_may_do_what(method: str, path: str, fleet: Fleet) -> None:
    run = fleet.put(job())
    fleet.start(run, "control-pc-1")
    fleet.queue.end(run, "succeeded")
    place = path.replace("{run}", str(run)).replace("{host:path}", "control-pc-1")
    stranger = Browser(fleet)
    answer = stranger.post(place, {}) if method == "POST" else stranger.get(place)
    if method == "GET" and not path.endswith("/events"):
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/login")
    else:
        assert answer.status_code == 401
    for name, rank in RANKS.items():
        person = browser(fleet, name)
        before = fleet.queue.newest(10)
        answer = person.act(place) if method == "POST" else person.get(place)
        allowed = rank >= NEEDED[ROLES[method, path]]
        assert (answer.status_code == 403) is not allowed, name
        assert answer.status_code < 500
        assert allowed or fleet.queue.newest(10) == before


def test_a_viewer_is_shown_no_way_to_act(fleet: Fleet) -> None:
    runs = example(fleet)
    vera, otto = browser(fleet, "vera"), browser(fleet, "otto")
    paths = [f"/runs/{runs[name]}" for name in ("waiting", "running", "failed")]
    for path in [*paths, "/hosts/control-pc-1", "/rules"]:
        assert actions(otto.get(path).text) - {"/logout", "/login"}, path
        assert actions(vera.get(path).text) == {"/logout"}, path


def actions(page: str) -> set[str]:
    return set(re.findall(r'<form[^>]*method="post"[^>]*action="([^"]+)"', page))


# -- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(p for m, p in ROLES if m == "POST"))
def test_a_form_of_somebody_else_does_nothing(path: str, fleet: Fleet) -> None:
    run = fleet.waiting()
    place = path.replace("{run}", str(run.id))
    anna, other = browser(fleet, "anna"), browser(fleet, "anna")
    token = anna.token()
    fields = {"plan": str(run.plan_hash), "schedule": "drift", "host": "control-pc-1"}
    attempts = {
        "no token": anna.post(place, fields),
        "another session's": anna.post(place, fields | {"form": other.token()}),
        "from elsewhere": anna.post(place, fields | {"form": token}, Origin="http://evil.example"),
        "another port": anna.post(place, fields | {"form": token}, Origin="http://hook:9001"),
        "from nowhere": anna.post(place, fields | {"form": token}, Origin="null"),
        "no address": anna.post(place, fields | {"form": token}, Origin="http://["),
        "no origin": anna.ask("POST", place, data=fields | {"form": token}),
    }
    for what, answer in attempts.items():
        assert answer.status_code == 403, what
        assert "not of your session" in answer.text
    text = anna.ask("POST", place, content=b"{}", headers={"Origin": "http://hook:9000"})
    assert text.status_code == 415
    large = anna.post(place, fields | {"form": token, "more": "x" * 9000})
    assert large.status_code == 413
    assert [each.state for each in fleet.queue.newest(5)] == ["waiting_approval"]
    assert anna.get("/").status_code == 200


# -- logging in -----------------------------------------------------------------------------------


def test_log_in_look_log_out(fleet: Fleet) -> None:
    person = Browser(fleet)
    asked = person.get("/runs?state=failed")
    assert asked.headers["location"] == "/login?next=/runs%3Fstate%3Dfailed"
    page = person.get(asked.headers["location"]).text
    assert 'name="next" value="/runs?state=failed"' in page
    answer = person.log_in("vera", next="/runs?state=failed")
    assert answer.headers["location"] == "/runs?state=failed"
    cookie = next(
        each
        for each in answer.headers.get_list("set-cookie")
        if each.startswith("prime_spark_hook=")
    )
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert person.get("/runs?state=failed").status_code == 200
    token = person.cookies["prime_spark_hook"]
    # Who reads the file cannot use it.
    files = b"".join(path.read_bytes() for path in fleet.folder.glob("page.sqlite*"))
    assert token.encode() not in files
    assert person.act("/logout").status_code == 303
    thief = Browser(fleet)
    thief.cookies.set("prime_spark_hook", token)
    assert thief.get("/").status_code == 303


@pytest.mark.parametrize(
    "wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "\n//x"]
)
def test_a_login_leads_nowhere_else(wanted: str, fleet: Fleet) -> None:
    assert Browser(fleet).log_in("vera", next=wanted).headers["location"] == "/"


def test_a_login_form_of_somebody_else_logs_nobody_in(fleet: Fleet) -> None:
    person = Browser(fleet)
    fields = {"username": "vera", "password": PASSWORD}
    assert person.post("/login", fields).status_code == 403
    fields["form"] = person.token("/login")
    assert person.post("/login", fields, Origin="http://evil.example").status_code == 403
    assert Browser(fleet).post("/login", fields).status_code == 403
    assert person.post("/login", fields).status_code == 303


@pytest.mark.parametrize("cookie", ["", "x", '"\\012"'])
def test_a_login_form_is_bound_to_a_secret_of_our_making(cookie: str, fleet: Fleet) -> None:
    person = Browser(fleet)
    headers = {"Cookie": f"prime_spark_hook_login={cookie}", "Origin": ORIGIN}
    fields = {"username": "vera", "password": PASSWORD, "form": form_token(cookie)}
    assert person.ask("POST", "/login", data=fields, headers=headers).status_code == 403
    assert person.ask("GET", "/login", headers=headers).status_code == 200
    assert len(person.cookies["prime_spark_hook_login"]) == 43


def test_a_wrong_name_and_a_wrong_password_cannot_be_told_apart(fleet: Fleet) -> None:
    answers = [Browser(fleet).log_in(name, "wrong") for name in ("vera", "nobody", "' OR 1=1 --")]
    texts = {re.sub(r'value="[^"]*"', "", answer.text) for answer in answers}
    assert ({answer.status_code for answer in answers}, len(texts)) == ({401}, 1)


def test_what_was_typed_as_a_name_is_not_in_the_journal(fleet: Fleet) -> None:
    with structlog.testing.capture_logs() as lines:
        Browser(fleet).log_in("hunter2", "vera")
        Browser(fleet).log_in("vera", "wrong")
    assert [line["user"] for line in lines if line.get("audit") == "refused"] == ["unknown", "vera"]
    assert "hunter2" not in str(lines)


def test_wrong_passwords_lock_an_account_where_they_came_from(fleet: Fleet) -> None:
    guesser = Browser(fleet, "10.8.0.66")
    assert [guesser.log_in("otto", "wrong").status_code for _ in range(4)] == [401, 401, 401, 429]
    locked = guesser.log_in("otto")
    assert (locked.status_code, 20 < int(locked.headers["retry-after"]) <= 30) == (429, True)
    # Neither for others there, nor for the owner elsewhere.
    assert guesser.log_in("vera").status_code == 303
    assert Browser(fleet).log_in("otto").status_code == 303


def test_guesses_from_many_addresses_lock_an_account_for_all_but_the_known(fleet: Fleet) -> None:
    assert Browser(fleet, "10.8.0.2").log_in("otto").status_code == 303
    for number in range(6):
        assert Browser(fleet, f"10.8.1.{number}").log_in("otto", "wrong").status_code == 401
    assert Browser(fleet, "10.8.1.99").log_in("otto").status_code == 429
    assert Browser(fleet, "10.8.0.2").log_in("otto").status_code == 303


def test_guesses_at_the_same_moment_do_not_slip_through(fleet: Fleet) -> None:
    people = [Browser(fleet) for _ in range(8)]
    fields = {"username": "otto", "password": "wrong"}
    forms = [fields | {"form": person.token("/login")} for person in people]
    answers = at_once(people, "/login", forms)
    assert answers.count(429) == 5
    assert 303 not in answers


def test_an_address_may_not_try_for_ever(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, logins="3/minute")
    person = Browser(fleet)
    names = ("a", "b", "c", "vera")
    assert [person.log_in(name).status_code for name in names] == [401, 401, 401, 429]
    assert Browser(fleet, "10.8.0.10").log_in("vera").status_code == 303


def test_sessions_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, idle_seconds=600, max_seconds=3600)
    now = time.time()

    def at(seconds: float) -> None:
        monkeypatch.setattr("prime_spark.hook.web.logins.time.time", lambda: now + seconds)

    at(0)
    used, left, watched = (browser(fleet, "vera") for _ in range(3))
    for seconds in range(0, 3600, 500):
        at(seconds)
        assert used.get("/").status_code == 200
        if seconds <= 500:
            # A page that loads itself again is not used, neither is a log that goes on.
            assert watched.get("/", headers={"X-Unattended": "1"}).status_code == 200
            assert watched.get("/runs/1/events").status_code == 404
    assert (left.get("/").status_code, watched.get("/").status_code) == (303, 303)
    at(3601)
    assert used.get("/").status_code == 303


def test_a_clock_that_was_ahead_leaves_no_lock_and_no_session(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("prime_spark.hook.web.logins.time.time", lambda: now + 365 * 86400)
    person = Browser(fleet)
    assert [person.log_in("otto", "wrong").status_code for _ in range(4)][-1] == 429
    other = browser(fleet, "vera")
    assert other.get("/").status_code == 200
    monkeypatch.setattr("prime_spark.hook.web.logins.time.time", lambda: now)
    assert person.log_in("otto").status_code == 303
    assert other.get("/").status_code == 303


def test_a_new_password_or_a_user_who_is_gone_ends_sessions(fleet: Fleet) -> None:
    person = browser(fleet, "vera")
    sessions = fleet.page.guard.sessions
    token = person.cookies["prime_spark_hook"]
    assert sessions.user(token) is not None
    users = json.loads(fleet.users_json)
    users["vera"]["password_hash"] = users["vera"]["password_hash"][:-4] + "AAAA"
    sessions.users = Users(json.dumps(users))
    assert sessions.user(token) is None
    del users["vera"]
    sessions.users = Users(json.dumps(users))
    assert sessions.user(token) is None


# -- decisions ------------------------------------------------------------------------------------


def test_a_plan_is_shown_approved_and_applied_once(fleet: Fleet) -> None:
    run = fleet.waiting("control-pc-1", "nas-1")
    otto = browser(fleet, "otto")
    page = otto.get(f"/runs/{run.id}").text
    assert "Approve and apply" in page
    assert '<span class="add">+  &#34;log_level&#34;: &#34;debug&#34;,' in page
    assert "ansible-playbook --inventory inventories/production --check --diff --tags api" in page
    assert otto.act(f"/runs/{run.id}/approve", plan="0" * 64).status_code == 409
    done = otto.act(f"/runs/{run.id}/approve", plan=str(run.plan_hash))
    assert (done.status_code, done.headers["location"]) == (303, f"/runs/{run.id + 1}")
    assert fleet.get(run.id).decided_by == "otto"
    assert fleet.woken == 1
    again = browser(fleet, "anna").act(f"/runs/{run.id}/approve", plan=str(run.plan_hash))
    assert (again.status_code, "approved by otto" in again.text) == (409, True)
    page = otto.get(f"/runs/{run.id}").text
    assert f'href="/runs/{run.id + 1}">run #{run.id + 1}</a>' in page
    assert "/approve" not in page


def test_only_what_is_shown_can_be_approved(fleet: Fleet) -> None:
    run = fleet.waiting()
    otto = browser(fleet, "otto")
    directory = fleet.directory(run.id)
    plan = directory.plan()
    assert plan is not None
    directory.write_plan(msgspec.structs.replace(plan, hash="f" * 64))
    page = otto.get(f"/runs/{run.id}").text
    sent = re.search(r'/approve">.*?name="plan" value="(\w+)"', page, re.DOTALL)
    assert sent is not None
    assert otto.act(f"/runs/{run.id}/approve", plan=sent[1]).status_code == 409
    (directory.path / "plan.json").unlink()
    page = otto.get(f"/runs/{run.id}").text
    assert f"/runs/{run.id}/approve" not in actions(page)
    assert f"/runs/{run.id}/reject" in actions(page)


def test_two_approvals_at_once_start_one_run(fleet: Fleet) -> None:
    run = fleet.waiting()
    people = [browser(fleet, name) for name in ("otto", "anna", "otto", "anna")]
    forms = [{"form": person.token(), "plan": str(run.plan_hash)} for person in people]

    answers = at_once(people, f"/runs/{run.id}/approve", forms)
    assert sorted(answers) == [303, 409, 409, 409]
    assert [each.applies for each in fleet.queue.newest(5)] == [run.id, None]


def test_what_has_expired_has_no_buttons(fleet: Fleet) -> None:
    run = fleet.waiting()
    otto = browser(fleet, "otto")
    with fleet.queue.transaction() as db:
        db.execute("UPDATE runs SET expires = ?", (time.time() - 1,))
    page = otto.get(f"/runs/{run.id}").text
    assert "Its time for approval is over" in page
    assert not {each for each in actions(page) if each.endswith(("approve", "reject"))}
    assert otto.act(f"/runs/{run.id}/approve", plan=str(run.plan_hash)).status_code == 409


def test_reject_cancel_again_start_mend_reset(fleet: Fleet) -> None:
    runs = example(fleet)
    otto, anna = browser(fleet, "otto"), browser(fleet, "anna")
    waiting = fleet.get(runs["waiting"])
    assert otto.act(f"/runs/{waiting.id}/reject", plan=str(waiting.plan_hash)).status_code == 303
    assert fleet.get(waiting.id).state == "rejected"
    assert otto.act(f"/runs/{runs['running']}/cancel").status_code == 303
    assert "being cancelled" in otto.get(f"/runs/{runs['running']}").text
    assert otto.act(f"/runs/{runs['deployed']}/cancel").status_code == 409

    def started(answer: Any) -> Any:
        assert answer.status_code == 303
        return fleet.get(int(answer.headers["location"].rpartition("/")[2]))

    failed = started(otto.act(f"/runs/{runs['failed']}/again", hosts="failed"))
    assert (failed.job.limit, failed.again_of) == ("primecore4,spark-agent-1", runs["failed"])
    assert started(otto.act(f"/runs/{runs['failed']}/again")).job.limit is None
    assert started(otto.act("/start", schedule="drift")).triggered_by == "user:otto"
    assert otto.act("/start", schedule="nothing").status_code == 409
    assert "Plan to mend" in otto.get("/hosts/control-pc-1").text
    plan = started(otto.act("/mend", host="control-pc-1", role="api"))
    assert (plan.job.limit, plan.job.tags, plan.job.plans) == ("control-pc-1", ["api"], True)
    assert otto.act("/mend", host="control-pc-1", role="nothing").status_code == 409
    with fleet.queue.transaction() as db:
        db.execute("INSERT INTO breakers VALUES ('mend-api', 'control-pc-1', 2, 0)")
    assert "Let it start again" not in otto.get("/").text
    assert "Let it start again" in anna.get("/").text
    assert anna.act("/reset", rule="mend-api", host="control-pc-1").status_code == 303
    assert fleet.queue.breakers() == []


# -- what is shown --------------------------------------------------------------------------------


def test_the_fleet_and_lists_of_runs(fleet: Fleet) -> None:
    runs = example(fleet)
    vera = browser(fleet, "vera")
    page = vera.get("/").text
    # What needs somebody comes first.
    found = re.findall(r'<h2><a href="/hosts/([\w-]+)">', page)
    assert found == ["primecore4", "control-pc-1", "nas-1", "primecore1", "spark-agent-1"]
    assert "content differs" in page
    assert f'href="/runs/{runs["waiting"]}">Look at plan' in page
    for state, names in {
        "waiting": ["waiting"],
        "active": ["queued", "running"],
        "failed": ["failed"],
        "other": ["rejected"],
    }.items():
        listed = re.findall(r'<a href="/runs/(\d+)"><span', vera.get(f"/runs?state={state}").text)
        assert [int(number) for number in listed] == [runs[name] for name in names], state
    page = vera.get(f"/runs/{runs['failed']}").text
    assert "spark-agent-1: systemctl restart prime-spark-agent failed" in page
    assert "1 task without a change" in page
    page = vera.get("/rules").text
    for text in ("repository.full_name", "every 1 h", "needs approval", "&lt;labels.host&gt;"):
        assert text in page


def test_many_short_lines_take_no_more_memory_than_their_text(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    text = "ab\r\n" * 100_000
    event = changed("h1")
    event["stdout"] = text
    event["event_data"]["res"]["diff"] = {"before": "", "after": text}
    path.write_bytes(msgspec.json.encode(event) + b"\n")
    tracemalloc.start()
    try:
        seen = Events().seen(path)
        assert sum(1 for _ in text_of(path)) == 100_001
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [str(line) for line in seen.lines[198:]] == ["ab", "ab", "… 99801 more lines"]
    assert seen.changes[0].diff.endswith("too large to compare")
    # A line of its own takes some 60 bytes.
    assert most < 8 * len(text)


def test_many_runs_have_pages(fleet: Fleet) -> None:
    for number in range(120):
        fleet.put(job(variables={"number": number}))
    vera = browser(fleet, "vera")
    path, seen = "/runs", []
    while path:
        page = vera.get(path).text
        seen += re.findall(r'<a href="/runs/(\d+)"><span', page)
        older = re.search(r'href="([^"]+)">Older', page)
        path = html.unescape(older[1]) if older else ""
    assert [int(number) for number in seen] == list(range(120, 0, -1))


def test_search_in_the_log_and_the_whole_log_as_text(fleet: Fleet) -> None:
    run = fleet.put(job())
    lines = [{"stdout": f"\x1b[0;32mline {number}\x1b[0m"} for number in range(3000)]
    fleet.start(run, "h1", events=lines)
    fleet.queue.end(run, "succeeded")
    vera = browser(fleet, "vera")
    page = vera.get(f"/runs/{run}").text
    assert "The first 2000 lines are left out" in page
    page = vera.get(f"/runs/{run}?find=LINE+12").text
    assert ("111 lines with" in page, "<mark>line 12</mark>34" in page) == (True, True)
    text = vera.get(f"/runs/{run}/log.txt")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text.splitlines() == [f"line {number}" for number in range(3000)]


def test_what_a_browser_may_do_with_our_answers(fleet: Fleet) -> None:
    vera = browser(fleet, "vera")
    for path in ("/login", "/", "/nothing", "/static/page.css", "/static/nothing", "/health"):
        headers = vera.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    assert vera.get("/").headers["cache-control"] == "no-store"
    page = vera.get("/").text
    # No request goes elsewhere, and nothing is written into the page that the policy would refuse.
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", page)


@pytest.mark.parametrize(
    "path", ["/runs/0", "/runs/99", f"/runs/{10**30}", f"/runs/{-(10**30)}", "/hosts/nobody", "/x"]
)
def test_what_is_not_there(path: str, fleet: Fleet) -> None:
    assert browser(fleet, "vera").get(path).status_code == 404


@pytest.mark.parametrize("number", [-(10**30), -1, 0, 99, 10**30])
def test_nothing_can_be_done_with_a_run_that_is_not_there(number: int, fleet: Fleet) -> None:
    otto = browser(fleet, "otto")
    for act in ("approve", "reject", "cancel", "again"):
        answer = otto.act(f"/runs/{number}/{act}")
        assert (answer.status_code, "is not known" in answer.text) == (409, True), act


def test_what_cannot_be_asked_for(fleet: Fleet) -> None:
    vera = browser(fleet, "vera")
    for path in ("/runs/x", "/runs?before=x", "/runs/-1/events?start=x"):
        answer = vera.get(path)
        assert (answer.status_code, "<h1>" in answer.text) == (422, True), path
    assert vera.get("/runs?state=%00&before=-5").status_code == 200


def test_a_disk_that_is_full_keeps_nobody_from_looking(fleet: Fleet) -> None:
    run = fleet.waiting()
    otto, late = browser(fleet, "otto"), Browser(fleet)
    form = late.token("/login")
    with fleet.store.transaction() as db:
        db.execute("UPDATE sessions SET used = used - 3600")
    for file in (fleet.store, fleet.queue):
        with file.transaction() as db:
            db.execute("PRAGMA query_only = 1")
    for path in ("/", "/runs", f"/runs/{run.id}"):
        assert otto.get(path).status_code == 200
    answer = otto.act(f"/runs/{run.id}/approve", plan=str(run.plan_hash))
    assert (answer.status_code, "cannot be stored now" in answer.text) == (503, True)
    fields = {"form": form, "username": "vera", "password": PASSWORD}
    assert late.post("/login", fields).status_code == 503


# -- hostile text ---------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;title\x07\x1b[2J\x1b[31mred\x1b[0m",
    "\u202egnp.exe",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x08\r",
    "x" * 10_000_000,
)


ELEMENTS = {
    *("caption", "dd", "details", "div", "dl", "dt", "li", "mark", "ol", "pre", "summary", "time"),
}


class Tags(HTMLParser):
    """What a browser would make of a page: the names of elements, their attributes, the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_hostile_text_does_no_harm(text: str, fleet: Fleet) -> None:
    name = text[:300]
    values = {"variables": {"branch": text[:100_000], "author": name}}
    run = fleet.put(
        job(approval_seconds=86400.0, ref="refs/heads/main", **values), f"source:{name}"
    )
    part = text[:100_000]
    event = changed("control-pc-1", item=part)
    event["stdout"] = text
    event["event_data"]["task"] = part
    event["event_data"]["res"] |= {"diff": {"before": "", "after": text}, "item": part}
    bad = task(2, part, name, {"failed": True, "msg": part, "stderr": part})
    fleet.start(run, name, "control-pc-1")
    plan = fleet.plan(run, [heading(part), event, bad])
    fleet.report(run, {name: {name: [part]}, "control-pc-1": {"api": [part]}})
    fleet.queue.reject(run, name, plan.hash)
    fleet.queue.accept("github", [((f"id:{name}",), job("other", limit=None, **values))])
    otto = browser(fleet, "otto")
    pages = [
        f"/runs/{run}",
        f"/runs/{run}?find={quote(name[:5])}",
        "/",
        "/runs",
        "/hosts/control-pc-1",
    ]
    links = {
        each for path in pages for each in re.findall(r'href="(/hosts/[^"]*)"', otto.get(path).text)
    }
    usual = Tags("".join(otto.get(path).text for path in ("/rules", "/login"))).found | ELEMENTS
    for path in [*pages, *(html.unescape(link) for link in links)]:
        answer = otto.get(path)
        assert answer.status_code in {200, 404}, path
        page = Tags(answer.text)
        assert page.found <= usual, path
        assert not {each for each in page.attributes if each.startswith("on")}
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", answer.text), path
        assert "49" not in page.text if "7 * 7" in text else True
        assert len(answer.text) < 400_000, path
    log = otto.get(f"/runs/{run}/log.txt").text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", log)


@given(st.text() | st.text("\x1b[]0123456789;mK<>&\"'ab\u202e\n"))
def test_a_line_of_a_terminal_is_text_in_spans(text: str) -> None:
    for made in (line_html(text), diff_html(text), marked(text, "a")):
        page = Tags(str(made))
        assert page.found <= {"span", "mark"}
        assert page.attributes <= {"class"}
        assert "\x1b" not in page.text
    assert Tags(str(line_html(text))).text == plain(text)


@pytest.mark.parametrize("hidden", "\xad\u200c\u200d\u2028\u2062\u3164\ufe0f\U000e0041")
def test_no_two_names_look_the_same(hidden: str) -> None:
    assert plain(f"root{hidden}") == "root\ufffd"


def test_colours_of_a_terminal_are_classes() -> None:
    line = "a\x1b[0;32mgreen\x1b[1mbold\x1b[0m\x1b[38;5;31mplain\x1b[2K\x1b[31"
    assert str(line_html(line)) == (
        'a<span class="c2">green</span><span class="b c2">bold</span>plain'
    )


def test_what_is_left_out_of_a_difference_is_told() -> None:
    shown = Tags(str(diff_html("+\n" * 3000 + "+all that matters"))).text
    assert shown.endswith("+\n… 1001 more lines\n")
    assert "more lines" not in diff_html("+\n" * 1999)


def test_spans_of_time() -> None:
    spans = {0.04: "0.0 s", 59.4: "59 s", 60: "1 min", 3599.6: "1 h", 90061: "1 d 1 h"}
    assert {seconds: duration(seconds) for seconds in spans} == spans


# -- the live log ---------------------------------------------------------------------------------


def said(stream: str) -> list[tuple[int, str]]:
    """Return the offsets and the text of a stream's events."""
    found = re.findall(r"^id: (\d+)\nevent: log\ndata: (.*)$", stream, re.MULTILINE)
    return [(int(offset), Tags(json.loads(data)).text) for offset, data in found]


def test_a_stream_goes_on_where_it_was(fleet: Fleet) -> None:
    run = fleet.put(job())
    fleet.start(run, "h1", events=[{"stdout": f"<line {number}>"} for number in range(50)])
    fleet.queue.end(run, "succeeded")
    vera = browser(fleet, "vera")
    path = f"/runs/{run}/events"
    whole = vera.get(path)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text.endswith("event: end\ndata: ended\n\n")
    ((end, text),) = said(whole.text)
    assert text.split("\n") == [f"<line {number}>" for number in range(50)]
    assert said(vera.get(f"{path}?start={end}").text) == []
    line = len(fleet.directory(run).events.read_bytes().splitlines(keepends=True)[0])
    ((_, rest),) = said(vera.get(path, headers={"Last-Event-ID": str(line)}).text)
    assert rest.split("\n") == [f"<line {number}>" for number in range(1, 50)]
    # What is no beginning of an event is not believed.
    for wrong in ("7", "-1", "x", "9" * 15, "9" * 20, str(end + 1), "\u0661"):
        answer = vera.get(path, headers={"Last-Event-ID": wrong.encode()})
        assert said(answer.text) == said(whole.text), wrong
    for wrong in (10**30, -(10**30)):
        assert said(vera.get(f"{path}?start={wrong}").text) == said(whole.text), wrong


def test_a_stream_ends_with_its_session(fleet: Fleet) -> None:
    run = fleet.put(job())
    fleet.start(run, "h1", events=[{"stdout": "one"}])
    vera = browser(fleet, "vera")
    token = vera.cookies["prime_spark_hook"]

    async def watch() -> str:
        stream = asyncio.create_task(vera.send("GET", f"/runs/{run}/events"))
        while fleet.page._streams == 0:
            await asyncio.sleep(0)
        fleet.page.guard.sessions.end(token)
        return (await asyncio.wait_for(stream, 20)).text

    assert asyncio.run(watch()).endswith("event: end\ndata: ended\n\n")
    assert fleet.page._streams == 0


def test_a_stream_brings_what_is_written_meanwhile_and_ends_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    ended: list[str] = []
    stop = asyncio.Event()

    async def play() -> list[str]:
        pieces = follow(path, 0, lambda: ended[0] if ended else None, stop)
        found = []

        async def next_piece() -> None:
            found.append(await asyncio.wait_for(anext(pieces), 20))

        with path.open("ab", buffering=0) as stream:
            stream.write(b'{"stdout": "one"}\n{"stdout": "tw')
            await next_piece()
            # The rest of a line that was not complete, and the end of the run.
            stream.write(b'o"}\nno JSON\n')
            ended.append("ended")
            await next_piece()
            await next_piece()
        return found

    pieces = asyncio.run(play())
    assert [text for piece in pieces[:2] for _, text in said(piece)] == ["one", "two"]
    assert pieces[2] == "event: end\ndata: ended\n\n"


def test_a_stream_ends_with_the_service(tmp_path: Path) -> None:
    async def play() -> list[str]:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        pieces = follow(tmp_path / "none", 0, lambda: None, stop)
        return [piece async for piece in pieces]

    assert asyncio.run(play()) == []


# -- the wheel ------------------------------------------------------------------------------------


def test_templates_and_styles_are_in_the_wheel() -> None:
    from hatchling.builders.wheel import WheelBuilder  # noqa: PLC0415

    root = Path(__file__).parents[2]
    packed = {each.distribution_path for each in WheelBuilder(str(root)).recurse_included_files()}
    web = root / "src" / "prime_spark" / "hook" / "web"
    wanted = {str(path.relative_to(root / "src")) for path in web.glob("*/*.*")}
    assert {path for path in wanted if "__pycache__" not in path} <= packed
