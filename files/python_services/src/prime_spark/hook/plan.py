"""The plan of a run: what Ansible says in check mode that it would change, and a hash of it."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from prime_spark.config import Config

_MAX_CHANGES = 2000
_DIFF_CHARS = 20_000
_ALL_DIFFS_CHARS = 1_000_000
# Comparing lines takes as long as the product of their numbers, at worst.
_COMPARED_CHARS = 200_000
_NAME_CHARS = 300
# They are of the moment at which one looks.
_TIMES = {"atime", "mtime"}


class Change(Config, frozen=True):
    """A task that would change a host; `diff` is cut where it is long, and `cut` then says so."""

    host: str
    task: str
    path: str
    action: str
    item: str
    diff: str
    cut: bool = False


class Plan(Config, frozen=True):
    """What a run would change, on which hosts how often.

    `hidden` tasks would change a host, too, but have `no_log`: Ansible does not say which they are.
    `changes` are fewer than `total` where there are very many. The hash is of all of it, whatever
    is cut here, and of the `revision` of the playbooks.
    """

    hash: str
    revision: str
    total: int
    hosts: dict[str, int]
    hidden: dict[str, int]
    changes: list[Change]


class Planner:
    """Makes a plan of ansible-runner's events; paths of tasks are those in `checkout`."""

    def __init__(self, checkout: str, revision: str) -> None:
        # Ansible follows links.
        self._roots = {f"{root.rstrip('/')}/" for root in (checkout, os.path.realpath(checkout))}
        self._revision = revision
        self._marks: list[bytes] = []
        self._changes: list[Change] = []
        self._hosts: dict[str, int] = {}
        self._tasks: dict[str, set[str]] = {}
        self._hidden: dict[str, int] = {}
        self._chars = 0

    def take(self, event: Mapping[str, Any]) -> None:
        """Look at an event."""
        kind, data = event.get("event"), event.get("event_data") or {}
        if kind == "playbook_on_stats":
            self._count_hidden(data.get("changed") or {})
        result = data.get("res")
        if kind not in {"runner_on_ok", "runner_item_on_ok"} or not isinstance(result, dict):
            return
        if not result.get("changed"):
            return
        host, task = str(data.get("host")), str(data.get("task_uuid"))
        self._tasks.setdefault(host, set()).add(task)
        # Of a loop there was an event for each item.
        if "results" not in result:
            self._add(host, data, result)

    def plan(self) -> Plan:
        """Return what was seen."""
        seen = hashlib.sha256(msgspec.json.encode([self._revision, sorted(self._hidden.items())]))
        # Hosts and, with some strategies, tasks come in any order.
        for mark in sorted(self._marks):
            seen.update(mark)
        return Plan(
            hash=seen.hexdigest(),
            revision=self._revision,
            total=len(self._marks) + sum(self._hidden.values()),
            hosts=dict(sorted(self._hosts.items())),
            hidden=self._hidden,
            changes=self._changes,
        )

    def _count_hidden(self, changed: Mapping[str, int]) -> None:
        for host, number in sorted(changed.items()):
            hidden = number - len(self._tasks.get(host, ()))
            if hidden > 0:
                self._hidden[host] = hidden
                self._hosts[host] = self._hosts.get(host, 0) + hidden

    def _add(self, host: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        diffs = result.get("diff")
        diffs = [diffs] if isinstance(diffs, dict) else diffs if isinstance(diffs, list) else []
        diffs = [_without_times(diff) for diff in diffs if isinstance(diff, dict)]
        place = str(data.get("task_path") or "")
        for root in self._roots:
            place = place.removeprefix(root)
        action = str(data.get("task_action") or "")
        item = str(result.get("_ansible_item_label", result.get("item", "")))
        what = [host, str(data.get("task")), place, action, item]
        # Headers name temporary files.
        contents = [
            {key: value for key, value in diff.items() if not key.endswith("_header")}
            for diff in diffs
        ]
        mark = msgspec.json.encode([*what, contents], order="deterministic", enc_hook=repr)
        self._marks.append(hashlib.sha256(mark).digest())
        self._hosts[host] = self._hosts.get(host, 0) + 1
        if len(self._changes) >= _MAX_CHANGES:
            return
        text = "\n".join(_text(diff) for diff in diffs).strip("\n")
        left = min(_DIFF_CHARS, _ALL_DIFFS_CHARS - self._chars)
        shown = text[:left]
        self._chars += len(shown)
        host, task, place, action, item = (part[:_NAME_CHARS] for part in what)
        self._changes.append(
            Change(
                host=host,
                task=task,
                path=place,
                action=action,
                item=item,
                diff=shown,
                cut=len(shown) < len(text),
            )
        )


def _without_times(diff: dict[str, Any]) -> dict[str, Any]:
    """Return a diff without the times of a file."""
    return {
        key: {name: each for name, each in value.items() if name not in _TIMES}
        if isinstance(value, dict)
        else value
        for key, value in diff.items()
    }


def _text(diff: Mapping[str, Any]) -> str:
    """Return a diff as Ansible shows it."""
    if "prepared" in diff:
        return str(diff["prepared"])
    sides = [_side(diff.get(side, "")) for side in ("before", "after")]
    old, new = (str(diff.get(f"{side}_header") or "") for side in ("before", "after"))
    # Before it is a list of lines, which may be many times as large.
    if sum(map(len, sides)) > _COMPARED_CHARS:
        return f"{old or new}: too large to compare\n"
    before, after = (side.splitlines(keepends=True) for side in sides)
    lines = difflib.unified_diff(before, after, old, new)
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _side(side: object) -> str:
    if isinstance(side, str):
        return side
    text = msgspec.json.format(
        msgspec.json.encode(side, order="deterministic", enc_hook=repr), indent=1
    )
    return text.decode()
