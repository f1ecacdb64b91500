"""The hook's page with example data, for its tests and its screenshots."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import msgspec
import uvicorn
from prometheus_client import CollectorRegistry

from prime_spark.accounts.passwords import hasher
from prime_spark.accounts.users import HashParameters, Users
from prime_spark.config import HttpConfig, Secret
from prime_spark.hook.directory import Order, RunDirectory
from prime_spark.hook.drift import HostReport, Report, RoleDrift
from prime_spark.hook.firing import Alert
from prime_spark.hook.people import People
from prime_spark.hook.plan import Plan, Planner
from prime_spark.hook.queue import Queue, Run
from prime_spark.hook.rules import Job, Rules, read_rules
from prime_spark.hook.settings import AnsibleConfig, HookConfig, PageConfig
from prime_spark.hook.web.guard import COOKIE
from prime_spark.hook.web.logins import Store, form_token
from prime_spark.hook.web.page import Page
from prime_spark.runtime.asgi import create_app
from prime_spark.runtime.health import Health

PASSWORD = "a password for tests"
NAMES = {"vera": "viewer", "otto": "operator", "anna": "admin"}
ORIGIN = "http://hook:9000"
COMMIT = "4f2a9c1e7b3d5f6081924a6c8e0b2d4f6a8c0e1f"

RULES = """
sources:
  - {name: github, kind: github, secrets: [hook_github, hook_github_next]}
  - {name: alerts, kind: alertmanager, secrets: [hook_alerts]}
playbooks: [site.yml, playbooks/drift.yml, playbooks/verify.yml]
rules:
  - name: deploy-api
    source: github
    match:
      headers: {X-GitHub-Event: {equals: push}}
      body: {ref: {equals: refs/heads/main}, repository.full_name: {in: [example/fleet]}}
    run: {playbook: site.yml, tags: [api], commit: after, approval: required}
  - name: mend-api
    source: alerts
    match: {body: {labels.alertname: {equals: ServiceDown}}}
    run:
      playbook: site.yml
      priority: high
      tags: [api]
      limit: {field: labels.host, enum: [control-pc-1]}
      timeout_seconds: 1800
    remediation: {cooldown_seconds: 900, max_runs: 3, window_seconds: 3600}
schedules:
  - {name: drift, every_seconds: 3600, run: {playbook: playbooks/drift.yml, report: drift}}
  - {name: verify, at: "03:30", run: {playbook: playbooks/verify.yml}}
mend: {playbook: site.yml, approval: required}
"""


UNIT_DIFF = """\
--- /etc/systemd/system/prime-spark-api.service
+++ /etc/systemd/system/prime-spark-api.service
@@ -9,3 +9,4 @@
 ExecStart=/opt/prime-spark/services/api/current/bin/prime-spark-api
-MemoryMax=300M
+MemoryMax=400M
+MemoryHigh=350M
 Restart=always
"""


@cache
def users_json() -> str:
    """The credential: a user of each role, all with the same password."""
    digest = hasher(HashParameters()).hash(PASSWORD)
    return json.dumps(
        {name: {"role": role, "password_hash": digest} for name, role in NAMES.items()}
    )


def job(rule: str = "deploy-api", **values: Any) -> Job:
    common: dict[str, Any] = {
        "playbook": "site.yml",
        "tags": ["api"],
        "limit": None,
        "check": False,
        "priority": "normal",
        "timeout_seconds": 3600.0,
        "variables": {},
    }
    return msgspec.convert({"rule": rule, **common, **values}, Job)


def task(number: int, name: str, host: str, result: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An event of ansible-runner's for a task that has ended on a host."""
    failed, dark = result.get("failed"), result.get("unreachable")
    kind = "failed" if failed else "unreachable" if dark else "ok"
    word = {"failed": "failed", "unreachable": "UNREACHABLE!"}.get(kind, "ok")
    word = "changed" if result.get("changed") else word
    colour = {"ok": 32, "changed": 33}.get(word, 31)
    stdout = f"\x1b[0;{colour}m{word}: [{host}]\x1b[0m"
    if kind != "ok":
        stdout += f"\x1b[0;31m => {json.dumps(result)}\x1b[0m"
    data = {
        "host": host,
        "task": name,
        "task_uuid": f"task-{number}",
        "play": "Fleet",
        "task_path": f"roles/api/tasks/main.yml:{4 + 7 * number}",
        "task_action": "prime_spark.fleet.config_tree",
        "res": result,
        **more,
    }
    return {"event": f"runner_on_{kind}", "stdout": stdout, "event_data": data}


