"""WireGuard: keys, the plan against what runs, peers out of an inventory."""

from __future__ import annotations

import base64
import dataclasses
import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.prime_spark.fleet.plugins.filter import wireguard as filters
from ansible_collections.prime_spark.fleet.plugins.module_utils import ping as echo
from ansible_collections.prime_spark.fleet.plugins.module_utils import wireguard as wg
from ansible_collections.prime_spark.fleet.plugins.module_utils import wireguard_host as host
from ansible_collections.prime_spark.fleet.plugins.module_utils import wireguard_plan as planning
from ansible_collections.prime_spark.fleet.plugins.module_utils import wireguard_revert as revert
from ansible_collections.prime_spark.fleet.plugins.modules import wireguard_health as health
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

ROOT = Path(__file__).parents[2]
SEED = "s" * 40
PRIVATE = base64.b64encode(bytes(range(32))).decode()
PUBLIC = wg.public_key_of(PRIVATE)


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


def peer(number: int, **changes: Any) -> Any:
    made = wg.Peer(
        name=f"spoke{number}",
        address=f"10.90.8.{number}",
        public_key=key(number),
        preshared_key=key(100 + number),
        allowed_ips=(f"10.90.8.{number}/32",),
    )
    return dataclasses.replace(made, **changes)


def config(**changes: Any) -> Any:
    made = wg.Config("wg0", "10.90.8.2/24", 51820, 1420, PRIVATE, True, (peer(3), peer(4)))
    return dataclasses.replace(made, **changes)


def running(of: Any) -> Any:
    """The interface as it runs after the configuration was applied."""
    lines = [f"{of.private_key}\t{wg.public_key_of(of.private_key)}\t{of.listen_port}\toff"]
    for p in of.peers:
        allowed = ",".join(p.allowed_ips)
        endpoint = p.endpoint or "(none)"
        fields = [p.public_key, p.preshared_key, endpoint, allowed, "0", "1", "2"]
        lines.append("\t".join([*fields, str(p.keepalive or "off")]))
    return wg.parse_dump("\n".join(lines) + "\n")


def facts(**changes: Any) -> dict[str, Any]:
    seen = {"addresses": ["10.90.8.2/24"], "mtu": 1420, "active": True, "forwarding": True}
    return seen | {"routes": {"10.90.8.0/24": "kernel"}} | changes


def plan(wanted: Any, before: Any, **changes: Any) -> Any:
    interface_digest, peers_digest = wg.sections(before.text())
    return planning.make_plan(
        wanted,
        changes.pop("text", before.text()),
        changes.pop("applied", {"interface": interface_digest, "peers": peers_digest}),
        changes.pop("running", running(before)),
        facts(**{name: value for name, value in changes.items() if name != "known"}),
        changes.get("known", {}),
    )


# Keys


def test_public_keys_are_those_of_an_independent_implementation() -> None:
    for _ in range(20):
        private = wg.generate_private_key()
        raw = base64.b64decode(private)
        assert raw[0] & 7 == 0 and raw[31] & 192 == 64
        reference = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
        assert base64.b64decode(wg.public_key_of(private)) == reference


@pytest.mark.parametrize("text", ["", "secret stuff!", base64.b64encode(b"short").decode()])
def test_a_bad_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(wg.WireGuardError) as caught:
        wg.decode_key(text)
    assert not text or text not in str(caught.value)


# The file


def test_no_representation_and_no_mask_shows_a_secret() -> None:
    secrets = [PRIVATE, key(103), key(104)]
    shown = [
        repr(config()),
        repr(running(config())),
        config().masked(None),
        config().masked(config().text()),
        wg.mask(config().text()),
        planning.peers_record(config()),
    ]
    for text in shown:
        assert not any(secret in text for secret in secrets)
    assert all(secret in config().text() for secret in secrets)


def test_the_mask_says_which_secret_differs() -> None:
    before = config().text()
    after = config(peers=(peer(3, preshared_key=key(9)), peer(4)))
    assert after.masked(before).count("(hidden, differs)") == 1
    assert config().masked(before) == wg.mask(before)


