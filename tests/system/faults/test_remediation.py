"""S14: an alert is answered by a run, and drift by a plan that somebody approves in a browser.

Alertmanager, the hook, its schedule, its page and Ansible are those of the lab.
"""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, expect, sync_playwright

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    LAB,
    connect,
    members,
    probe,
    setting,
    shell,
    variables,
    vpn_address,
    wait_until,
)
from tests.system.fleet.hook import HOST, play, repository, runs, state

pytestmark = pytest.mark.timeout(1500)

REF = "refs/heads/main"
# A file of the role telemetry on another host than the hook's.
DRIFTED_HOST = members("spark_agent")[0]
DRIFTED_FILE = "/etc/prime-spark/telemetry/config.json"
DRIFT_SECONDS = 60
# Prometheus' and Alertmanager's waiting in the lab, and a run.
ALERT_SECONDS = 300
PLAN_SECONDS = 400


def settings() -> dict[str, Any]:
    """What the hook and Alertmanager have beside the lab's own settings."""
    port = setting(HOST, "hook", "hook_port")
    return {
        "hook_rules": {
            "sources": [
                {"name": "alerts", "kind": "alertmanager", "secrets": ["alerts"]},
                {"name": "github", "kind": "github", "secrets": ["github"]},
            ],
            "playbooks": ["site.yml", "playbooks/drift.yml"],
            "rules": [
                {
                    "name": "start-api",
                    "source": "alerts",
                    "match": {
                        "body": {
                            "labels.alertname": {"equals": "ServiceDown"},
                            "labels.service": {"equals": "api"},
                        }
                    },
                    "run": {
                        "playbook": "site.yml",
                        "tags": ["api"],
                        "limit": {"field": "labels.host", "enum": members("api")},
                        "ref": REF,
                        "priority": "high",
                        "timeout_seconds": 900,
                    },
                    "remediation": {
                        "cooldown_seconds": 600,
                        "max_runs": 3,
                        "window_seconds": 3600,
                    },
                }
            ],
            "schedules": [
                {
                    "name": "drift",
                    "every_seconds": DRIFT_SECONDS,
                    "run": {"playbook": "playbooks/drift.yml", "report": "drift", "ref": REF},
                }
            ],
            "mend": {"playbook": "site.yml", "approval": "required", "ref": REF},
        },
        "monitoring_receivers": [
            {
                "name": "hook",
                "type": "webhook",
                "url": f"http://{vpn_address(HOST)}:{port}/hooks/alerts",
                "secret": variables(HOST)["vault_hook_alerts"],
            }
        ],
    }


