"""The role hook: its rules, its signatures for rotations, and the Ansible that its runs have."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.filter import hook
from prime_spark.hook.rules import Kind, read_rules
from prime_spark.hook.signatures import UnverifiedError, events_of, verify

ROOT = Path(__file__).resolve().parents[2]
NEW, OLD = (base64.b64encode(bytes([n]) * 24).decode() for n in (1, 2))
KINDS: list[tuple[Kind, str]] = [
    ("github", ""),
    ("forgejo", ""),
    ("gitlab", ""),
    ("gitlab", "whsec_"),
    ("alertmanager", ""),
    ("standard_webhooks", "whsec_"),
]


@pytest.mark.parametrize("kind, prefix", KINDS)
def test_each_kind_of_source_accepts_the_new_secret_and_refuses_the_old_one(
    kind: Kind, prefix: str
) -> None:
    new, old = prefix + NEW, prefix + OLD
    secrets = {"next": new, "now": "another", "other": "another"}
    sources = [
        {"name": "ours", "kind": kind, "secrets": ["now", "next"]},
        {"name": "other", "kind": kind, "secrets": ["other"]},
        {"name": "polled", "kind": "git"},
    ]
    accepted, refused = hook.hook_rotation_requests(sources, secrets, new, old)
    assert accepted["source"] == refused["source"] == "ours"
    body = accepted["body"].encode()

    def headers(request: dict[str, Any]) -> dict[str, str]:
        return {name.lower(): value for name, value in request["headers"].items()}

    verify(kind, [new], headers(accepted), body)
    # It starts nothing, whatever the rules say.
    with pytest.raises(ValueError, match="no JSON"):
        events_of(kind, body)
    with pytest.raises(UnverifiedError):
        verify(kind, [new], headers(refused), body)


def test_the_rules_of_the_role_and_of_the_lab_are_valid() -> None:
    for path in ("roles/hook/defaults/main.yml", "inventories/lab/group_vars/all/main.yml"):
        values = yaml.safe_load((ROOT / path).read_text())
        rules = read_rules(json.dumps(values["hook_rules"]), path)
        named = {name for source in rules.sources for name in source.secrets}
        assert named == set(values["hook_secrets"])


def test_runs_have_the_ansible_of_the_controller() -> None:
    # Its version is part of what decides whether a role has to be played again.
    files = [ROOT / "requirements/controller.txt", *ROOT.glob("files/python_services/locks/*.txt")]
    pin = re.compile(r"^ansible-core==(\S+)", re.MULTILINE)
    versions = {pin.findall(path.read_text())[0] for path in files}
    assert len(files) > 1 and len(versions) == 1
