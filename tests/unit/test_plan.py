"""Which roles a run plays: only what is in sync, sealed and whole is ever left out."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.module_utils import notes, state
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.plan import (
    Known,
    Plan,
    Selection,
    is_sealed,
    sealing_key,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.stamps import with_facts
from prime_spark.hook.drift import DriftState, Report

ROOT = Path(__file__).resolve().parents[2]


ALL = Selection(["all"], [], full=False, whole=True)


def known(host: str = "one", role: str = "kafka", **more: Any) -> Known:
    """A role that is in sync, but for what is given."""
    fields: dict[str, Any] = {
        "stamp": "s", "fact_names": (), "facts": {}, "differences": (), "sealed": True,
        "recorded": with_facts("s", (), {}), **more,
    }  # fmt: skip
    return Known(host=host, role=role, **fields)


def test_what_is_in_sync_is_left_out_and_not_sealed_again() -> None:
    plan = Plan([known()], ALL, [])
    assert plan.due == {"kafka": []}
    assert plan.played == {}
    assert plan.state["one"]["kafka"]["state"] == "in sync"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"recorded": None}, "unknown"),
        ({"recorded": "another"}, "outdated"),
        ({"sealed": False}, "outdated"),
        ({"differences": ("content of /etc/x",)}, "drifted"),
        ({"differences": ("unsure: no handshake",)}, "in sync"),
    ],
)
def test_whatever_differs_is_played_and_sealed(more: dict[str, Any], word: str) -> None:
    plan = Plan([known(**more)], ALL, [])
    assert plan.state["one"]["kafka"]["state"] == word
    assert plan.due == {"kafka": ["one"]}
    assert plan.played == {"one": {"kafka": known().wanted}}


def test_everything_is_played_when_that_is_asked_for() -> None:
    plan = Plan([known()], Selection(["all"], [], full=True, whole=True), [])
    assert plan.due == {"kafka": ["one"]}


@pytest.mark.parametrize(
    ("tags", "skipped", "whole", "due", "sealed"),
    [
        (["kafka"], [], True, False, False),
        (["redis"], [], True, False, False),
        (["verify"], [], True, False, False),
        (["kafka_config"], [], True, True, False),
        (["kafka", "kafka_config"], [], True, False, False),
        (["all"], ["verify"], True, False, False),
        (["all"], ["kafka"], True, False, False),
        # Tasks of a role are left out, or may be: it is played as before, and not believed after.
        (["all"], ["kafka_config"], True, True, False),
        (["all"], [], False, True, False),
        (["tagged"], [], True, True, False),
    ],
)
def test_only_whole_roles_are_left_out_or_sealed(
    tags: list[str], skipped: list[str], whole: bool, due: bool, sealed: bool
) -> None:
    plan = Plan([known()], Selection(tags, skipped, full=False, whole=whole), [])
    assert bool(plan.due["kafka"]) == due
    assert bool(plan.played) == sealed


def test_hosts_that_tell_each_other_keys_are_played_together() -> None:
    entries = [known("one", "wireguard"), known("two", "wireguard", recorded="old")]
    assert sorted(Plan(entries, ALL, ["wireguard"]).due["wireguard"]) == ["one", "two"]
    assert Plan(entries, ALL, []).due["wireguard"] == ["two"]


def test_the_web_hook_reads_every_report() -> None:
    entries = [
        known("one", differences=("/etc/x: changed",)),
        known("two", recorded="old"),
        known("three", recorded=None),
    ]
    hosts = ["one", "two", "three", "four", "five"]
    text = json.dumps(Plan(entries, ALL, [], ["five"]).report(hosts))
    states = {
        host: entry.state for host, entry in msgspec.json.decode(text, type=Report).hosts.items()
    }
    assert list(states) == hosts
    assert {*states.values(), "in sync"} == set(get_args(DriftState))


def test_a_host_that_was_not_seen_is_unreachable_or_refused() -> None:
    assert Plan([known()], ALL, [], ["two"]).report(["two"])["hosts"]["two"]["state"] == "refused"
    plan = Plan([known()], ALL, [])
    assert plan.report(["one", "two"])["hosts"]["two"] == {"state": "unreachable", "roles": {}}
    assert plan.report(["one", "two"])["summary"] == {"in sync": 1, "unreachable": 1}
    assert plan.table(["one", "two"])[-1].endswith("unreachable")


# --- the seal -----------------------------------------------------------------------------------


class Sealed:
    """One role with one file, brought up and sealed in a directory of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.roles, self.trees, self.notes = (tmp_path / n for n in ("roles", "trees", "notes"))
        self.file = tmp_path / "service.conf"
        self.file.write_text("one\n")
        self.file.chmod(0o644)
        self.trees.mkdir()
        self.secrets = {"vault_a": "x" * 20, "vault_b": "y" * 20, "other": 1}

    def bring_up(self, run: str) -> None:
        owner = [str(self.file.stat().st_uid), str(self.file.stat().st_gid)]
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        files = {str(self.file): [digest, "0644", *owner]}
        managed = {"files": files, "directories": {}, "paths": {}, "accounts": {}}
        record = {"role": "kafka", "run": run, "managed": managed}
        (self.trees / "kafka.json").write_text(json.dumps(record))
        notes.note({"role": "kafka", "run": run}, "record", {"kafka": None}, str(self.notes))

    def seal(self, run: str) -> list[str]:
        key = sealing_key(self.secrets, "one", "kafka", "n1")
        places = (str(self.roles), str(self.trees), str(self.notes))
        return list(state.seal("kafka", run, "stamp", "n1", key, *places))

    def look(self) -> dict[str, Any] | None:
        found = state.examine(["kafka"], str(self.roles))
        return dict(found["kafka"]) if found else None

    def believed(self, secrets: dict[str, Any] | None = None) -> bool:
        return is_sealed(secrets or self.secrets, "one", "kafka", self.look() or {})


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    return Sealed(tmp_path)