@pytest.fixture(scope="module", autouse=True)
def rules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The hook answers alerts and looks for drift; afterwards the fleet is as it was."""
    wanted = settings()
    file = tmp_path_factory.mktemp("settings") / "settings.yml"
    file.write_text(yaml.safe_dump(wanted))
    file.chmod(0o600)
    try:
        # In the repository as well: what its runs find is what was deployed.
        with repository(tmp_path_factory.mktemp("fleet"), yaml.safe_dump(wanted)):
            play("--tags", "hook,monitoring", "--extra-vars", f"@{file}")
            yield
    finally:
        play("--tags", "api,telemetry,hook,monitoring")


def firing(name: str, **labels: str) -> bool:
    """Whether Alertmanager says that an alert fires."""
    (server,) = members("monitoring")
    port = setting(server, "monitoring", "monitoring_alertmanager_port")
    password = variables(server)["vault_monitoring_admin_password"]
    url = f"http://{vpn_address(server)}:{port}/api/v2/alerts?active=true"
    # The password comes by standard input: arguments are seen by every user of the host.
    script = (
        "import base64, sys, urllib.request as r;"
        "login = base64.b64encode(sys.stdin.read().strip().encode()).decode();"
        f"asked = r.Request({url!r}, headers={{'Authorization': 'Basic ' + login}});"
        "print(r.urlopen(asked, timeout=10).read().decode())"
    )
    said = fleet.feed(server, f"python3 -c {shlex.quote(script)}", f"admin:{password}")
    found = [alert["labels"] for alert in json.loads(said)]
    return any({"alertname": name, **labels}.items() <= each.items() for each in found)


def test_an_alert_starts_its_run_once_and_resolves() -> None:
    host = members("api")[0]
    before = {run["id"] for run in runs()}

    def answers() -> list[dict[str, Any]]:
        return [run for run in runs() if run["rule"] == "start-api" and run["id"] not in before]

    shell(connect(host), "systemctl stop prime-spark-api")
    try:
        wait_until("the alert is answered", answers, ALERT_SECONDS, bool)
        (run,) = wait_until(
            "the run ends", answers, PLAN_SECONDS, lambda found: found and found[0]["ended"]
        )
        assert run["state"] == "succeeded", state(run["id"])["reason"]
        assert shell(connect(host), "systemctl is-active prime-spark-api").strip() == "active"
    finally:
        shell(connect(host), "systemctl start prime-spark-api")
    wait_until(
        "the alert is over",
        lambda: firing("ServiceDown", service="api"),
        ALERT_SECONDS,
        lambda found: not found,
    )
    assert len(answers()) == 1


@pytest.fixture
def page() -> Iterator[Page]:
    """A browser on this machine, with a tunnel to the hook's page."""
    program = shutil.which("chromium")
    assert program, "Debian's chromium is missing: lab/install-tools installs it"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = f"{vpn_address(HOST)}:{setting(HOST, 'hook', 'hook_port')}"
    argv = ["ssh", "-F", str(LAB / "ssh" / "config"), "-o", "ControlPath=none", "-N"]
    argv += ["-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:{target}", f"root@{HOST}"]
    tunnel = subprocess.Popen(argv)
    try:
        wait_until("the tunnel", lambda: _opens(port), 30, bool)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            context = browser.new_context(base_url=f"http://127.0.0.1:{port}")
            yield context.new_page()
            browser.close()
    finally:
        tunnel.terminate()
        tunnel.wait(10)


def _opens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def metrics() -> dict[str, float]:
    """What the hook's metrics say of drift, by name and labels."""
    port = setting(HOST, "hook", "hook_port")
    url = f"http://{vpn_address(HOST)}:{port}/metrics"
    lines = probe(connect(HOST), "http_get", url)[url]["body"].splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith("prime_spark_hook_drift")]
    return {name: float(value) for name, _, value in found}


def drifted() -> bool:
    return metrics()[f'prime_spark_hook_drift_host_drifted{{target="{DRIFTED_HOST}"}}'] == 1


def reported() -> float:
    return metrics()["prime_spark_hook_drift_report_timestamp_seconds"]


def test_drift_is_seen_planned_approved_and_mended(page: Page, tmp_path: Path) -> None:
    host = connect(DRIFTED_HOST)
    before = shell(host, 'cat "$1"', DRIFTED_FILE)
    wait_until("a report", reported, PLAN_SECONDS, bool)
    # The newest one can be of before this test's own settings.
    wait_until("a report without drift", drifted, PLAN_SECONDS, lambda found: not found)
    shell(host, 'printf "\\n" >> "$1"', DRIFTED_FILE)
    changed = time.monotonic()
    page.goto("/login")
    page.get_by_label("Name").fill("operator")
    page.get_by_label("Password").fill(variables(HOST)["vault_api_operator_password"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
    wait_until("the metric", drifted, DRIFT_SECONDS + 120, bool)
    print(f"drift on the metric after {time.monotonic() - changed:.0f} s")
    page.goto(f"/hosts/{DRIFTED_HOST}")
    expect(page.get_by_text(DRIFTED_FILE).first).to_be_visible()
    role = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="telemetry"))
    role.get_by_role("button", name="Plan to mend").click()
    expect(page.get_by_role("button", name="Approve and apply")).to_be_visible(
        timeout=PLAN_SECONDS * 1000
    )
    expect(page.get_by_text(DRIFTED_FILE).first).to_be_visible()
    page.screenshot(path=tmp_path / "plan.png", full_page=True)
    page.get_by_role("button", name="Approve and apply").click()
    number = int(page.url.rpartition("/")[2])
    done = wait_until("the run", lambda: state(number), PLAN_SECONDS, lambda run: run["ended"])
    assert done["state"] == "succeeded", done["reason"]
    assert done["applies"] is not None
    assert shell(host, 'cat "$1"', DRIFTED_FILE) == before
    wait_until("no drift", drifted, PLAN_SECONDS, lambda found: not found)