def test_sections_tell_the_interface_from_the_peers() -> None:
    base = wg.sections(config().text())
    peers = wg.sections(config(peers=(peer(3),)).text())
    port = wg.sections(config(listen_port=1).text())
    assert (base[0] == peers[0], base[1] == peers[1]) == (True, False)
    assert (base[0] == port[0], base[1] == port[1]) == (False, True)


def test_the_hub_forwards_between_its_peers_and_nothing_else() -> None:
    hooks = [line for line in config().text().splitlines() if line.startswith("Post")]
    policy, sysctl, rule, _ = hooks
    assert "iptables -w -P FORWARD DROP" in policy and "ip_forward=1" in sysctl
    assert "-i wg0 -o wg0 -j ACCEPT" in rule
    assert "Post" not in config(forward=False).text()


# The plan


def test_nothing_to_do() -> None:
    assert plan(config(), config()) == planning.Plan("none", [])


def test_first_start() -> None:
    made = plan(config(), config(), running=None, text=None, applied=None)
    assert made == planning.Plan("start", ["write the configuration", "start wg0"])


@pytest.mark.parametrize(
    ("peers", "sentence"),
    [
        ((peer(3), peer(4), peer(5)), "add peer spoke5"),
        ((peer(3),), f"remove peer {key(4)}"),
        ((peer(3), peer(4, preshared_key=key(9))), "preshared key of peer spoke4"),
        ((peer(3), peer(4, allowed_ips=("10.90.8.9/32",))), "allowed addresses of peer spoke4"),
        ((peer(3), peer(4, keepalive=25)), "keepalive of peer spoke4"),
    ],
)
def test_a_difference_of_peers_never_restarts(peers: Any, sentence: str) -> None:
    made = plan(config(peers=peers), config())
    assert made == planning.Plan("sync", ["write the configuration", sentence])


@pytest.mark.parametrize(
    "wanted",
    [
        config(address="10.90.8.9/24"),
        config(listen_port=51821),
        config(mtu=1300),
        config(forward=False),
        config(private_key=wg.generate_private_key()),
    ],
)
def test_a_difference_of_the_interface_restarts(wanted: Any) -> None:
    made = plan(wanted, config())
    assert (made.action, made.risky) == ("restart", True)


@pytest.mark.parametrize(
    "seen",
    [
        {"addresses": []},
        {"mtu": 1400},
        {"active": False},
        {"forwarding": False},
        {"running": running(config(listen_port=4))},
    ],
)
def test_what_runs_counts_not_only_the_file(seen: dict[str, Any]) -> None:
    made = plan(config(), config(), **seen)
    # A repair: there is no other state to come back to.
    assert (made.action, made.risky) == ("restart", False)


def test_a_run_that_died_between_writing_and_applying_is_made_up_for() -> None:
    old, new = config(), config(peers=(peer(3), peer(4, endpoint="192.0.2.1:1")))
    interface_digest, peers_digest = wg.sections(old.text())
    applied = {"interface": interface_digest, "peers": peers_digest}
    made = plan(new, new, applied=applied)
    assert made == planning.Plan("sync", ["set the peers again"])
    hooks = config(forward=False)
    assert plan(hooks, hooks, applied=applied).action == "restart"


def test_after_a_boot_the_file_is_what_runs() -> None:
    assert plan(config(), config(), applied=None).action == "none"


def test_a_start_with_another_file_has_a_state_to_come_back_to() -> None:
    assert plan(config(listen_port=1), config(), running=None).risky
    assert not plan(config(), config(), running=None).risky


@pytest.mark.parametrize(
    ("changes", "risky"),
    [
        ({}, False),
        ({"keepalive": 20}, False),
        ({"endpoint": "198.51.100.9:51820"}, True),
        ({"public_key": key(77)}, True),
        ({"address": "10.90.8.33"}, True),
    ],
)
def test_calling_a_known_peer_in_another_way_is_risky(changes: Any, risky: bool) -> None:
    before = config(forward=False, peers=(peer(3, endpoint="198.51.100.2:51820"),))
    after = config(
        forward=False, peers=(peer(3, **{"endpoint": "198.51.100.2:51820", **changes}), peer(4))
    )
    known = json.loads(planning.peers_record(before))["peers"]
    made = plan(after, before, known={entry["name"]: entry for entry in known})
    assert (made.action, made.risky) == ("sync", risky)


