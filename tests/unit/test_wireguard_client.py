"""A device for the VPN: its private key is in what the terminal shows and nowhere else."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "wireguard_client.py"
HOSTS = {
    "wireguard": {
        "hosts": {
            "hub": {
                "wireguard_address": "10.90.8.2",
                "wireguard_role": "hub",
                "wireguard_endpoint": "198.51.100.2:51820",
            },
            "far": {"wireguard_address": "10.90.8.100"},
        }
    }
}
VARIABLES = {
    "wireguard_network": "10.90.8.0/24",
    "seed": "s" * 40,
    "wireguard_psk_seed": "{{ seed }}",
}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("wireguard_client_under_test", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    module.ask = module.hub_public_key
    # The hub itself would be asked over SSH.
    monkeypatch.setattr(module, "hub_public_key", lambda inventory, hub: f"key of {hub}")
    return module


@pytest.fixture
def inventory(tmp_path: Path, tool: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "group_vars" / "all").mkdir(parents=True)
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(HOSTS))
    (tmp_path / "group_vars" / "all" / "main.yml").write_text(yaml.safe_dump(VARIABLES))
    # Once a process.
    monkeypatch.setattr(tool.CLI, "setup_vault_secrets", lambda *_, **__: None)
    return tool.Inventory(tmp_path)


def fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE))


def test_the_inventory_gets_the_public_key_and_nothing_else(tool: Any, inventory: Any) -> None:
    shown = fields(tool.make(inventory, "phone", "", ""))
    (entry,) = yaml.safe_load(inventory.clients_file.read_text())["wireguard_clients"]
    # .100 is taken by a host.
    assert entry == {
        "name": "phone",
        "address": "10.90.8.101",
        "public_key": tool.public_key_of(shown["PrivateKey"]),
    }
    assert shown["Address"] == "10.90.8.101/32"
    assert shown["PublicKey"] == "key of hub" and shown["Endpoint"] == "198.51.100.2:51820"
    # The hub derives the same preshared key.
    assert shown["PresharedKey"] == tool.filters.wireguard_psk("s" * 40, "hub", "phone")
    for path in inventory.path.rglob("*"):
        assert path.is_dir() or shown["PrivateKey"] not in path.read_text()


def test_the_hub_is_asked_with_a_module_that_ansible_finds(tool: Any, tmp_path: Path) -> None:
    hosts = {"hub": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    try:
        # This machine may be in a VPN itself.
        assert len(tool.ask(tmp_path, "hub")) == 44
    except tool.ClientError as error:
        assert '"public_key": ""' in str(error)


def test_clients_are_added_one_by_one(tool: Any, inventory: Any) -> None:
    tool.make(inventory, "phone", "", "")
    own = tool.public_key_of(tool.generate_private_key())
    shown = fields(tool.make(inventory, "tablet", "10.90.8.50", own))
    assert "device made" in shown["PrivateKey"]
    entries = yaml.safe_load(inventory.clients_file.read_text())["wireguard_clients"]
    assert [entry["name"] for entry in entries] == ["phone", "tablet"]
    assert entries[1]["public_key"] == own
    with pytest.raises(tool.ClientError, match="phone is a client already"):
        tool.make(inventory, "phone", "", "")
    with pytest.raises(Exception, match=r"is 10\.90\.8\.50, which tablet has"):
        tool.make(inventory, "watch", "10.90.8.50", "")


def test_a_fleet_without_a_vpn_is_a_clear_refusal(tool: Any, inventory: Any) -> None:
    (inventory.path / "hosts.yml").write_text("all: {children: {cli: {hosts: {hub: {}}}}}")
    with pytest.raises(tool.ClientError, match="no host in the group wireguard, expected a hub"):
        tool.make(tool.Inventory(inventory.path), "phone", "", "")


def test_without_a_terminal_nothing_is_shown_or_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, TOOL, "--inventory", tmp_path, "--name", "phone"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "shown on a terminal only" in done.stderr and list(tmp_path.iterdir()) == []
