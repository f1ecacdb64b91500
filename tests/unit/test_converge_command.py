"""converge_command: right about changes in check mode, and deferred only where it cannot know."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils import command
from ansible_collections.prime_spark.fleet.plugins.modules import converge_command as module

ROOT = Path(__file__).resolve().parents[2]

TOOL = """#!/bin/sh
# Compares a file with a directory's content and makes it so.
wanted=$(cat "$1"); check=$2
[ "$(cat {state} 2>/dev/null)" = "$wanted" ] && {{ echo '{{"changed": false}}'; exit; }}
[ "$wanted" = broken ] && {{ echo "cannot read $1" >&2; exit 1; }}
[ "$check" = --check ] || echo "$wanted" > {state}
echo '{{"changed": true, "changes": ["now '"$wanted"'"]}}'
"""


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    path = tmp_path / "release/bin/tool"
    path.parent.mkdir(parents=True)
    path.write_text(TOOL.format(state=tmp_path / "state"))
    path.chmod(0o755)
    return path


def params(tmp_path: Path, tool: Path, content: str, **more: Any) -> dict[str, Any]:
    config = str(tmp_path / "config")
    return {
        "argv": [str(tool), "{stage}" + config],
        "check_argv": ["--check"],
        "environment": {},
        "stdin": None,
        "changed_prefix": None,
        "files": [{"path": config, "content": content, "owner": "0", "group": "0", "mode": "0644"}],
        "secret_files": [],
        "project": None,
        "release": None,
        "release_files": None,
        "release_digest": None,
        "timeout": 10,
        **more,
    }


@pytest.fixture(autouse=True)
def stage_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside root, /run cannot be written to."""
    real = module.tempfile.TemporaryDirectory
    monkeypatch.setattr(
        module.tempfile, "TemporaryDirectory", lambda prefix, dir: real(prefix=prefix, dir=tmp_path)
    )


def test_a_change_that_is_not_written_yet_is_predicted(tmp_path: Path, tool: Path) -> None:
    (tmp_path / "config").write_text("one")
    module.execute(params(tmp_path, tool, "one"), "", check_mode=False)
    assert module.predict(params(tmp_path, tool, "one")) == []
    # The host still has the old file; checked is what a run would write.
    assert module.predict(params(tmp_path, tool, "two")) == ["now two"]
    assert (tmp_path / "state").read_text() == "one\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "release", "state"]


def test_a_missing_program_defers_in_check_mode_and_fails_otherwise(
    tmp_path: Path, tool: Path
) -> None:
    tool.unlink()
    (said,) = module.predict(params(tmp_path, tool, "one"))
    assert said == f"deferred: {tool} is not installed yet"
    with pytest.raises(command.CommandError, match="not installed"):
        module.execute(params(tmp_path, tool, "one"), "", check_mode=False)


def test_a_project_that_does_not_run_defers(
    tmp_path: Path, tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "project_runs", lambda name: False)
    (said,) = module.predict(params(tmp_path, tool, "one", project="kafka"))
    assert said == "deferred: the project kafka does not run yet"


def test_the_installed_release_answers_for_a_new_one_where_it_can(
    tmp_path: Path, tool: Path
) -> None:
    new = str(tmp_path / "releases/new")
    assert module.predict(params(tmp_path, tool, "two", release=new)) == ["now two"]
    (said,) = module.predict(params(tmp_path, tool, "broken", release=new))
    assert said.startswith("deferred: the new release is not installed yet")
    # With the release there is nothing to wait for: it is an error.
    with pytest.raises(command.CommandError, match="cannot read"):
        module.predict(params(tmp_path, tool, "broken", release=str(tmp_path)))


def test_other_migrations_than_the_installed_ones_defer(tmp_path: Path, tool: Path) -> None:
    data = tmp_path / "release/lib/python3.11/site-packages/app/migrations"
    data.mkdir(parents=True)
    (data / "0001.sql").write_text("SELECT 1")
    given = {
        "release": str(tmp_path / "releases/new"),
        "release_files": "app/migrations",
        "release_digest": module.digest_of(str(data)),
    }
    assert module.predict(params(tmp_path, tool, "two", **given)) == ["now two"]
    (data / "0002.sql").write_text("SELECT 2")
    (said,) = module.predict(params(tmp_path, tool, "two", **given))
    assert said == "deferred: the new release brings other migrations"


def test_lines_with_a_prefix_are_changes_and_the_rest_is_talk() -> None:
    output = "NOTICE: hello\nchanged: user a\n\nchanged: user b\n"
    assert command.changes_in(output, "changed: ") == ["user a", "user b"]
    assert command.changes_in("NOTICE: hello\n", "changed: ") == []


@pytest.mark.parametrize("output", ["", "all well", "[]", '{"change": true}'])
def test_an_answer_that_says_nothing_is_an_error(output: str) -> None:
    with pytest.raises(command.CommandError, match="expected one JSON object"):
        command.changes_in(output, None)


def test_names_of_changes_come_from_whatever_the_command_calls_them() -> None:
    answer = {"changed": True, "applied": [], "pending": ["0002"], "grants": ["SELECT"]}
    assert command.changes_in(json.dumps(answer), None) == ["0002", "SELECT"]


def test_the_command_may_not_take_for_ever(tmp_path: Path, tool: Path) -> None:
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(command.CommandError, match="did not end within 1 s"):
        module.execute(params(tmp_path, tool, "x", timeout=1), "", check_mode=False)


def test_action_and_module_name_the_same_data_alike() -> None:
    """The controller's hash of the sources against the host's of what it has installed."""
    plugin = import_module("ansible_collections.prime_spark.fleet.plugins.action.converge_command")
    below = "prime_spark/timeseries/migrations"
    sources = ROOT / "files" / "python_services" / "src" / below
    assert plugin.ActionModule.digest_of(below) == module.digest_of(str(sources))


def test_check_mode_asks_with_a_text_of_its_own() -> None:
    given = {"stdin": "change it", "check_stdin": "would it change?"}
    assert module.asked(given)["stdin"] == "would it change?"
    assert module.asked({**given, "check_stdin": None})["stdin"] == "change it"