@pytest.mark.parametrize(
    ("allowed", "routes", "expected"),
    [
        # What the interface's own network covers needs no route of its own.
        ("10.90.8.7/32", {"10.90.8.0/24": "kernel"}, ([], [])),
        ("10.1.0.0/16", {"10.90.8.0/24": "kernel"}, (["10.1.0.0/16"], [])),
        ("10.1.0.0/16", {"10.90.8.0/24": "kernel", "10.1.0.0/16": "boot"}, ([], [])),
        ("10.90.8.7/32", {"10.90.8.0/24": "kernel", "10.1.0.0/16": "boot"}, ([], ["10.1.0.0/16"])),
    ],
)
def test_a_peer_gets_its_route_and_takes_it_along(
    allowed: str, routes: dict[str, str], expected: Any
) -> None:
    wanted = config(peers=(peer(7, allowed_ips=(allowed,)),))
    assert planning.route_changes(wanted, routes) == expected
    made = plan(wanted, wanted, routes=routes)
    assert made.action == ("sync" if any(expected) else "none")


@pytest.mark.parametrize(
    ("connection", "within"),
    [("10.90.8.3 50000 10.90.8.2 22", True), ("10.90.1.5 50000 10.90.1.10 22", False), ("", False)],
)
def test_who_is_connected_from_within_the_vpn(connection: str, within: bool) -> None:
    assert planning.client_is_within(config(), connection) is within


def test_a_peer_that_moved_is_left_alone() -> None:
    wanted = config(peers=(peer(3, endpoint="198.51.100.1:1"),))
    moved = running(config(peers=(peer(3, endpoint="198.51.100.9:9"),)))
    assert plan(wanted, wanted, running=moved).action == "none"


# Peers of a host


def given(name: str, **changes: Any) -> dict[str, Any]:
    made = {
        "name": name,
        "address": "10.90.8.3",
        "public_key": "",
        "preshared_key": key(1),
        "allowed_ips": ["10.90.8.3/32"],
        "endpoint": "",
        "keepalive": 0,
    }
    return made | changes


def test_an_unreachable_peer_keeps_its_known_key_and_a_new_one_waits() -> None:
    peers, deferred = planning.wanted_peers(
        [given("old"), given("new"), given("told", public_key=key(8))],
        {"old": {"public_key": key(7)}, "left": {"public_key": key(6)}},
    )
    assert [(p.name, p.public_key) for p in peers] == [("old", key(7)), ("told", key(8))]
    assert deferred == ["new"]


def test_a_bad_key_names_the_peer() -> None:
    with pytest.raises(wg.WireGuardError, match="preshared key of peer a: "):
        planning.wanted_peers([given("a", public_key=key(1), preshared_key="x")], {})


# Filters

HOSTS: dict[str, dict[str, Any]] = {
    "hub": {
        "wireguard_address": "10.90.8.2",
        "wireguard_role": "hub",
        "wireguard_endpoint": "198.51.100.2:51820",
        "wireguard_lan": "home",
        "wireguard_lan_endpoint": "10.90.1.10:51820",
    },
    "near": {"wireguard_address": "10.90.8.3", "wireguard_lan": "home"},
    "far": {"wireguard_address": "10.90.8.11"},
}


def fleet(**changes: dict[str, Any]) -> Any:
    hosts = {name: HOSTS.get(name, {}) | changes.get(name, {}) for name in {**HOSTS, **changes}}
    return filters.wireguard_fleet(list(hosts), hosts)


def peers_of(host: str, **arguments: Any) -> Any:
    keys = arguments.pop("keys", {"hub": key(1)})
    return filters.wireguard_peers(fleet(), host, keys, SEED, "10.90.8.0/24", 25, **arguments)