def test_what_was_sealed_is_believed_while_nothing_differs(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    assert sealed.seal("r1") == []
    seen = sealed.look()
    assert seen is not None and seen["stamp"] == "stamp" and seen["differences"] == []
    assert sealed.believed()
    sealed.file.write_text("two\n")
    assert (sealed.look() or {})["differences"] == [f"content of {sealed.file}"]


def test_a_manifest_that_was_changed_with_the_file_is_not_believed(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    sealed.file.write_text("two\n")
    path = sealed.roles / "kafka.json"
    manifest = json.loads(path.read_text())
    digest = hashlib.sha256(b"two\n").hexdigest()
    manifest["things"]["tree"]["kafka"]["files"][str(sealed.file)][0] = digest
    path.write_text(json.dumps(manifest))
    assert (sealed.look() or {})["differences"] == []
    assert not sealed.believed()


def test_a_seal_of_other_secrets_is_not_believed(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    assert not sealed.believed({**sealed.secrets, "vault_a": "z" * 20})
    # What a rotation keeps until it is finished changes nothing.
    assert sealed.believed({**sealed.secrets, "vault_a_previous": "z"})


def test_a_seal_cannot_be_made_from_what_the_host_keeps(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    kept = (sealed.roles / "kafka.json").read_text()
    assert sealing_key(sealed.secrets, "one", "kafka", "n1") not in kept
    assert not any(str(value) in kept for value in sealed.secrets.values() if value != 1)
    assert hmac.compare_digest(json.loads(kept)["nonce"], "n1")


def test_what_another_run_brought_up_is_not_sealed(sealed: Sealed) -> None:
    """A killed run leaves notes and records, and another operator's may come in between."""
    sealed.bring_up("killed")
    assert sealed.seal("next") == ["another run has worked on it since"]
    assert sealed.look() is None
    sealed.bring_up("mine")
    record = json.loads((sealed.trees / "kafka.json").read_text())
    (sealed.trees / "kafka.json").write_text(json.dumps({**record, "run": "another's"}))
    assert sealed.seal("mine") == ["another run has worked on kafka since"]
    assert sealed.look() is None


def test_a_seal_of_a_strange_type_is_not_believed(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    path = sealed.roles / "kafka.json"
    for strange in (None, 7, "\u00fc"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seal": strange}))
        assert not sealed.believed()


def test_notes_of_an_earlier_run_are_dropped(tmp_path: Path) -> None:
    for run, name in (("r1", "old"), ("r2", "new"), ("r2", "newer")):
        notes.note({"role": "kafka", "run": run}, "package", {name: None}, str(tmp_path))
    noted = json.loads((tmp_path / "kafka.notes").read_text())
    assert noted == {"run": "r2", "things": {"package": {"new": None, "newer": None}}}


def test_outside_a_run_that_seals_nothing_is_noted(tmp_path: Path) -> None:
    notes.note({"role": "kafka", "run": ""}, "package", {"x": None}, str(tmp_path))
    notes.note({"role": "", "run": "r1"}, "package", {"x": None}, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_changed_since_it_was_brought_up_is_not_sealed(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    sealed.bring_up("r2")
    sealed.file.write_text("two\n")
    assert sealed.seal("r2") == [f"content of {sealed.file}"]
    assert sealed.look() is None


def test_the_key_of_a_seal_is_shown_nowhere() -> None:
    source = (ROOT / "plugins/modules/role_seal.py").read_text()
    options = source.partition("options = {")[2].partition("}\n    module")[0]
    (key,) = [line for line in options.splitlines() if '"key"' in line]
    assert '"no_log": True' in key


def test_a_run_seals_each_role_with_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    action = import_module(
        "ansible_collections.prime_spark.fleet.plugins.action.role_seal"
    ).ActionModule
    plugin = action.__new__(action)
    plugin._task = SimpleNamespace(args={"run": "r1", "roles": {"kafka": "s1", "redis": "s2"}})
    monkeypatch.setattr(action.__mro__[1], "run", lambda *_: {})
    sent: list[Any] = []
    plugin._execute_module = lambda module_args, task_vars: sent.append(module_args) or {}
    secrets = {"vault_a": "x" * 20}
    hostvars = SimpleNamespace(raw_get=lambda host: secrets)
    plugin.run(None, {"inventory_hostname": "one", "hostvars": hostvars})
    entries = sent[0]["roles"]
    assert [(e["role"], e["stamp"]) for e in entries] == [("kafka", "s1"), ("redis", "s2")]
    assert [e["key"] for e in entries] == [
        sealing_key(secrets, "one", e["role"], e["nonce"]) for e in entries
    ]
    assert len({e["nonce"] for e in entries}) == 2


def test_a_manifest_that_makes_no_sense_is_drift_and_no_crash(sealed: Sealed) -> None:
    sealed.bring_up("r1")
    sealed.seal("r1")
    path = sealed.roles / "kafka.json"
    manifest = json.loads(path.read_text())
    manifest["things"] = {"tree": {"kafka": {"files": 7}}, "unit": {"x.service": None}}
    path.write_text(json.dumps(manifest))
    differences = (sealed.look() or {})["differences"]
    assert len(differences) == 2 and all("cannot be compared" in text for text in differences)
    path.write_text("{")
    assert sealed.look() is None


def test_every_role_has_a_play_of_its_own_that_leaves_hosts_out() -> None:
    """The catalogue reads of these plays who gets a role: names of groups, no other patterns."""
    plays = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    plays = [play for play in plays if "roles" in play]
    roles = {path.name for path in (ROOT / "roles").iterdir()} - {"python_service"}
    named = sorted(play["roles"][0]["role"] for play in plays)
    assert named == sorted(f"prime_spark.fleet.{role}" for role in roles)
    assert all(len(play["roles"]) == 1 for play in plays)
    assert all(re.fullmatch(r"\w+(:\w+)*", play["hosts"]) for play in plays)
    assert all(play["pre_tasks"] == plays[0]["pre_tasks"] for play in plays)
