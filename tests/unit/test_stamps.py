"""Whatever decides about a role changes its stamp: inputs, groups, other hosts, files, sources."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
import yaml
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.stamps import (
    Sources,
    Stamps,
    with_facts,
)

ROOT = Path(__file__).resolve().parents[2]

ROLES = sorted(p.name for p in (ROOT / "roles").iterdir() if (p / "meta").is_dir())
# Imported by others, never played by itself.
PLAYED = [role for role in ROLES if role != "python_service"]
STACKS = [role for role in ROLES if (ROOT / "roles" / role / "templates/stack").is_dir()]
COPIED = ("roles", "plugins", "meta", "playbooks", "files/python_services")


def options(role: str) -> dict[str, Any]:
    specs = yaml.safe_load((ROOT / "roles" / role / "meta/argument_specs.yml").read_text())
    return dict(specs["argument_specs"]["main"].get("options") or {})


@cache
def defaults() -> dict[str, dict[str, Any]]:
    found = {}
    for role in ROLES:
        path = ROOT / "roles" / role / "defaults/main.yml"
        found[role] = yaml.safe_load(path.read_text()) or {} if path.exists() else {}
    return found


@pytest.fixture(scope="module")
def inventory() -> dict[str, Any]:
    """The lab's groups, and its variables by host; the vault is not there everywhere."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-inventory"), "-i", "inventories/lab", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    listing = json.loads(done.stdout)
    raw = listing.pop("_meta")["hostvars"]

    def members(name: str) -> list[str]:
        entry = listing.get(name, {})
        below = [host for child in entry.get("children", []) for host in members(child)]
        return list(dict.fromkeys([*entry.get("hosts", []), *below]))

    return {"raw": raw, "groups": {name: members(name) for name in listing}}


@cache
def repository() -> Sources:
    return Sources(ROOT)


def stamps_of(
    role: str, inventory: dict[str, Any], sources: Sources | None = None, **more: Any
) -> Any:
    """The role's stamps on every host of the inventory."""
    stamps = Stamps(
        sources or repository(), inventory["raw"], inventory["groups"], defaults(), "2.19",
        more.get("resolve", lambda host, name: "resolved"),
    )  # fmt: skip
    return stamps.of(role, sorted(inventory["raw"]))[0]


@pytest.mark.parametrize("role", PLAYED)
def test_every_input_of_a_role_is_in_its_stamp(role: str, inventory: dict[str, Any]) -> None:
    before = stamps_of(role, inventory)
    host = sorted(inventory["raw"])[0]
    missed = []
    for name in options(role):
        changed = copy.deepcopy(inventory)
        changed["raw"][host][name] = "another value"
        if stamps_of(role, changed)[host] == before[host]:
            missed.append(name)
    assert missed == []


class Anything(dict[str, Any]):
    """Filters and tests of every name: only the names of variables matter here."""

    def __missing__(self, name: str) -> Any:
        return str

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:
        return str


def referred(role: str) -> set[str]:
    """Variables that Jinja finds in the templates and values of a role, through others as well."""
    environment = jinja2.Environment()
    environment.filters, environment.tests = Anything(), Anything()
    known = {name: value for values in defaults().values() for name, value in values.items()}
    for path in (ROOT / "roles").glob("*/vars/main.yml"):
        known.update(yaml.safe_load(path.read_text()) or {})

    def names(text: str) -> set[str]:
        # A template may have delimiters of its own: `#jinja2: variable_start_string: "[["`.
        own = re.findall(r"(\w+): ?['\"]([^'\"]+)['\"]", text.splitlines()[0]) if text else []
        reader = environment.overlay(**dict(own)) if text.startswith("#jinja2:") else environment
        return set(jinja2.meta.find_undeclared_variables(reader.parse(text)))

    waiting: set[str] = set()
    for path in (ROOT / "roles" / role).rglob("*"):
        # A file of a tree that is no template is taken as it is.
        if path.suffix == ".j2" or path.parent.name in ("tasks", "defaults", "vars"):
            waiting |= names(path.read_text())
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= names(str(known.get(name, ""))) - found
    return found