def test_a_spoke_has_the_hub_alone() -> None:
    (hub,) = peers_of("far")
    assert hub["name"] == "hub" and hub["public_key"] == key(1)
    assert hub["allowed_ips"] == ["10.90.8.0/24"] and hub["keepalive"] == 25
    assert hub["endpoint"] == "198.51.100.2:51820"
    assert peers_of("near")[0]["endpoint"] == "10.90.1.10:51820"


def test_the_hub_has_everybody_and_each_only_by_its_own_address() -> None:
    assert [(p["name"], p["allowed_ips"]) for p in peers_of("hub")] == [
        ("far", ["10.90.8.11/32"]),
        ("near", ["10.90.8.3/32"]),
    ]


def test_both_ends_derive_the_same_key_and_no_two_pairs_share_one() -> None:
    pairs = {p["name"]: p["preshared_key"] for p in peers_of("hub")}
    assert pairs["far"] == peers_of("far")[0]["preshared_key"]
    assert len({*pairs.values(), filters.wireguard_psk("t" * 40, "hub", "far")}) == 3
    assert len(base64.b64decode(pairs["far"])) == 32


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hub": {"wireguard_role": "spoke"}}, "the hubs .* are none, expected exactly one"),
        ({"far": {"wireguard_role": "hub"}}, "the hubs .* are far, hub, expected exactly one"),
        ({"far": {"wireguard_address": "10.90.8.300"}}, "far: wireguard_address"),
        (
            {"far": {"wireguard_address": "10.90.8.3"}},
            "far, near: wireguard_address is 10",
        ),
        ({"hub": {"wireguard_endpoint": ""}}, "hub: wireguard_endpoint is empty"),
        ({"other": {}}, "other: wireguard_address is ''"),
    ],
)
def test_a_vpn_that_cannot_work_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(AnsibleFilterError, match=sentence):
        fleet(**changes)


def test_an_address_outside_of_the_network_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="expected one within"):
        filters.wireguard_peers(fleet(), "far", {}, SEED, "10.91.0.0/24", 25)


def test_a_short_seed_is_refused_without_being_shown() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        filters.wireguard_psk("hunter2", "a", "b")
    assert "hunter2" not in str(caught.value)


def test_a_host_that_left_is_no_peer() -> None:
    left = fleet(far={"wireguard_state": "absent"})
    assert filters.wireguard_neighbours(left, "hub") == ["near"]
    assert filters.wireguard_neighbours(left, "far") == []


def test_keys_come_from_the_run_and_from_reading() -> None:
    hostvars = {"a": {"__wireguard_key": {"public_key": "A"}}, "b": {}, "c": {}}
    read = [{"item": "b", "public_key": "B"}, {"item": "c", "unreachable": True}]
    assert filters.wireguard_keys(["a", "b", "c"], hostvars, read) == {"a": "A", "b": "B"}


def test_only_names_are_looked_up_again() -> None:
    endpoints = ["", "198.51.100.2:51820", "[2001:db8::1]:51820", "home.example.org:51820"]
    assert filters.wireguard_names(endpoints) == ["home.example.org:51820"]


def test_when_the_check_waits_for_a_later_run() -> None:
    def defer(read: list[Any], run: list[str], still: list[str]) -> Any:
        return filters.wireguard_defer("far", "hub", key(5), run, still, read)

    assert defer([], ["far", "hub"], ["far", "hub"]) == ""
    assert "failed in this run" in defer([], ["far", "hub"], ["far"])
    gone = [{"item": "hub", "unreachable": True}]
    assert "could not be reached" in defer(gone, ["far"], ["far"])
    old = [{"item": "hub", "public_key": "H", "known_peers": {"far": key(4)}}]
    assert "does not know this host" in defer(old, ["far"], ["far"])
    good = [{"item": "hub", "public_key": "H", "known_peers": {"far": key(5)}}]
    assert defer(good, ["far"], ["far"]) == ""
    assert filters.wireguard_defer("hub", "hub", "", [], [], []) == ""


def test_one_sentence_for_each_peer_that_waits() -> None:
    read = [{"item": "old"}, {"item": "new"}, {"item": "read", "public_key": "K"}]
    assert [line.split(",")[0] for line in filters.wireguard_waiting(["new"], read)] == [
        "deferred: no public key of new is known yet",
        "deferred: old could not be read",
    ]


