"""What runs of ansible-playbook recorded: which host and task was reported as changed."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

from tests.system.fleet import fleet

# A host and a task, with its role.
Change: TypeAlias = tuple[str, str]


def read(path: Path) -> list[list[dict[str, Any]]]:
    """The recorded results of each run, in the order of the runs."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        runs.setdefault(entry["run"], []).append(entry)
    return [runs[name] for name in sorted(runs)]


def changes(run: list[dict[str, Any]]) -> set[Change]:
    """What a run changed, or predicted to change."""
    return {(e["host"], f"{e['role']} : {e['task']}") for e in run if e["changed"]}


def failures(run: list[dict[str, Any]]) -> set[Change]:
    """Which tasks failed, on which host."""
    return {(e["host"], f"{e['role']} : {e['task']}") for e in run if e["failed"]}


def compare(predicted: set[Change], applied: set[Change]) -> str:
    """What was predicted wrongly, one line each; empty when prediction and run agree."""
    lines = [f"predicted, but not changed: {host}: {task}" for host, task in predicted - applied]
    lines += [f"changed, but not predicted: {host}: {task}" for host, task in applied - predicted]
    return "\n".join(sorted(lines))


def play(*arguments: str) -> set[Change]:
    """Run site.yml with the recording callback; returns what it reported as changed."""
    with tempfile.TemporaryDirectory(prefix="prime-spark-record-") as directory:
        path = Path(directory) / "run.jsonl"
        done = subprocess.run(
            [fleet.BIN / "ansible-playbook", "site.yml", *arguments],
            cwd=fleet.ROOT,
            env={
                **os.environ,
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CALLBACK_PLUGINS": str(
                    fleet.ROOT / "tests/system/predictions/callback_plugins"
                ),
                "ANSIBLE_CALLBACKS_ENABLED": "record_tasks,prime_spark.fleet.failures",
                "PRIME_SPARK_RECORD": str(path),
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        said = f"{done.stdout}{done.stderr}"[-4000:]
        assert done.returncode == 0, f"site.yml {' '.join(arguments)}: {said}"
        (run,) = read(path)
    return changes(run)
