"""Benchmarks: figures come from what was measured, and the documents show them as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.bench import drifts, peer, render, results
from tools.bench.converge import module_runs
from tools.bench.results import Result, pairs
from tools.bench.sections import SECTIONS, TABLES, Section, Table
from tools.bench.state import KINDS, Fleet, differences

ROOT = Path(__file__).resolve().parents[2]
SECTION = Section("one", "bench-one", "an example", ("tools",))
TABLE = Table("one", "x.md", ("what", "s"), (("a", "{one.a:time}"), ("b", "{one.b:,} x")))


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECTIONS, "one", SECTION)


def result(**values: Any) -> Result:
    return Result(values, "2026-01-01", "a machine", results.tree(SECTION.sources))


def test_the_last_lines_of_pairs_are_the_result() -> None:
    output = "a=1 in a sentence\nb=2\nnot a pair\nfirst=0.50 name=x/y\nsecond=3\n"
    assert pairs(output) == {"first": 0.5, "name": "x/y", "second": 3}
    assert pairs("round 1: 3.2 s\n") == {}
    assert pairs("") == {}


def test_a_command_without_pairs_is_no_result() -> None:
    with pytest.raises(ValueError, match="make bench-one"):
        results.result_of(SECTION, "all went well\n")


def test_a_table_shows_what_was_measured_and_says_what_was_not() -> None:
    shown = render.block(TABLE, {"one": result(a=271, b=12345)})
    assert "| a | 4.5 min |" in shown and "| b | 12,345 x |" in shown
    assert "2026-01-01" in shown and render.OLDER not in shown
    assert "| b | not measured |" in render.block(TABLE, {"one": result(a=48)})
    assert render.block(TABLE, {}) == "Not measured on this tree: `make bench-one`."


@pytest.mark.parametrize(("seconds", "said"), [(48.4, "48 s"), (152, "2.5 min"), (3600, "60 min")])
def test_seconds_are_written_as_people_say_them(seconds: float, said: str) -> None:
    assert f"| a | {said} |" in render.block(TABLE, {"one": result(a=seconds)})


def test_a_result_of_other_sources_is_marked() -> None:
    older = Result({"a": 1, "b": 2}, "2026-01-01", "a machine", "0" * 16)
    assert render.OLDER in render.block(TABLE, {"one": older})


def test_the_tree_is_what_is_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    before = results.tree(("Makefile",))
    assert results.tree(("Makefile",)) == before != results.tree(("Makefile", "site.yml"))
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#")
    assert results.tree(("Makefile",)) != before


def test_the_documents_have_the_tables_of_the_results() -> None:
    assert render.write(check=True) == [], "run `make bench-render`"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_ask_for_sections_that_exist(table: Table) -> None:
    assert set(render.sections_of(table)) <= SECTIONS.keys()
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_sections_are_make_targets_and_their_sources_exist() -> None:
    del SECTIONS["one"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for section in SECTIONS.values():
        assert section.target in targets
        assert [name for name in section.sources if not (ROOT / name).exists()] == []


def sent(command: str) -> str:
    return f"""<10.90.1.10> SSH: EXEC ssh -C -tt 10.90.1.10 '/bin/sh -c '"'"'{command}'"'"''\n"""


def test_a_module_run_counts_once_however_it_is_sent() -> None:
    pipelined = sent("/usr/bin/python3 && sleep 0")
    copied = "".join(
        map(
            sent,
            (
                "echo ~root && sleep 0",
                '( umask 77 && mkdir -p "` echo /root/.ansible/tmp `"&& sleep 0',
                "chmod u+rwx /root/.ansible/tmp/x/ && sleep 0",
                "/usr/bin/python3 /root/.ansible/tmp/x/AnsiballZ_setup.py && sleep 0",
                "rm -f -r /root/.ansible/tmp/x/ > /dev/null 2>&1 && sleep 0",
            ),
        )
    )
    others = "<10.90.1.10> (0, b'SSH: EXEC', b'')\nTASK [x : y] ***\n"
    assert module_runs(others) == 0
    assert module_runs(pipelined + others) == 1
    assert module_runs(copied + pipelined) == 2
    retried = pipelined + "<10.90.1.10> ssh_retry: attempt: 1, ssh return code is 255.\n"
    assert module_runs(retried + pipelined) == 1


def test_differences_name_what_changed_came_or_went() -> None:
    state: dict[str, Any] = {kind: {} for kind in KINDS} | {"packages": ["a", "b"]}
    before = state | {"files": {"/x": {"mode": "644"}, "/y": {}}}
    after = state | {"files": {"/x": {"mode": "600"}, "/z": {}}, "packages": ["b"]}
    assert differences({"h": before}, {"h": before}) == []
    assert differences({"h": before}, {"h": after}) == [
        "h files /x", "h files /y", "h files /z", "h packages a",
    ]  # fmt: skip


def test_every_kind_that_is_compared_is_proven_with_a_drift() -> None:
    planted = {kind for _, kind, _, _ in drifts._COMMANDS}
    # A project is its files and its containers.
    assert planted == set(KINDS) - {"projects"}


def test_what_pyinfra_is_given_is_the_state_of_the_hosts(tmp_path: Path) -> None:
    owned = {"user": "root", "group": None, "mode": "600"}
    state: dict[str, Any] = {kind: {} for kind in KINDS} | {
        "files": {"/etc/x": {"content": "c2VjcmV0", **owned}},
        "directories": {"/etc/d": owned},
        "projects": {"a": {"directory": "/opt/a"}, "b": {"directory": "/opt/b"}},
        "containers": {"a/one": ["running", "hash"], "b/one": ["running", "other"]},
    }
    fleet = Fleet(tmp_path / "config")
    peer.write(tmp_path, fleet, {"h": state})
    given = json.loads((tmp_path / "fleet.json").read_text())["hosts"]["h"]
    assert (tmp_path / "h/etc/x").read_text() == "secret"
    # A group without a name on the host cannot be asked for by name.
    assert given["files"] == {"/etc/x": {"user": "root", "mode": "600"}}
    assert given["directories"] == {"/etc/d": {"user": "root", "mode": "600"}}
    assert given["projects"]["a"]["containers"] == {"one": ["running", "hash"]}


def test_the_light_lab_has_the_hub_and_hosts_with_addresses_of_their_own() -> None:
    code = (
        "from lab.topology import HOSTS; print(*(f'{h.name}={h.address}' for h in HOSTS.values()))"
    )
    environment = {**os.environ, "PRIME_SPARK_LAB_LIGHT": "50"}
    argv = [sys.executable, "-c", code]
    said = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    found = dict(pair.split("=") for pair in said.split())
    assert list(found)[:2] == ["control-pc-1", "light-01"] and len(found) == 51
    assert len(set(found.values())) == 51
