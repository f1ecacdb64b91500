"""Releases that fail, installs that are interrupted, full disks, no network, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.faults.site import environment
from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, members, query, setting, shell, vpn_address

# A host that only measures: nothing else depends on what these tests do to it.
NAME = members("telemetry")[-1]
HOME = "/opt/prime-spark/services/telemetry"
UNIT = "prime-spark-telemetry.service"
# A service that no role knows, for what is done to installs alone.
SPARE = "/opt/prime-spark/services/fault-test"
HEALTH = "src/prime_spark/telemetry/service.py"
GOOD, BAD = '.set("sampling", True)', '.set("sampling", False, "broken on purpose")'


# --- what is there --------------------------------------------------------------------------


def current() -> str:
    return shell(connect(NAME), f"basename $(readlink {HOME}/current)")


def releases(home: str = HOME) -> set[str]:
    return set(shell(connect(NAME), f"ls -A {home}/releases").split())


def process() -> str:
    script = f"systemctl is-active --quiet {UNIT} && systemctl show -p MainPID --value {UNIT}"
    return shell(connect(NAME), script)


def healthy() -> bool:
    url = f"http://{vpn_address(NAME)}:{setting(NAME, 'telemetry', 'telemetry_port')}/health"
    return '"status":"ok"' in shell(connect(NAME), f'python3 -c "{FETCH}" {url}')


FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"


def newest_row() -> float:
    rows = query(
        "SELECT extract(epoch FROM max(time)) AS at FROM device_metrics "
        f"WHERE device_id = '{NAME}' AND time > now() - interval '1 hour'"
    )
    return float(rows[0]["at"])


def rows_go_on() -> None:
    """Samples taken from now on reach the database."""
    before = newest_row()
    fleet.wait_until("new rows", newest_row, 60, lambda seen: seen > before)


# --- sources and runs -----------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository as an operator would have it with changes of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=fleet.ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    made = [f"inventories/lab/group_vars/all/{name}.yml" for name in ("images", "vault")]
    for name in [*filter(None, map(os.fsdecode, listed)), *made]:
        if (fleet.ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(fleet.ROOT / name, tmp_path / name, follow_symlinks=False)
    return tmp_path


def change(root: Path, old: str, new: str) -> None:
    path = root / "files" / "python_services" / HEALTH
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def play(root: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [fleet.BIN / "ansible-playbook", *arguments, "--limit", NAME],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
    )
    return done.returncode, f"{done.stdout}{done.stderr}"


def deploy(root: Path, *arguments: str) -> tuple[int, str]:
    return play(root, "site.yml", "--tags", "telemetry", *arguments)


def installing(root: Path) -> subprocess.Popen[str]:
    """The install of a spare service alone, without any other task."""
    module = ["-m", "python_release", "-a", "service=fault-test extra=ingest"]
    return subprocess.Popen(
        [fleet.BIN / "ansible", NAME, *module],
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def install(root: Path) -> tuple[int, str]:
    with installing(root) as running:
        output, _ = running.communicate(timeout=300)
    return running.returncode, output


@pytest.fixture
def spare() -> Iterator[None]:
    """Removes the spare service."""
    yield
    shell(connect(NAME), f"umount {SPARE} 2>/dev/null; rm -rf {SPARE}")


# --- tests ----------------------------------------------------------------------------------


def test_a_release_that_fails_its_gate_leaves_the_old_one_serving(copy: Path) -> None:
    """Then four good ones in turn, of which three stay, the way back, and forward again."""
    first = current()
    change(copy, GOOD, BAD)
    status, output = deploy(copy, "-e", "python_service_health_timeout=8")
    assert status == 2
    assert "to answer 200 within 8 s, seen last: status 503" in output
    assert "broken on purpose" in output
    assert f"Went back to {HOME}/releases/{first}" in output
    assert current() == first
    before = process()
    fleet.wait_until("the old release at 200", healthy, 30)
    rows_go_on()
    assert process() == before, "the old release was restarted again"

    change(copy, BAD, GOOD)
    order = [first]
    for number in range(3):
        change(copy, GOOD, f"{GOOD}  # {number}")
        status, output = deploy(copy)
        assert status == 0, output
        order.append(current())
        fleet.wait_until("the new release at 200", healthy, 30)
    assert len(set(order)) == 4
    assert releases() == set(order[-3:])
    artifacts = shell(connect(NAME), "ls -A /opt/prime-spark/artifacts").split()
    assert artifacts == [order[-1]], "old archives are not kept"

    back = play(fleet.ROOT, "playbooks/rollback.yml", "-e", "service=telemetry", "--check")
    assert back[0] == 0
    assert f"would go from release {order[3]} to {order[2]}" in back[1]
    assert current() == order[3]
    status, output = play(fleet.ROOT, "playbooks/rollback.yml", "-e", "service=telemetry")
    assert status == 0, output
    assert f"telemetry went from release {order[3]} to {order[2]}, which is healthy" in output
    assert current() == order[2]
    arguments = ["-e", "service=telemetry", "-e", f"release={order[1][:8]}"]
    status, output = play(fleet.ROOT, "playbooks/rollback.yml", *arguments)
    assert status == 0, output
    assert current() == order[1]
    rows_go_on()

    before = process()
    status, output = deploy(fleet.ROOT)
    assert status == 0, output
    assert current() == first
    assert process() != before
    rows_go_on()
    assert deploy(fleet.ROOT)[1].count("changed=0") == 1


@pytest.mark.looks
def test_going_back_is_refused_where_it_cannot_be_done() -> None:
    missing = play(fleet.ROOT, "playbooks/rollback.yml", "-e", "service=nonesuch")
    assert missing[0] == 2
    assert "no host of this run has a service nonesuch" in missing[1]
    before = process()
    arguments = ["-e", "service=telemetry", "-e", "release=ffff"]
    unknown = play(fleet.ROOT, "playbooks/rollback.yml", *arguments)
    assert unknown[0] == 2
    assert "no release begins with" in unknown[1]
    assert process() == before


# Kills pip and the module that runs it as soon as there is half an environment.
KILL = """
    for try in $(seq 1200); do
      for release in "$1"/releases/*/; do
        [ -e "$release/bin/python" ] && [ ! -e "$release/.complete" ] || continue
        for pid in $(pgrep --full "^$1/releases/"); do
          kill -KILL $(ps -o ppid= -p $pid) $pid && exit 0
        done
      done
      sleep 0.05
    done
    exit 1
"""


def test_an_install_that_is_killed_leaves_nothing_half(copy: Path, spare: None) -> None:
    with installing(copy) as running:
        shell(connect(NAME), KILL, SPARE)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait(timeout=60)
    (half,) = releases(SPARE)
    script = f"test -e {SPARE}/releases/{half}/.complete && echo complete || echo half"
    assert shell(connect(NAME), script) == "half"
    status, output = install(copy)
    assert status == 0, output
    assert releases(SPARE) == {half}
    program = f"{SPARE}/releases/{half}/bin/prime-spark-ingest --help"
    assert "usage" in shell(connect(NAME), program)
    assert (
        shell(connect(NAME), "find /opt/prime-spark -name '*.partial' -not -path '*/lib/*'") == ""
    )


def test_a_full_disk_is_a_clear_error_and_nothing_stays(copy: Path, spare: None) -> None:
    before = process()
    shell(connect(NAME), f"mkdir -p {SPARE}; mount -t tmpfs -o size=3m tmpfs {SPARE}")
    status, output = install(copy)
    assert status != 0
    assert "no space left on the disk of" in output
    assert "the release before stays in use" in output
    assert releases(SPARE) == set()
    assert process() == before
    shell(connect(NAME), f"umount {SPARE}")
    status, output = install(copy)
    assert status == 0, output


CUT_OFF = """
    nft -f - <<EOF
    table inet fault_test {
      chain output {
        type filter hook output priority -300; policy drop;
        oif lo accept
        tcp sport 22 accept
        counter
      }
    }
EOF
"""


def test_a_host_without_any_way_out_installs(copy: Path, spare: None) -> None:
    """All it may send are answers to SSH; what it tried to send otherwise is counted."""
    host = connect(NAME)
    # A service that the host has not got: from an archive, which goes there as well.
    shell(host, "rm -rf /opt/prime-spark/artifacts")
    shell(host, CUT_OFF)
    try:
        refused = shell(host, "ping -c 1 -W 1 10.90.8.2 >/dev/null 2>&1 && echo sent || echo no")
        assert refused == "no"
        status, output = install(copy)
    finally:
        shell(host, "nft delete table inet fault_test")
    assert status == 0, output
    assert result(output)["changed"] is True


def result(output: str) -> Any:
    """The JSON of an ad hoc run's only host."""
    return json.loads(output[output.index("{") :])