def heading(text: str) -> dict[str, Any]:
    return {"event": "playbook_on_task_start", "stdout": f"\r\n{text} {'*' * (78 - len(text))}"}


class Fleet:
    """A queue with runs in the states that one wants to see, and the page over it."""

    def __init__(self, folder: Path, **page: Any) -> None:
        self.folder = folder
        self.queue = Queue(folder / "queue.sqlite")
        self.rules: Rules = read_rules(RULES, "rules.yml")
        self.woken = 0
        self.alerts: list[Alert] | None = []
        self.people = People(self.queue, self.rules, self.wake)
        self.store = Store(folder / "page.sqlite")
        self.stop = asyncio.Event()
        self.users_json = users_json()
        http = HttpConfig(host="127.0.0.1", port=1)
        web = PageConfig(users=Secret(credential="users"), **page)
        self.config = HookConfig(
            http=http,
            rules="/etc/rules.yml",
            ansible=AnsibleConfig(
                checkout="/srv/fleet", inventory="inventories/production", programs="/usr/bin"
            ),
            state=str(folder),
            vpn_status=str(folder / "vpn.json"),
            web=web,
        )
        self.app = create_app("hook", Health("hook"), http, CollectorRegistry())
        self.page = Page(
            self.config,
            web,
            Users(self.users_json),
            self.people,
            self.store,
            stop=self.stop,
            alerts=lambda: self.alerts,
        )
        self.page.mount(self.app)

    def wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.queue.close()
        self.store.close()

    def peers(self, ages: Mapping[str, float | None]) -> None:
        """Write the state of the VPN: peers with the age of their last handshake in seconds."""
        now = time.time()
        peers = [
            {
                "name": name,
                "vpn_address": "10.8.0.9",
                "latest_handshake": 0 if age is None else int(now - age),
                "rx_bytes": 1,
                "tx_bytes": 1,
            }
            for name, age in ages.items()
        ]
        status = {"time": now, "interface": "wg0", "peers": peers}
        (self.folder / "vpn.json").write_text(json.dumps(status))

    # -- runs ---------------------------------------------------------------------------------

    def put(self, what: Job, by: str = "source:github") -> int:
        return self.queue.put(what, by).run

    def start(self, run: int, *hosts: str, events: Any = ()) -> None:
        assert self.queue.start(run, hosts)
        self.queue.running(run)
        self.write(run, events)

    def directory(self, run: int) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / str(run))

    def write(self, run: int, events: Any) -> None:
        """Append events of a run."""
        found = self.queue.get(run)
        assert found is not None
        assert found.job is not None
        order = Order(
            run=run, job=found.job, ansible=self.config.ansible, grace_seconds=1, event_bytes=10**9
        )
        self.directory(run).prepare(order)
        with self.directory(run).events.open("ab") as stream:
            stream.writelines(msgspec.json.encode(event) + b"\n" for event in events)

    def plan(self, run: int, events: Any) -> Plan:
        """Let a run that has started wait for approval of what its events would change."""
        planner = Planner("/srv/fleet", COMMIT)
        for event in events:
            planner.take(event)
        plan = planner.plan()
        self.write(run, events)
        self.directory(run).write_plan(plan)
        assert self.queue.wait_approval(run, plan.hash, plan.total)
        return plan

    def waiting(self, *hosts: str, **values: Any) -> Run:
        """Return a run that waits for approval."""
        run = self.put(job(approval_seconds=86400.0, commit=COMMIT, **values))
        self.start(run, *(hosts or ("control-pc-1",)))
        self.plan(run, [changed(host) for host in hosts or ("control-pc-1",)])
        return self.get(run)

    def get(self, run: int) -> Run:
        found = self.queue.get(run)
        assert found is not None
        return found

    def move(self, run: int, seconds: float, took: float = 0.0) -> None:
        """Let a run have been so long ago, and have taken so long."""
        with self.queue.transaction() as db:
            db.execute(
                "UPDATE runs SET accepted = accepted - ?1, started = started - ?1 + 1, "
                "ended = ended - ?1 + 1 + ?3 WHERE id = ?2",
                (seconds, run, took),
            )

    def report(self, run: int, hosts: dict[str, Any], ago: float = 0.0) -> None:
        """Store a report of drift: hosts to roles to what differs, or to a state."""
        found = {
            host: HostReport(
                "unreachable" if roles is None else "drifted" if any(roles.values()) else "in sync",
                {
                    role: RoleDrift("drifted" if why else "in sync", why)
                    for role, why in (roles or {}).items()
                },
            )
            for host, roles in hosts.items()
        }
        self.people.drift.store(run, time.time() - ago, Report(found), whole=True)