def verdict(**changes: Any) -> str:
    seen = {"problem": "", "answering": ["hub"]}
    hostvars = {
        "hub": {"__wireguard_seen": seen | changes.get("hub", {})},
        "far": {"__wireguard_seen": seen | changes.get("far", {})},
    }
    still = changes.get("still", ["hub", "far"])
    views = changes.get("views", [{"item": "hub", "healthy": True}])
    said = filters.wireguard_problem(
        changes.get("host", "far"), "hub", hostvars, views, ["hub", "far"], still
    )
    return str(said)


def test_what_takes_a_change_back() -> None:
    lost = {"item": "near", "healthy": False, "msg": "no answer"}
    assert verdict() == ""
    assert verdict(far={"problem": "nobody answers"}) == "nobody answers"
    # Whatever becomes of the hub becomes of its spokes.
    assert verdict(hub={"problem": "nobody answers"}) == (
        "hub takes its own change back (nobody answers)"
    )
    assert verdict(still=["far"]) == "hub could not confirm its own change"
    # One peer that reaches it is enough, and one that cannot be asked says nothing.
    assert verdict(host="hub", views=[lost, {"item": "far", "healthy": True}]) == ""
    assert verdict(host="hub", views=[{"item": "far", "unreachable": True}]) == ""
    assert verdict(host="hub", views=[]) == ""
    said = verdict(host="hub", views=[lost, lost])
    assert "not so from near, nor from 1 more: no answer" in said


# Devices without a playbook


def phone(**changes: Any) -> dict[str, Any]:
    return {"name": "phone", "address": "10.90.8.100", "public_key": key(9)} | changes


def test_only_the_hub_knows_a_client() -> None:
    arguments: Any = {"clients": [phone()]}
    assert [p["name"] for p in peers_of("hub", **arguments)] == ["far", "near", "phone"]
    client = peers_of("hub", **arguments)[-1]
    assert client["allowed_ips"] == ["10.90.8.100/32"] and "endpoint" not in client
    assert client["preshared_key"] == filters.wireguard_psk(SEED, "hub", "phone")
    assert [p["name"] for p in peers_of("far", **arguments)] == ["hub"]


@pytest.mark.parametrize(
    ("clients", "sentence"),
    [
        ([phone(name="far")], "far is the name of another peer"),
        ([phone(), phone(address="10.90.8.101")], "phone is the name of another peer"),
        ([phone(), phone(name="tablet")], "the address of tablet is 10.90.8.100, which phone has"),
        ([phone(address="10.90.8.11")], "the address of phone is 10.90.8.11, which far has"),
        ([phone(address="10.90.9.1")], "expected one within wireguard_network 10.90.8.0/24"),
        ([phone(address="10.90.8.255")], "wireguard_network 10.90.8.0/24 keeps for itself"),
        ([phone(address="near")], "is 'near', expected an address like 10.8.0.3"),
        ([phone(public_key="")], "make wireguard-client NAME=phone"),
        ([phone(name="my phone")], "the name is 'my phone', expected letters"),
    ],
)
def test_a_client_that_cannot_work_is_refused(clients: Any, sentence: str) -> None:
    with pytest.raises(AnsibleFilterError, match=sentence):
        peers_of("hub", clients=clients)


# The way back


