"""What tools/bench_idle.py counts for whom, and the intervals that it measures with."""

from __future__ import annotations

import pytest
import yaml

from tools import bench_idle
from tools.bench_idle import REPOSITORY, Sample, production_intervals, table, unit_of


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("payload/system.slice/docker.service", "docker.service"),
        (
            r"payload/system.slice/system-wg\x2dquick.slice/wg-quick@wg0.service",
            "wg-quick@wg0.service",
        ),
        ("payload/system.slice/docker-0ab.scope", "docker-0ab.scope"),
        ("payload/init.scope", "init.scope"),
        ("payload/user.slice/user-0.slice/user@0.service/init.scope", "logins"),
        ("payload/system.slice", None),
        ("supervisor", "systemd-nspawn"),
    ],
)
def test_a_cgroup_belongs_to_its_unit(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit


def test_production_has_a_value_for_every_duration_that_the_lab_shortens() -> None:
    path = REPOSITORY / "inventories/lab/group_vars/all/main.yml"
    text = path.read_text()
    block = text[text.index("# Durations are shorter") :].split("\n\n")[0]
    shortened = yaml.safe_load(block)
    found = production_intervals()
    assert found.keys() == shortened.keys()
    assert all(found[name] != shortened[name] for name in shortened)
    assert found["airflow_schedule"] == "*/15 * * * *"
    assert not [value for value in found.values() if "{{" in str(value)]


def test_what_units_that_ended_used_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_idle, "HOSTS", {"a": None})
    monkeypatch.setattr(bench_idle, "container_names", lambda host: {"docker-1.scope": "redis"})
    monkeypatch.setattr(bench_idle, "units", lambda host: {})
    before = Sample(0.0, {"a": 1.0}, {"a": {"docker-1.scope": 1.0, "gone.service": 5.0}})
    after = Sample(60.0, {"a": 7.0}, {"a": {"docker-1.scope": 4.0, "new.service": 0.1}})
    lines = table(before, after, bench_idle.Counter({("a", "new.service"): 3}))
    rows = {line.split()[1]: line.split()[2:] for line in lines[1:]}
    assert rows["redis"] == ["0.0500", "0.0"]
    assert rows["units"][-2:] == ["0.0500", "0.0"]  # units that came and went
    assert rows["new.service"] == ["3.0"]
    assert rows["all"] == ["0.1000", "3.0", "0"]
