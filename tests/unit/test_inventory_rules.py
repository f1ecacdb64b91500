"""The rules for inventories one by one, on fleets made by hand: each passes without its mistake."""

from __future__ import annotations

import sys
from typing import Any

import pytest

ACTION: Any = sys.modules["prime_spark_action.validate_inventory"]
RULES: Any = sys.modules["prime_spark_inventory"]

INT = {"type": "int"}
STR = {"type": "str"}
OPTIONS = {
    "wireguard": {"wireguard_address": STR, "wireguard_network": STR, "wireguard_mtu": INT},
    "kafka": {"kafka_port": INT, "kafka_data_directory": {"type": "path"}},
}
HUB = {
    "wireguard_network": "10.8.0.0/24",
    "wireguard_address": "10.8.0.2",
    "wireguard_role": "hub",
    "wireguard_endpoint": "198.51.100.2:51820",
}
SPOKE = {"wireguard_network": "10.8.0.0/24", "wireguard_address": "10.8.0.3"}


def refusals(
    hub: dict[str, Any] | None = None,
    spoke: dict[str, Any] | None = None,
    raw: dict[str, Any] | None = None,
    typed: set[str] | None = None,
) -> list[str]:
    """What is refused of a hub and a spoke with these values on top of right ones."""
    fleet = RULES.Fleet(
        roles={name: RULES.Role(name, options, {}) for name, options in OPTIONS.items()},
        groups={"wireguard": ["hub", "spoke"], "kafka": ["hub"], "edge": ["hub"]},
        raw={"hub": {}, "spoke": raw or {}},
        typed=typed or set(),
        values={"hub": HUB | (hub or {}), "spoke": SPOKE | (spoke or {})},
    )
    RULES.judge(
        fleet,
        needs={"kafka": ["wireguard@host"]},
        single=["kafka"],
        secrets={"vault_key"},
        remedy="make secrets",
    )
    return [f"{where}: {sentence}" for where, sentence in fleet.refusals]


def test_a_right_fleet_is_not_refused() -> None:
    assert refusals() == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"wireguard_address": "10.8.0.0"}, "keeps for itself"),
        ({"wireguard_address": "10.8.0.255"}, "keeps for itself"),
        ({"wireguard_address": "10.8.0"}, "expected an address like 10.8.0.3 without a length"),
        ({"wireguard_mtu": 68}, "expected 1280 to 9000 bytes"),
        ({"wireguard_mtu": -1}, "expected 1280 to 9000 bytes"),
        ({"wireguard_network": "10.8.0.0/25"}, "differs between hosts"),
        ({"docker_log_max_file": -1}, "expected no negative number"),
        ({"kafka_data_directory": "kafka"}, "expected a directory such as /var/lib/prime-spark/"),
        ({"kafka_data_directory": "/opt/../etc"}, "expected a directory such as"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], sentence: str) -> None:
    (refusal,) = refusals(spoke=values)
    assert sentence in refusal and str(next(iter(values.values()))) in refusal


@pytest.mark.parametrize(
    ("clients", "sentence"),
    [
        ([{"name": "phone", "address": "10.8.0.40"}], ""),
        ([{"name": "spoke", "address": "10.8.0.40"}], "spoke is the name of another peer"),
        ([{"name": "phone", "address": "10.8.0.3"}], "is 10.8.0.3, which spoke has"),
        (
            [{"name": "a", "address": "10.8.0.40"}, {"name": "b", "address": "10.8.0.40"}],
            "is 10.8.0.40, which a has",
        ),
        (
            [{"name": "a", "address": "10.8.0.40"}, {"name": "a", "address": "10.8.0.41"}],
            "a is the name of another peer",
        ),
    ],
)
def test_devices_have_names_and_addresses_of_their_own(
    clients: list[dict[str, str]], sentence: str
) -> None:
    found = refusals(hub={"wireguard_clients": clients})
    assert len(found) == (1 if sentence else 0)
    assert sentence in "".join(found)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wireguard_adress", "did you mean wireguard_address?"),
        ("kafka_unlike_any_other", "see roles/kafka/meta/argument_specs.yml"),
        ("__kafka_users", "is internal to its role"),
        ("verify_fresh", "belongs to playbooks/verify.yml"),
        ("stack_dirctory", "did you mean stack_directory?"),
        ("stack_directory", ""),
        ("precheck_disk_mb", ""),
        ("shopping_list", ""),
        ("ansible_user", ""),
        ("vault_anything", ""),
    ],
)
def test_names_are_known_or_the_owners_own(name: str, sentence: str) -> None:
    found = refusals(raw={name: "value"})
    assert len(found) == (1 if sentence else 0)
    assert sentence in "".join(found)


def test_the_command_line_may_set_what_belongs_to_a_play() -> None:
    assert refusals(raw={"verify_fresh": "60"}, typed={"verify_fresh"}) == []


def test_a_secret_that_is_short_is_named_and_not_shown() -> None:
    (refusal,) = refusals(raw={"vault_key": "hunter2"})
    assert "vault_key has 7 characters" in refusal and "hunter2" not in refusal


@pytest.mark.parametrize("count", [1, 3, 4])
def test_many_missing_secrets_are_one_line(count: int) -> None:
    fleet = RULES.Fleet({}, {}, {}, missing={f"vault_{i}": {"x of y"} for i in range(count)})
    RULES.judge(fleet, needs={}, single=[], secrets=set(), remedy="make secrets")
    assert len(fleet.lines()) == (count if count <= 3 else 1)
    assert all("`make secrets` makes" in line for line in fleet.lines())
