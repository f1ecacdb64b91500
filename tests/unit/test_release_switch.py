"""release_switch: which release is chosen, and what the next run sees afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.modules import release_switch as module

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("aaaa1111", "aabb2222", "cccc3333")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Three releases, the newest in use, and one that is not complete."""
    for number, name in enumerate(RELEASES):
        directory = tmp_path / "releases" / name
        directory.mkdir(parents=True)
        (directory / ".complete").write_text("")
        os.utime(directory / ".complete", (1000 + number,) * 2)
    (tmp_path / "releases" / "unfinished").mkdir()
    use(tmp_path, "cccc3333")
    return tmp_path


def use(home: Path, release: str) -> None:
    (home / "current").unlink(missing_ok=True)
    (home / "current").symlink_to(home / "releases" / release)


def choose(home: Path, wanted: str = "") -> str:
    return str(module.choose(module.known_releases(str(home)), wanted, "telemetry"))


def test_complete_releases_are_listed_newest_first(home: Path) -> None:
    listed = module.known_releases(str(home))
    assert [entry["release"] for entry in listed] == list(reversed(RELEASES))
    assert [entry["current"] for entry in listed] == [True, False, False]
    assert listed[0]["installed"] == "1970-01-01T00:16:42Z"


def test_by_default_the_one_before_the_current_one(home: Path) -> None:
    assert choose(home) == "aabb2222"
    use(home, "aabb2222")
    assert choose(home) == "aaaa1111"


def test_there_is_none_before_the_oldest(home: Path) -> None:
    use(home, "aaaa1111")
    with pytest.raises(module.TreeError, match=r"no release before .* aaaa1111 \(current\)"):
        choose(home)


def test_a_release_by_the_beginning_of_its_hash(home: Path) -> None:
    assert choose(home, "aaaa") == "aaaa1111"
    assert choose(home, "cccc3333") == "cccc3333"
    with pytest.raises(module.TreeError, match="more than one release begins with 'aa'"):
        choose(home, "aa")
    with pytest.raises(module.TreeError, match=r"no release begins with 'dd'.*aabb2222"):
        choose(home, "dd")


def test_the_next_run_owes_a_restart(tmp_path: Path) -> None:
    record = tmp_path / "service-telemetry.json"
    record.write_text(json.dumps({"applied": "fingerprint", "files": ["/etc/x"]}))
    module.owe_restart("telemetry", "aaaa1111", str(tmp_path))
    assert json.loads(record.read_text()) == {
        "applied": "rolled back to aaaa1111",
        "files": ["/etc/x"],
    }
    module.owe_restart("other", "aaaa1111", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["service-telemetry.json"]


def test_an_old_release_may_refuse_the_configuration(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "prime-spark-telemetry"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'error: unknown field `new`' >&2\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(module.TreeError, match=r"nothing was switched: .*unknown field `new`"):
        module.validate_configuration(str(tmp_path), "telemetry", "/etc/config.json")


class Starts:
    """Stands for the starts of the unit: which release each found, and how it went."""

    def __init__(self, home: Path, *problems: str) -> None:
        self.home, self.problems = home, list(problems)
        self.releases: list[str] = []

    def __call__(self, *_: Any) -> None:
        self.releases.append((self.home / "current").resolve().name)
        if self.problems and (problem := self.problems.pop(0)):
            raise module.TreeError(problem)


def go_back(home: Path, monkeypatch: pytest.MonkeyPatch, *problems: str) -> tuple[Starts, Any]:
    """Switch to the release before; the starts, and what the switch returned or raised."""
    starts = Starts(home, *problems)
    monkeypatch.setattr(module, "validate_configuration", lambda *_: None)
    monkeypatch.setattr(module, "owe_restart", lambda *_: None)
    monkeypatch.setattr(
        module, "unit_states", lambda units: {unit: {"LoadState": "loaded"} for unit in units}
    )
    monkeypatch.setattr(module, "start", starts)
    parameters = {
        "service": "telemetry",
        "release": "",
        "root": str(home.parent.parent),
        "config_root": str(home / "configuration"),
        "health_timeout": 1,
    }
    try:
        return starts, module.switch(parameters, module.known_releases(str(home)), False)
    except module.TreeError as error:
        return starts, str(error)


@pytest.fixture
def service_home(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same releases where the service has its home."""
    place = tmp_path_factory.mktemp("root") / "services" / "telemetry"
    place.parent.mkdir()
    home.rename(place)
    use(place, "cccc3333")
    return place


def test_the_release_before_is_started(service_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts, result = go_back(service_home, monkeypatch)
    assert starts.releases == ["aabb2222"]
    assert result == (True, "telemetry went from release cccc3333 to aabb2222")


def test_one_that_does_not_start_is_left_again(
    service_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, result = go_back(service_home, monkeypatch, "status 503: broken")
    assert starts.releases == ["aabb2222", "cccc3333"]
    assert (service_home / "current").resolve().name == "cccc3333"
    assert result == "status 503: broken\nWent back to cccc3333, which is healthy."


def test_two_that_do_not_start_are_both_named(
    service_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result = go_back(service_home, monkeypatch, "the old one is broken", "so is the new one")
    assert (service_home / "current").resolve().name == "cccc3333"
    assert "the old one is broken\nWent back to cccc3333, which does not work either" in result
    assert result.endswith("so is the new one")


def test_going_back_nowhere_is_a_failure(tmp_path: Path) -> None:
    """On the host of the share as well; the service may be misspelt, so their names are said."""
    groups = {"managed": {"hosts": {"pi": {}}}, "nas_server": {"hosts": {"share": {}}}}
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
    }
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), "-i", inventory),
            *("playbooks/rollback.yml", "-e", "service=nonesuch", "--check", "--limit", "share"),
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = "no host of this run has a service nonesuch; there are kafka-admin, db, ingest,"
    assert said in done.stdout
