#!/usr/bin/env python3
"""Make the VPN's key pair and configuration of a device that no playbook manages, a phone.

Prints the configuration and its QR code to the terminal, once, and enters name, address and public
key into the inventory (group_vars/all/wireguard_clients.yml). The private key is written nowhere.
The next run of the tag wireguard makes the hub know the device.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import segno
import yaml
from ansible import constants
from ansible.cli import CLI
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.utils.collection_loader import AnsibleCollectionConfig
from ansible.vars.manager import VariableManager

REPOSITORY = Path(__file__).resolve().parent.parent
if not AnsibleCollectionConfig.collection_finder:
    init_plugin_loader([str(REPOSITORY / "collections")])

from ansible_collections.prime_spark.fleet.plugins.filter import (  # noqa: E402
    wireguard as filters,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (  # noqa: E402
    generate_private_key,
    public_key_of,
)
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.vpn import (  # noqa: E402
    FIELDS,
    hubs,
)

HEADER = "# Devices in the VPN that no playbook manages. Public keys only: the others stay there.\n"
KEEPALIVE_SECONDS = 25


class ClientError(Exception):
    """Something in the way; the message names it and the remedy."""


class Inventory:
    """The inventory's variables as a play would see them, templates and vault resolved."""

    def __init__(self, path: Path) -> None:
        loader = DataLoader()
        identities = constants.DEFAULT_VAULT_IDENTITY_LIST
        CLI.setup_vault_secrets(loader, vault_ids=identities, auto_prompt=False)
        self.loader = loader
        self.path = path
        self.hosts = InventoryManager(loader=loader, sources=[str(path)])
        self.variables = VariableManager(loader=loader, inventory=self.hosts)

    def of(self, host: str, name: str, default: Any = None) -> Any:
        """One variable of a host."""
        found = self.variables.get_vars(host=self.hosts.get_host(host))
        if name not in found:
            return default
        return Templar(loader=self.loader, variables=found).template(found[name])

    def fleet(self) -> dict[str, dict[str, str]]:
        names = [host.name for host in self.hosts.get_hosts("wireguard")]
        hostvars = {}
        for name in names:
            values = {field: self.of(name, field, default) for field, default in FIELDS.items()}
            hostvars[name] = values
        return dict(filters.wireguard_fleet(names, hostvars))

    @property
    def clients_file(self) -> Path:
        return self.path / "group_vars" / "all" / "wireguard_clients.yml"


def hub_public_key(inventory: Path, hub: str) -> str:
    """Asked of the hub itself, over SSH."""
    command = ["ansible", "-i", str(inventory), hub, "--become", "--one-line"]
    done = subprocess.run(
        [*command, "-m", "prime_spark.fleet.wireguard_key", "-a", "state=read"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    _, arrow, answer = done.stdout.partition("=> ")
    key = json.loads(answer).get("public_key", "") if arrow and done.returncode == 0 else ""
    if not key:
        said = (done.stderr + done.stdout).strip().splitlines()
        raise ClientError(
            f"{hub} did not tell its public key ({said[-1] if said else 'no answer'}): "
            f"run site.yml --tags wireguard --limit {hub} first"
        )
    return str(key)


def free_address(network: str, taken: set[str]) -> str:
    """The first free address from .100 on, so that hosts and devices are told apart."""
    hosts = [str(address) for address in ipaddress.ip_network(network).hosts()]
    for address in hosts[99:] + hosts[:99]:
        if address not in taken:
            return address
    raise ClientError(f"no free address in {network}")


def entries(inventory: Inventory) -> list[dict[str, str]]:
    """What the file says already; a list elsewhere in the inventory is not this tool's."""
    if not inventory.clients_file.exists():
        return []
    content = yaml.safe_load(inventory.clients_file.read_text()) or {}
    return list(content.get("wireguard_clients") or [])


def configuration(values: dict[str, Any]) -> str:
    return (
        "[Interface]\n"
        f"PrivateKey = {values['private_key']}\n"
        f"Address = {values['address']}/32\n"
        f"MTU = {values['mtu']}\n"
        "\n[Peer]\n"
        f"PublicKey = {values['hub_key']}\n"
        f"PresharedKey = {values['preshared_key']}\n"
        f"AllowedIPs = {values['network']}\n"
        f"Endpoint = {values['endpoint']}\n"
        f"PersistentKeepalive = {KEEPALIVE_SECONDS}\n"
    )


def document(clients: list[dict[str, str]]) -> str:
    """The inventory file."""
    lines = ["---", HEADER.rstrip(), "wireguard_clients:"]
    for client in clients:
        fields = [f"{field}: {client[field]}" for field in ("name", "address", "public_key")]
        lines += [f"  - {fields[0]}", *(f"    {field}" for field in fields[1:])]
    return "\n".join(lines) + "\n"


def make(inventory: Inventory, name: str, address: str, public_key: str) -> str:
    """Enter a client and return its configuration, the only place where its private key is.

    With a ``public_key`` the private one is on the device already, and the configuration has none.
    """
    fleet = inventory.fleet()
    if not fleet:
        raise ClientError(
            f"{inventory.path} has no host in the group wireguard, expected a hub to join "
            "(wireguard_role: hub) and its spokes"
        )
    hub = hubs(fleet)[0]
    network = str(inventory.of(hub, "wireguard_network"))
    known = entries(inventory)
    if any(entry["name"] == name for entry in known):
        raise ClientError(
            f"{name} is a client already: to make it new keys, take it out of "
            f"{inventory.clients_file} first"
        )
    taken = {entry["address"] for entry in (*fleet.values(), *known)}
    private_key = "" if public_key else generate_private_key()
    client = {
        "name": name,
        "address": address or free_address(network, taken),
        "public_key": public_key or public_key_of(private_key),
    }
    filters.wireguard_clients([*known, client], fleet, network)
    text = configuration(
        {
            **client,
            "private_key": private_key or "(the one that the device made)",
            "hub_key": hub_public_key(inventory.path, hub),
            "preshared_key": filters.wireguard_psk(
                str(inventory.of(hub, "wireguard_psk_seed")), hub, name
            ),
            "network": network,
            "endpoint": fleet[hub]["endpoint"],
            "mtu": inventory.of(hub, "wireguard_mtu", 1420),
        }
    )
    inventory.clients_file.write_text(document([*known, client]))
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    parser.add_argument("--name", required=True, help="name of the device")
    parser.add_argument("--address", default="", help="its VPN address; else the first free one")
    parser.add_argument("--public-key", default="", help="where the device made its key pair")
    arguments = parser.parse_args()
    if not sys.stdout.isatty():
        # A file or a log would keep the private key.
        parser.error("the configuration holds a private key and is shown on a terminal only")
    try:
        inventory = Inventory(arguments.inventory.resolve())
        text = make(inventory, arguments.name, arguments.address, arguments.public_key)
    except Exception as error:
        print(f"wireguard-client: {error}", file=sys.stderr)
        return 1
    print(text)
    segno.make(text, error="l").terminal(compact=True)
    run = f"ansible-playbook -i {arguments.inventory} site.yml --tags wireguard"
    print(
        f"Shown once. {inventory.clients_file} has the public key: commit it, then run\n"
        f"{run}, so that the hub knows the device."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