@pytest.mark.parametrize("role", PLAYED)
def test_whatever_its_templates_refer_to_is_in_its_stamp(
    role: str, inventory: dict[str, Any]
) -> None:
    before = stamps_of(role, inventory)
    host = inventory["groups"].get(role, sorted(inventory["raw"]))[0]
    own = {name for values in inventory["raw"].values() for name in values}
    own |= {name for values in defaults().values() for name in values}
    missed = []
    for name in sorted(referred(role) & own):
        changed = copy.deepcopy(inventory)
        changed["raw"][host][name] = "another value"
        if stamps_of(role, changed)[host] == before[host] and not name.startswith("ansible_"):
            missed.append(name)
    assert missed == []


@pytest.mark.parametrize("name", ["site_memory", "role_of_memory", "inventory_memory"])
def test_an_owners_own_variable_is_in_the_stamp_through_an_input(
    name: str, inventory: dict[str, Any]
) -> None:
    """Names that begin as Ansible's own are the owner's anyway."""
    changed = copy.deepcopy(inventory)
    host = changed["groups"]["redis"][0]
    changed["raw"][host]["redis_max_memory"] = "{{ between }}"
    changed["raw"][host]["between"] = "{{ " + name + " }}"
    changed["raw"][host][name] = "100mb"
    before = stamps_of("redis", changed)[host]
    changed["raw"][host][name] = "200mb"
    assert stamps_of("redis", changed)[host] != before


@pytest.mark.parametrize("role", STACKS)
def test_what_containers_take_from_the_role_docker_is_in_the_stamp(
    role: str, inventory: dict[str, Any]
) -> None:
    host = inventory["groups"][role][0]
    before = stamps_of(role, inventory)[host]
    for name in ("docker_log_max_size", "docker_log_max_file"):
        changed = copy.deepcopy(inventory)
        changed["raw"][host][name] = "another value"
        assert stamps_of(role, changed)[host] != before, name


def test_how_much_is_played_is_no_input(inventory: dict[str, Any]) -> None:
    host = inventory["groups"]["monitoring"][0]
    changed = copy.deepcopy(inventory)
    changed["raw"][host]["full"] = True
    assert stamps_of("monitoring", changed) == stamps_of("monitoring", inventory)


def test_keys_of_different_types_are_told_apart(inventory: dict[str, Any]) -> None:
    host = inventory["groups"]["redis"][0]
    found = set()
    for key in (1, "1", True):
        changed = copy.deepcopy(inventory)
        changed["raw"][host]["redis_users"] = {key: "x", "other": "y"}
        found.add(stamps_of("redis", changed)[host])
    assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "group", "roles"),
    [
        (
            "wireguard_address", "kafka",
            "telemetry ingest api spark_agent wireguard monitoring",
        ),
        ("wireguard_address", "timescale", "ingest api airflow wireguard monitoring"),
        ("wireguard_address", "redis", "telemetry api spark_agent dispatcher airflow"),
        ("wireguard_address", "api", "cli monitoring"),
        ("kafka_port", "kafka", "telemetry ingest api spark_agent"),
        ("timescale_listen_address", "timescale", "ingest api airflow"),
        ("spark_agent_port", "spark_agent", "dispatcher monitoring wireguard"),
        ("wireguard_endpoint", "kafka", "wireguard"),
        ("telemetry_port", "spark_agent", "monitoring"),
        ("node_exporter_state", "spark_agent", "monitoring"),
        ("ansible_host", "spark_agent", "nas_server"),
    ],
)  # fmt: skip
def test_what_a_role_reads_of_another_host_is_in_its_stamp(
    name: str, group: str, roles: str, inventory: dict[str, Any]
) -> None:
    other = inventory["groups"][group][0]
    for role in roles.split():
        host = next((h for h in inventory["groups"][role] if h != other), other)
        before = stamps_of(role, inventory)[host]
        changed = copy.deepcopy(inventory)
        changed["raw"][other][name] = "another value"
        assert stamps_of(role, changed)[host] != before, role


def test_what_concerns_another_host_alone_replays_nothing(inventory: dict[str, Any]) -> None:
    first, second, *_ = inventory["groups"]["telemetry"]
    before = stamps_of("telemetry", inventory)
    changed = copy.deepcopy(inventory)
    changed["raw"][second]["telemetry_interval_seconds"] = 77
    after = stamps_of("telemetry", changed)
    assert after[first] == before[first]
    assert after[second] != before[second]
    assert stamps_of("redis", changed) == stamps_of("redis", inventory)


