"""The rules for inventories one by one, on fleets made by hand: each passes without its mistake."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.plugin_utils import inventory as RULES

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
KEY = "k" * 43 + "="
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
    RULES.validate(
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
        ({"wireguard_member_connections": 0}, "expected at least 1"),
        ({"telemetry_other_devices": "pump"}, "expected a list of names"),
        ({"telemetry_device_id": "o'brien"}, "is no name of a device"),
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
        ([{"name": "my phone", "address": "10.8.0.40"}], "the name is 'my phone', expected let"),
        ([{"name": "phone", "address": "10.8.0.40", "public_key": "x"}], "public_key of phone is"),
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
    found = refusals(hub={"wireguard_clients": [{"public_key": KEY} | c for c in clients]})
    assert len(found) == (1 if sentence else 0)
    assert sentence in "".join(found)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wireguard_adress", "did you mean wireguard_address?"),
        ("kafka_unlike_any_other", "see roles/kafka/meta/argument_specs.yml"),
        ("__kafka_users", "is internal to its role"),
        ("exporters_devices", "list devices that no host is in telemetry_other_devices"),
        ("monitoring_devices", "every host of the group telemetry is a device"),
        ("verify_fresh", "belongs to playbooks/verify.yml"),
        ("precheck_dsk_mb", "did you mean precheck_disk_mb?"),
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


QUOTAS = {"redis": {"user_bytes": 16 * 2**20, "all_bytes": 48 * 2**20}}


@pytest.mark.parametrize(
    ("most", "quotas", "said"),
    [
        ("128mb", QUOTAS, ""),
        ("96MB", QUOTAS, ""),
        ("0", QUOTAS, ""),
        ("100663296", QUOTAS, ""),
        ("1gb", {"nas": {"user_bytes": 1}}, ""),
        ("64mb", {"redis": {"user_bytes": 1}},
         "api_memory_quotas: all_bytes of redis is 50331648, expected at most 33554432, half of "
         "redis_max_memory 64mb of hub; lower it, or raise redis_max_memory to 96mb, and "
         "redis_memory with it"),
        ("64m", {"redis": {"all_bytes": 32_000_001}}, "raise redis_max_memory to 62mb"),
        ("128mb", {"redis": {"user_bytes": 48 * 2**20 + 1}},
         "api_memory_quotas: user_bytes of redis is 50331649, expected at most all_bytes, which is "
         "50331648; lower it, or raise all_bytes"),
        ("128mb", {"redis": {"all_bytes": 1}}, ""),
        ("128mb", {"database": {"user_bytes": 2, "all_bytes": 1}}, "user_bytes of database is 2"),
        ("128MiB", QUOTAS,
         "redis_max_memory is '128MiB', expected bytes, or a number with kb, mb or gb"),
        ("50%", QUOTAS, "redis_max_memory is '50%', expected bytes"),
    ],
)  # fmt: skip
def test_quotas_fit_into_the_memory_of_redis(
    most: str, quotas: dict[str, dict[str, int]], said: str
) -> None:
    fleet = RULES.Fleet(
        roles={"api": RULES.Role("api", {}, {"api_memory_quotas": QUOTAS})},
        groups={"api": ["hub"], "redis": ["hub"]},
        raw={"hub": {}},
        values={"hub": {"redis_max_memory": most, "api_memory_quotas": quotas}},
    )
    RULES.validate(fleet, needs={}, single=[], secrets=set(), remedy="make secrets")
    found = [f"{where}: {sentence}" for where, sentence in fleet.refusals]
    assert len(found) == (1 if said else 0), found
    assert said in "".join(found)


def test_a_secret_that_is_short_is_named_and_not_shown() -> None:
    (refusal,) = refusals(raw={"vault_key": "hunter2"})
    assert "vault_key has 7 characters" in refusal and "hunter2" not in refusal


@pytest.mark.parametrize("count", [1, 3, 4])
def test_many_missing_secrets_are_one_line(count: int) -> None:
    fleet = RULES.Fleet({}, {}, {}, missing={f"vault_{i}": {"x of y"} for i in range(count)})
    RULES.validate(fleet, needs={}, single=[], secrets=set(), remedy="make secrets")
    assert len(fleet.lines()) == (count if count <= 3 else 1)
    assert all("`make secrets` makes" in line for line in fleet.lines())