@pytest.fixture
def way_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the way back below a directory of the test; systemd is only noted."""
    home = tmp_path / "wireguard"
    names = {
        "DIRECTORY": home / "revert",
        "STATE": home / "revert" / "state.json",
        "REVERTED": home / "reverted.json",
        "BOOT_UNIT": tmp_path / "systemd" / "at-boot.service",
        "BOOT_LINK": tmp_path / "systemd" / "wants" / "at-boot.service",
        "TREE_RECORD": tmp_path / "tree.json",
    }
    (tmp_path / "systemd").mkdir()
    for name, path in names.items():
        monkeypatch.setattr(revert, name, str(path))
    started: list[str] = []
    monkeypatch.setattr(revert, "run", lambda argv, **_: started.append(" ".join(argv)))
    monkeypatch.setattr(revert, "_stop_timer", lambda: None)
    monkeypatch.setattr(revert, "client_connection", lambda: "1.2.3.4 5 6.7.8.9 22")
    return home


def arm(tmp_path: Path) -> Any:
    (tmp_path / "guard.nft").write_text("old guard")
    (tmp_path / "tree.json").write_text(
        json.dumps({"files": [str(tmp_path / "guard.nft")], "units": ["guard.service"]})
    )
    (tmp_path / "wg0.conf").write_text("old")
    files = [str(tmp_path / "wg0.conf"), str(tmp_path / "absent")]
    kept: dict[str, Any] = {"fresh": [], "endpoints": {}, "addresses": []}
    state = revert.snapshot("wg0", "wg-quick@wg0", files, enabled=True, active=True, **kept)
    return revert.arm(state, "#!program", 90)


def test_what_is_kept_is_for_root_alone_and_complete(way_back: Path, tmp_path: Path) -> None:
    state = arm(tmp_path)
    kept = {Path(path).name: entry and entry["content"] for path, entry in state["files"].items()}
    assert (kept["wg0.conf"], kept["guard.nft"], kept["absent"]) == ("old", "old guard", None)
    assert state["services"] == ["guard.service"]
    assert state["deadline"] - state["armed"] == 90
    assert way_back.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in way_back.rglob("*"))
    assert "revert boot" in Path(revert.BOOT_UNIT).read_text()
    assert Path(revert.BOOT_LINK).resolve() == Path(revert.BOOT_UNIT)


def test_a_second_change_keeps_the_first_state(way_back: Path, tmp_path: Path) -> None:
    arm(tmp_path)
    (tmp_path / "wg0.conf").write_text("new, not confirmed")
    revert.arm({"files": {}, "interface": "wg0"}, "#!program", 90)
    kept = revert.pending()["files"][str(tmp_path / "wg0.conf")]
    assert kept["content"] == "old"


def test_a_confirmed_change_leaves_nothing_behind(way_back: Path, tmp_path: Path) -> None:
    arm(tmp_path)
    revert.disarm()
    assert revert.pending() is None
    assert list(way_back.iterdir()) == [] and list((tmp_path / "systemd").rglob("*.service")) == []


def test_the_program_puts_everything_back_at_boot(way_back: Path, tmp_path: Path) -> None:
    arm(tmp_path)
    (tmp_path / "wg0.conf").write_text("new")
    (tmp_path / "guard.nft").write_text("new guard")
    (tmp_path / "absent").write_text("was not there")
    program = load_program()
    program.STATE, program.HERE = revert.STATE, revert.DIRECTORY
    program.REVERTED = revert.REVERTED
    program.run = lambda *argv: True
    program.boot(revert.pending())
    assert (tmp_path / "wg0.conf").read_text() == "old"
    assert (tmp_path / "guard.nft").read_text() == "old guard"
    assert not (tmp_path / "absent").exists()
    assert revert.pending() is None and not Path(revert.BOOT_LINK).is_symlink()
    assert revert.reverted()["reverted"] > 0


def load_program() -> ModuleType:
    path = ROOT / "roles" / "wireguard" / "files" / "vpn-revert"
    loader = importlib.machinery.SourceFileLoader("vpn_revert_under_test", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# The check


def test_the_echo_request_has_a_right_checksum() -> None:
    assert echo.checksum(echo.echo_request(4711, 1)) == 0


def test_a_stale_or_broken_status_is_a_problem(tmp_path: Path) -> None:
    status = tmp_path / "vpn.json"
    assert "expected" in health.status_problem(str(status))
    status.write_text('{"time": 1}')
    assert "at most 60 s old" in health.status_problem(str(status))
    status.write_text('{"time": 99999999999}')
    assert health.status_problem(str(status)) == ""


def test_what_was_applied_does_not_outlive_a_boot() -> None:
    """After a boot the file is what was started, whatever was in force before."""
    assert host.Paths.of("wg0").applied.startswith("/run/")
    assert host.Paths.of("wg0").config == "/etc/wireguard/wg0.conf"