def test_a_group_that_a_role_asks_for_is_in_its_stamp(inventory: dict[str, Any]) -> None:
    host = inventory["groups"]["docker"][0]
    before = stamps_of("wireguard", inventory)[host]
    changed = copy.deepcopy(inventory)
    changed["groups"]["docker"] = changed["groups"]["docker"][1:]
    assert stamps_of("wireguard", changed)[host] != before


def test_what_a_lookup_finds_is_in_the_stamp(inventory: dict[str, Any]) -> None:
    host = inventory["groups"]["nas"][0]
    assert "lookup(" in inventory["raw"][host]["nas_host_keys"]
    found = stamps_of("nas", inventory, resolve=lambda host, name: "one key")[host]
    assert stamps_of("nas", inventory, resolve=lambda host, name: "another")[host] != found


def test_facts_that_a_role_uses_are_in_its_stamp(inventory: dict[str, Any]) -> None:
    stamps = Stamps(
        repository(), inventory["raw"], inventory["groups"], defaults(), "2.19", lambda *_: ""
    )
    _, names = stamps.of("docker", ["control-pc-1"])
    assert {"distribution", "distribution_major_version"} <= set(names)
    _, names = stamps.of("telemetry", ["control-pc-1"])
    assert {"architecture", "python_version"} <= set(names)
    one = with_facts("stamp", names, {"architecture": "aarch64"})
    assert one != with_facts("stamp", names, {"architecture": "x86_64"})


def test_every_file_that_makes_a_role_is_in_its_stamp(
    tmp_path: Path, inventory: dict[str, Any]
) -> None:
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "tests", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored, symlinks=True)
    missed = []
    unchanged = Sources(tmp_path)
    before = {role: stamps_of(role, inventory, unchanged) for role in PLAYED}

    def changes(role: str, path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content + b"\n# changed\n")
        if stamps_of(role, inventory, Sources(tmp_path)) == before[role]:
            missed.append(f"{role}: {path.relative_to(tmp_path)}")
        path.write_bytes(content)

    for role in PLAYED:
        below = sorted(p for p in (tmp_path / "roles" / role).rglob("*") if p.is_file())
        below.remove(tmp_path / "roles" / role / "meta/fleet.yml")
        # One of each directory.
        for path in {p.parent: p for p in below}.values():
            changes(role, path)
    changes("nas", tmp_path / "meta/runtime.yml")
    for name in ("modules/config_tree", "filter/wireguard", "module_utils/tree"):
        changes("redis", tmp_path / f"plugins/{name}.py")
    changes("telemetry", tmp_path / "roles/python_service/templates/service.j2")
    for role in STACKS:
        changes(role, tmp_path / "roles/docker/templates/compose_baseline.j2")
    services = tmp_path / "files/python_services"
    for pattern in (
        "src/prime_spark/telemetry/__init__.py",
        "pyproject.toml",
        "locks/*",
        "dags/*.py",
    ):
        for role in ("telemetry", "kafka", "timescale", "airflow", "cli"):
            changes(role, sorted(services.glob(pattern))[0])
    assert missed == []


def test_of_the_catalogue_only_what_is_scraped_plays_roles(
    tmp_path: Path, inventory: dict[str, Any]
) -> None:
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "tests", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored, symlinks=True)
    roles = ("monitoring", "wireguard", "cli")

    def found(**changed: Any) -> dict[str, Any]:
        path = tmp_path / "roles/cli/meta/fleet.yml"
        path.write_text(yaml.safe_dump({"needs": ["wireguard@host", "api"], **changed}))
        return {role: stamps_of(role, inventory, Sources(tmp_path)) for role in roles}

    before = found()
    assert found(units=["a.service"], data=["/srv"]) == before
    after = found(scrape=[{"job": "prime_spark", "endpoint": "cli"}])
    assert [role for role in roles if after[role] != before[role]] == ["monitoring", "wireguard"]
    # A host that joins the group is scraped, too.
    inventory = copy.deepcopy(inventory)
    inventory["groups"]["cli"] = inventory["groups"]["cli"][1:]
    assert after["monitoring"] != stamps_of("monitoring", inventory, Sources(tmp_path))