def changed(host: str, number: int = 1, **more: Any) -> dict[str, Any]:
    """A task that changes a file."""
    text = '{{\n  "http": {{"port": 8000}},\n  "log_level": "{}",\n  "limits": {{"read": {}}}\n}}\n'
    name = "/etc/prime-spark/api/config.json"
    diff = {
        "before_header": name,
        "after_header": name,
        "before": text.format("info", 600),
        "after": text.format("debug", 1200),
    }
    return task(number, "Configure the API", host, {"changed": True, "diff": diff}, **more)


def example(fleet: Fleet) -> dict[str, int]:
    """Fill a fleet as it may look on some day; return runs by what they are."""
    hosts = ("control-pc-1", "spark-agent-1", "nas-1", "primecore1", "primecore4")
    fleet.peers({"spark-agent-1": 31, "primecore1": 12, "primecore4": 5400})
    since = time.time() - 5200
    down = "primecore4 does not answer"
    fleet.alerts = [
        Alert("HostDown", "critical", "primecore4", down, since),
        Alert("KafkaConsumerLag", "warning", "", "Group ingest is 1200 messages behind", since),
    ]

    def played(*on: str) -> list[dict[str, Any]]:
        return [
            {"event": "playbook_on_play_start", "stdout": "\r\nPLAY [Fleet] " + "*" * 66},
            heading("TASK [prime_spark.fleet.python_service : Install the release]"),
            *(task(0, "Install the release", host, {"changed": False}) for host in on),
        ]

    play = played(*hosts)
    runs: dict[str, int] = {}

    def ended(name: str, what: Job, by: str, state: Any, on: Any, events: Any, **more: Any) -> int:
        run = runs[name] = fleet.put(what, by)
        fleet.start(run, *on, events=events)
        fleet.queue.end(run, state, **more)
        return run

    first = job("drift", playbook="playbooks/drift.yml", tags=[], report="drift")
    drift = ended(
        "drift before",
        first,
        "schedule:drift",
        "succeeded",
        hosts,
        play,
        results=dict.fromkeys(hosts, "ok"),
    )
    fleet.move(drift, 4300, 41)
    calm = {host: {"common": [], "wireguard": [], "telemetry": []} for host in hosts}
    fleet.report(drift, calm, 4250)
    good = ended(
        "deployed",
        job(commit=COMMIT, tags=["api", "dispatcher"]),
        "source:github",
        "succeeded",
        hosts[:2],
        [
            *played(*hosts[:2]),
            heading("TASK [prime_spark.fleet.api : Configure the API]"),
            changed("control-pc-1"),
        ],
        results={"control-pc-1": "changed", "spark-agent-1": "ok"},
    )
    fleet.move(good, 7460, 187)
    said = {
        "failed": True,
        "msg": "systemctl restart prime-spark-agent failed",
        "stderr": "Job for prime-spark-agent.service failed.",
    }
    bad = ended(
        "failed",
        job("verify", playbook="playbooks/verify.yml", tags=[]),
        "schedule:verify",
        "failed",
        hosts,
        [
            *play,
            heading("TASK [Configure the API]"),
            changed("control-pc-1"),
            heading("TASK [Restart the agent]"),
            task(2, "Restart the agent", "spark-agent-1", said),
            task(
                2,
                "Restart the agent",
                "primecore4",
                {"unreachable": True, "msg": "Failed to connect to the host via ssh"},
            ),
        ],
        reason="failed: spark-agent-1; unreachable: primecore4",
        results={
            "control-pc-1": "changed",
            "spark-agent-1": "failed",
            "nas-1": "ok",
            "primecore1": "ok",
            "primecore4": "unreachable",
        },
    )
    fleet.move(bad, 2890, 96)
    drift = ended(
        "drift",
        first,
        "schedule:drift",
        "succeeded",
        hosts,
        play,
        results=dict.fromkeys(hosts, "ok") | {"primecore4": "unreachable"},
    )
    fleet.move(drift, 740, 38)
    found: dict[str, Any] = dict(calm)
    found["control-pc-1"] = {
        "common": [],
        "wireguard": [],
        "api": [
            "/etc/prime-spark/api/config.json: content differs",
            "prime-spark-api.service: has not been restarted since",
        ],
        "redis": [],
    }
    found["primecore4"] = None
    fleet.report(drift, found, 700)
    rejected = fleet.waiting("nas-1", tags=["nas"])
    fleet.queue.reject(rejected.id, "anna", rejected.plan_hash)
    fleet.move(rejected.id, 86000, 1400)
    runs["rejected"] = rejected.id
    plan = runs["waiting"] = fleet.put(job(approval_seconds=86400.0, commit=COMMIT))
    fleet.start(plan, "control-pc-1", "primecore1")
    unit = {"changed": True, "diff": {"prepared": UNIT_DIFF}}
    fleet.plan(
        plan,
        [
            *played("control-pc-1", "primecore1"),
            heading("TASK [prime_spark.fleet.api : Configure the API]"),
            changed("control-pc-1"),
            heading("TASK [prime_spark.fleet.api : Write the unit]"),
            task(2, "Write the unit", "control-pc-1", unit),
            task(2, "Write the unit", "primecore1", unit),
        ],
    )
    fleet.move(plan, 260)
    live = runs["running"] = fleet.put(
        job("mend-api", priority="high", limit="spark-agent-1"), "source:alerts"
    )
    fleet.start(live, "spark-agent-1", events=played("spark-agent-1"))
    fleet.move(live, 34)
    runs["queued"] = fleet.put(job("verify", playbook="playbooks/verify.yml", tags=[]), "user:otto")
    return runs


