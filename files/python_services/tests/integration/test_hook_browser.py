"""The hook's page in Debian's Chromium: a phone and a desktop, light and dark, by keyboard."""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_hook import PATIENCE, Hook, serving

from hook_deliveries import SECRETS
from hook_page import PASSWORD, Fleet, example, served, users_json
from support import eventually, free_port

SIZES = {"phone": (390, 844), "desktop": (1280, 860)}
# What the accessibility guidelines ask for up to level AA, and what is good besides.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    assert program, "Debian's chromium is missing: lab/install-tools installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


@pytest.fixture
def address(fleet: Fleet) -> Iterator[str]:
    with served(fleet) as address:
        yield address


class Person:
    """Somebody in front of a browser; what its console says is an error."""

    def __init__(self, chromium: Browser, address: str, size: str, **options: Any) -> None:
        width, height = SIZES[size]
        self.address = address
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        viewport = {"width": width, "height": height}
        self.context = chromium.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith(self.address):
            self.elsewhere.append(request.url)

    def log_in(self, name: str) -> None:
        self.page.goto(f"{self.address}/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.get_by_role("heading", name="Fleet")).to_be_visible()

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)

    def check(self) -> None:
        """See that the page is accessible, and no wider than the screen."""
        found = Axe().run(self.page, options={"runOnly": RULES}).response["violations"]
        assert not found, [(each["id"], each["nodes"][0]["html"]) for each in found]
        width = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert width <= 0, self.page.url

    def done(self) -> None:
        assert self.errors == []
        assert self.elsewhere == []
        self.context.close()


@pytest.mark.parametrize(("size", "scheme"), [("phone", "light"), ("desktop", "dark")])
def test_pages_are_accessible_and_fit(
    size: str, scheme: Any, chromium: Browser, fleet: Fleet, address: str
) -> None:
    runs = example(fleet)
    person = Person(chromium, address, size, color_scheme=scheme, reduced_motion="reduce")
    person.open("/login")
    person.check()
    person.log_in("otto")
    person.check()
    dark = person.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(15, 19, 25)") == (scheme == "dark")
    paths = ["/runs", "/rules", "/hosts/control-pc-1", "/nothing"]
    for path in [*paths, *(f"/runs/{runs[name]}" for name in ("waiting", "failed", "running"))]:
        person.open(path)
        person.check()
    # The one page that is not there is an error for the console, too.
    assert len(person.errors) == 1
    person.errors.clear()
    person.done()


def test_an_operator_approves_and_cancels_on_a_phone(
    chromium: Browser, fleet: Fleet, address: str
) -> None:
    runs = example(fleet)
    person = Person(chromium, address, "phone")
    person.log_in("otto")
    page = person.page
    page.get_by_role("link", name="Look at plan").click()
    expect(page.get_by_text("MemoryHigh=350M").first).to_be_visible()
    page.get_by_role("button", name="Approve and apply").click()
    expect(page.get_by_role("heading", name="deploy-api")).to_be_visible()
    expect(page.get_by_text("plan #")).to_be_visible()
    applied = fleet.queue.newest(1)[0]
    assert (applied.applies, applied.triggered_by) == (runs["waiting"], "user:otto")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
    assert fleet.get(applied.id).state == "cancelled"
    person.done()


def test_a_live_log_goes_on_and_ends_with_the_run(
    chromium: Browser, fleet: Fleet, address: str
) -> None:
    runs = example(fleet)
    person = Person(chromium, address, "desktop")
    person.log_in("vera")
    person.open(f"/runs/{runs['running']}")
    log = person.page.get_by_role("log")
    expect(log).to_contain_text("ok: [spark-agent-1]")
    fleet.write(runs["running"], [{"stdout": "\x1b[0;31m<b>now</b>\x1b[0m"}])
    expect(log.locator("span.c1", has_text="<b>now</b>")).to_be_visible()
    assert log.inner_text().count("ok: [spark-agent-1]") == 1
    fleet.queue.end(runs["running"], "succeeded")
    expect(person.page.get_by_text("succeeded", exact=True)).to_be_visible()
    # The runs bring themselves up to date, too.
    person.open("/runs")
    person.page.evaluate("refresh(document.getElementById('main'))")
    person.done()


def test_with_a_keyboard_alone_and_without_scripts(
    chromium: Browser, fleet: Fleet, address: str
) -> None:
    runs = example(fleet)
    person = Person(chromium, address, "desktop", java_script_enabled=False)
    page = person.page
    person.open("/login")
    page.keyboard.type("otto")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="run #")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Look at plan")).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Reject").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("rejected", exact=True)).to_be_visible()
    assert fleet.get(runs["waiting"]).decided_by == "otto"
    expect(page.get_by_label("Log", exact=True)).to_contain_text("changed: [primecore1]")
    page.get_by_label("Search in the log").fill("primecore1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 lines with")).to_be_visible()
    person.done()


def status(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_what_a_delivery_plans_is_approved_in_the_browser_and_applied(
    chromium: Browser, tmp_path: Path
) -> None:
    hook = Hook(tmp_path)
    intake = free_port()
    hook.command.config |= {
        "web": {"users": {"credential": "users"}},
        "intake": {"host": "127.0.0.1", "port": intake},
    }
    hook.command.credentials = {**SECRETS, "users": users_json()}
    with serving(hook):
        run = hook.run("plan", limit="h1")
        # The way from the internet takes deliveries, and has no page.
        assert status(intake, "POST", "/hooks/any") == 401
        for path in ("/", "/login", "/health", "/metrics", f"/runs/{run}"):
            assert status(intake, "GET", path) == 404
        person = Person(chromium, f"http://127.0.0.1:{hook.daemon.port}", "desktop")
        person.log_in("otto")
        eventually(lambda: hook.get(run).state == "waiting_approval", PATIENCE, "planned")
        person.open(f"/runs/{run}")
        person.page.get_by_role("button", name="Approve and apply").click()
        # Nobody loads the page again: it follows the run to its end.
        done = person.page.get_by_text("succeeded", exact=True)
        expect(done).to_be_visible(timeout=1000 * PATIENCE)
        expect(person.page.get_by_role("log")).to_contain_text("PLAY RECAP")
        person.done()
        assert hook.get(hook.get(run).applied or 0).triggered_by == "user:otto"
