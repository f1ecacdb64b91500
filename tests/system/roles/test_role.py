"""A role alone, after its tag brought it to hosts of a converged fleet: `molecule test -s ROLE`.

In this order: nothing is left to change; an input is changed and changed back; the role leaves with
its data kept; its data goes.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import Entry, catalogue

from tests.system.fleet import fleet
from tests.system.fleet.fleet import connect, shell
from tests.system.predictions.record import compare, play

ROLE = os.environ.get("MOLECULE_SCENARIO_NAME", "")
OWN = Path(os.environ.get("MOLECULE_SCENARIO_DIRECTORY", "")) / "hosts.yml"
INVENTORY = ("-i", str(fleet.ROOT / "inventories" / "lab"), "-i", str(OWN))
FINGERPRINT = (fleet.ROOT / "molecule/default/fingerprint.sh").read_text()

pytestmark = pytest.mark.timeout(600)


@cache
def inventory() -> dict[str, Any]:
    argv = [str(fleet.BIN / "ansible-inventory"), *INVENTORY, "--list"]
    done = subprocess.run(argv, cwd=fleet.ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def variables(host: str) -> dict[str, Any]:
    return dict(inventory()["_meta"]["hostvars"][host])


def entry() -> Entry:
    return catalogue()[ROLE]


@cache
def hosts() -> list[str]:
    """The hosts that the scenario is about; none is an error."""
    groups = entry().groups if not entry().has_group else [ROLE]
    found = sorted({name for group in groups for name in fleet.members(group, inventory())})
    own: list[str] = variables(found[0]).get("scenario_hosts", [])
    assert set(own) <= set(found), f"{own} have no role {ROLE}"
    return own or found


def own_groups(host: str) -> set[str]:
    listing = inventory()
    return {n for n in listing if n != "_meta" and host in members(n, listing)}


def members(group: str, listing: dict[str, Any]) -> list[str]:
    try:
        return fleet.members(group, listing)
    except fleet.NoHostError:
        return []


def parts(host: str, named: dict[str, list[str]]) -> list[str]:
    """The units or projects of the role that a host has to have."""
    return [name for name, groups in named.items() if not groups or own_groups(host) & {*groups}]


def role(*arguments: str) -> set[tuple[str, str]]:
    """Play the role's tag in full; what changed."""
    return play(*INVENTORY, "--tags", ROLE, "-e", "full=true", *arguments)


def fingerprints() -> dict[str, set[str]]:
    """What every host of the role has that a run may write to; not when it was written."""
    return {
        host: {
            line
            for line in shell(connect(host), FINGERPRINT).splitlines()
            if "/var/lib/prime-spark/" not in line
        }
        for host in hosts()
    }


def containers(host: str, project: str) -> list[str]:
    """The states of a project's containers."""
    script = 'docker ps --all --format "{{.State}}" --filter label=com.docker.compose.project="$1"'
    return shell(
        connect(host), f"command -v docker >/dev/null || exit 0; {script}", project
    ).split()


def data(host: str) -> list[str]:
    """The places of the role's data on a host that are there."""
    places = [p if p.startswith("/") else fleet.setting(host, ROLE, p) for p in entry().data]
    # A mount point cannot be removed: what counts is what lies there.
    empty = '{ mountpoint -q "$path" && [ -z "$(ls -A "$path")" ]; }'
    script = f'for path; do if [ -e "$path" ] && ! {empty}; then echo "$path"; fi; done'
    return shell(connect(host), script, *places).splitlines() if places else []


def records(host: str) -> list[str]:
    """What the host remembers of trees and projects of the role."""
    script = (
        'grep --files-with-matches "\\"role\\": \\"$1\\"" /var/lib/prime-spark/trees/*.json || true'
    )
    return shell(connect(host), script, ROLE).splitlines()


def remove(*arguments: str) -> None:
    argv = [str(fleet.BIN / "ansible-playbook"), *INVENTORY, "playbooks/remove.yml"]
    argv += ["-e", f"role={ROLE}", "--limit", ",".join(hosts()), *arguments]
    done = subprocess.run(argv, cwd=fleet.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def test_a_check_of_what_was_just_played_predicts_nothing() -> None:
    assert role("--check") == set()


def test_what_the_catalogue_names_runs() -> None:
    for host in hosts():
        assert records(host), f"{host} has no record of {ROLE}"
        for unit in parts(host, entry().units):
            assert connect(host).service(unit).is_running, f"{host}: {unit}"
        for project in parts(host, entry().projects):
            states = containers(host, project)
            assert states and set(states) == {"running"}, f"{host}: {project} {states}"


def test_a_changed_input_changes_what_was_predicted_and_leaves_no_trace() -> None:
    change = ("-e", json.dumps(variables(hosts()[0])["scenario_change"]))
    before = fingerprints()
    predicted = role("--check", *change)
    applied = role(*change)
    assert applied and compare(predicted, applied) == ""
    assert fingerprints() != before
    assert role()
    assert {h: lines ^ before[h] for h, lines in fingerprints().items() if lines != before[h]} == {}


def test_without_the_role_its_data_stays() -> None:
    there = {host: data(host) for host in hosts()}
    remove()
    for host in hosts():
        assert records(host) == [] and data(host) == there[host], host
        # The lab's NAS serves by the host's own way in.
        for unit in {*parts(host, entry().units)} - {"ssh.service"}:
            assert not connect(host).service(unit).is_running, f"{host}: {unit}"
        for project in parts(host, entry().projects):
            assert containers(host, project) == [], f"{host}: {project}"


def test_a_purge_takes_the_data() -> None:
    remove("-e", "purge=true", "-e", f"confirm={ROLE}")
    assert {host: data(host) for host in hosts()} == {host: [] for host in hosts()}