# -- asking ---------------------------------------------------------------------------------------


class Browser:
    """What a person's browser keeps and sends: cookies, forms, where they come from."""

    def __init__(self, fleet: Fleet, address: str = "10.8.0.9") -> None:
        transport = httpx.ASGITransport(
            fleet.app, raise_app_exceptions=False, client=(address, 5000)
        )
        self._fleet = fleet
        self._client = httpx.AsyncClient(transport=transport, base_url=ORIGIN)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self.send(method, path, **options))

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._client.request(method, path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """Send a form as it stands on a page of ours."""
        sent = {"Origin": ORIGIN, **headers}
        return self.ask("POST", path, data=fields, headers=sent)

    def token(self, path: str = "/") -> str:
        """Return what the forms of a page contain."""
        found = re.search(r'name="form" value="([^"]+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def log_in(self, name: str, password: str = PASSWORD, **fields: str) -> httpx.Response:
        form = {"form": self.token("/login"), "username": name, "password": password}
        return self.post("/login", form | fields)

    def enter(self, name: str) -> None:
        """Have a session, as after a login."""
        self.cookies.set(COOKIE, self._fleet.page.guard.sessions.begin(name))

    def act(self, path: str, **fields: str) -> httpx.Response:
        """Send a form of one's own session."""
        return self.post(path, {"form": form_token(self.cookies.get(COOKIE, "")), **fields})

    @property
    def cookies(self) -> httpx.Cookies:
        return self._client.cookies


@contextmanager
def served(fleet: Fleet) -> Iterator[str]:
    """Serve the page on loopback; yield its address."""
    server = uvicorn.Server(
        uvicorn.Config(fleet.app, host="127.0.0.1", port=0, log_config=None, lifespan="off")
    )
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        fleet.stop.set()
        server.should_exit = True
        server.force_exit = True
        thread.join()
