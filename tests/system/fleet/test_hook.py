"""S14: a push that GitHub signs plays site.yml from inside the fleet, as the hook's own user.

Its runs are units: they outlive a restart of the hook, and leave no process behind.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator

import pytest

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    LAB,
    connect,
    setting,
    shell,
    variables,
    vpn_address,
)
from tests.system.fleet.hook import HOST, USER, ended, play, repository, state

pytestmark = [pytest.mark.tags, pytest.mark.timeout(900)]

SERVICE = "prime-spark-hook.service"
RUNS = "prime-spark-hook-run@*.service"
# What the commit changes, each in a role of its own; the second one restarts the hook.
CHANGES = {"api_access_seconds": "601", "hook_memory": "513M"}


@pytest.fixture(scope="module")
def commit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A commit in the repository that the hook plays; afterwards the fleet is as it was."""
    settings = "".join(f"{name}: {value}\n" for name, value in CHANGES.items())
    try:
        with repository(tmp_path_factory.mktemp("push"), settings) as made:
            yield made
    finally:
        play("--tags", "api,hook", "--limit", HOST)


def push(role: str, commit: str) -> int:
    """Tell the hook of a push to lab/ROLE as GitHub does; return the run that comes of it."""
    content = {
        "ref": "refs/heads/main",
        "after": commit,
        "repository": {"full_name": f"lab/{role}"},
    }
    body = json.dumps(content | {"message": uuid.uuid4().hex})
    secret = variables(HOST)["vault_hook_github"]
    digest = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
    port = setting(HOST, "hook", "hook_port")
    script = (
        "import sys, urllib.request as r; url, body, signature, delivery = sys.argv[1:];"
        "headers = {'X-GitHub-Event': 'push', 'X-Hub-Signature-256': 'sha256=' + signature,"
        "'X-GitHub-Delivery': delivery, 'Content-Type': 'application/json'};"
        "print(r.urlopen(r.Request(url, body.encode(), headers), timeout=20).read().decode())"
    )
    url = f"http://{vpn_address(HOST)}:{port}/hooks/github"
    said = shell(connect(HOST), 'python3 -c "$@"', script, url, body, digest, uuid.uuid4().hex)
    run: int = json.loads(said)["run"]
    return run


def processes() -> list[str]:
    """Of runs: what is in their units, and what their user has started elsewhere."""
    script = (
        'for unit in $(systemctl list-units --plain --no-legend "$1" | cut -d" " -f1); do'
        '  cat "/sys/fs/cgroup$(systemctl show -p ControlGroup --value "$unit")/cgroup.procs"'
        "    2>/dev/null;"
        ' done; pgrep -u "$2" -f "ansible-playbook|ssh" || true'
    )
    return shell(connect(HOST), script, RUNS, USER).split()


def playing(run: int) -> None:
    """Wait until Ansible is at work for the run."""

    def look() -> bool:
        return state(run)["state"] == "running" and len(processes()) > 2

    fleet.wait_until(f"run {run} plays", look, 120)


def show(unit: str, name: str) -> str:
    return shell(connect(HOST), 'systemctl show --value -p "$2" "$1"', unit, name)


def test_a_signed_push_plays_the_commit(commit: str) -> None:
    run = ended(push("api", commit))
    events = f"/var/lib/prime-spark-hook/runs/{run['id']}/events.jsonl"
    told = shell(connect(HOST), 'tail -c 3000 "$1"', events)
    assert run["state"] == "succeeded", f"{run['reason']}\n{told}"
    assert run["hosts"] == [HOST]
    config = json.loads(shell(connect(HOST), "cat /etc/prime-spark/api/config.json"))
    assert config["auth"]["access_seconds"] == int(CHANGES["api_access_seconds"])
    # What opens hosts and vault is the run's alone, and no part of what is kept of it.
    given = shell(connect(HOST), 'ls "/run/credentials/$1"', SERVICE).split()
    assert sorted(given) == ["alertmanager", "alerts", "github", "users"]
    key = (LAB / "ssh" / "id_ed25519").read_text().splitlines()[2]
    script = 'grep -rlF -- "$1" /var/lib/prime-spark-hook/runs || true'
    assert shell(connect(HOST), script, key) == ""
    assert processes() == []


def test_a_run_that_restarts_the_hook_ends_well(commit: str) -> None:
    before = show(SERVICE, "MainPID")
    run = ended(push("hook", commit))
    assert run["state"] == "succeeded", run["reason"]
    assert show(SERVICE, "MainPID") != before
    assert show(SERVICE, "MemoryMax") == str(513 * 1024 * 1024)
    assert processes() == []


def test_what_is_cancelled_or_killed_leaves_no_process(commit: str) -> None:
    cancelled = push("api", commit)
    playing(cancelled)
    shell(connect(HOST), 'prime-spark-hook runs cancel "$1"', str(cancelled))
    assert ended(cancelled)["state"] == "cancelled"
    assert processes() == []
    killed = push("api", commit)
    playing(killed)
    claim = f"/var/lib/prime-spark-hook/runs/{killed}/claim"
    shell(connect(HOST), 'kill -KILL "$(head -n 1 "$1")"', claim)
    found = ended(killed)
    assert (found["state"], found["reason"]) == ("lost", "its process ended without a result")
    assert processes() == []
    # Of units that failed nothing stays to be looked at.
    script = 'systemctl list-units --all --no-legend "$1"'
    fleet.wait_until("no units", lambda: shell(connect(HOST), script, RUNS), 30, lambda v: not v)
