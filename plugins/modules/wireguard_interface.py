#!/usr/bin/python
"""Ansible module: one WireGuard interface, its file, its service and what runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wireguard_interface
short_description: Configure and run a WireGuard interface through wg-quick
description:
  - Writes the wg-quick file with the private key that is already on the host, after wg-quick itself
    has read it, and enables the service.
  - Compares with what runs, not only with the file. When only peers differ they are changed with
    C(wg syncconf), which keeps the sessions of the others; a difference of the interface itself
    restarts it.
  - A peer without a public key keeps the one that this host was configured with before. Without
    that it is left out and named in RV(deferred).
  - Where a start fails the previous file is put back and started.
options:
  name:
    description: Name of the interface.
    type: str
    default: wg0
  state:
    description: V(absent) stops the interface and removes its file. The private key stays.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description: With O(state=absent), remove the private key as well.
    type: bool
    default: false
  private_key_path:
    description: File of the private key on the host.
    type: path
    default: /etc/wireguard/private.key
  address:
    description: Address of the interface with its prefix length, C(10.0.0.1/24).
    type: str
  listen_port:
    description: UDP port.
    type: int
    default: 51820
  mtu:
    description: MTU of the interface.
    type: int
    default: 1420
  forward:
    description: Pass packets from peer to peer (the hub).
    type: bool
    default: false
  peers:
    description: All peers of this host.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the peer., type: str, required: true}
      address: {description: VPN address of the peer., type: str, required: true}
      public_key: {description: Its public key when known., type: str, default: ""}
      preshared_key: {description: Key of the pair., type: str, required: true}
      allowed_ips: {description: Networks behind it., type: list, elements: str, required: true}
      endpoint: {description: Address and port to reach it., type: str, default: ""}
      keepalive: {description: Seconds between keepalives; 0 for none., type: int, default: 0}
"""

EXAMPLES = r"""
- name: A spoke
  wireguard_interface:
    address: 10.0.0.3/24
    peers:
      - name: hub
        address: 10.0.0.1
        public_key: "{{ hub_key }}"
        preshared_key: "{{ pair_key }}"
        allowed_ips: [10.0.0.0/24]
        endpoint: vpn.example.org:51820
        keepalive: 25
"""

RETURN = r"""
action:
  description: What was done to the interface, or would be.
  type: str
  returned: always
  sample: sync
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
deferred:
  description: Peers that have no known public key yet.
  type: list
  elements: str
  returned: always
"""

import dataclasses
import ipaddress
import json
import os
import shutil
import subprocess
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.prime_spark_wireguard import (
    HEADER,
    KNOWN_PEERS,
    PRIVATE_KEY,
    Config,
    Peer,
    Running,
    WireGuardError,
    decode_key,
    known_peers,
    mask,
    peer_differences,
    public_key_of,
    read_text,
    run,
    running_interface,
    sections,
    write_private,
)

STATUS = "/run/prime-spark/vpn.json"

ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "default": "wg0"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": False},
    # The name of the file is no secret.
    "private_key_path": {"type": "path", "default": PRIVATE_KEY, "no_log": False},
    "address": {"type": "str"},
    "listen_port": {"type": "int", "default": 51820},
    "mtu": {"type": "int", "default": 1420},
    "forward": {"type": "bool", "default": False},
    "peers": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "public_key": {"type": "str", "default": "", "no_log": False},
            "preshared_key": {"type": "str", "required": True, "no_log": True},
            "allowed_ips": {"type": "list", "elements": "str", "required": True},
            "endpoint": {"type": "str", "default": ""},
            "keepalive": {"type": "int", "default": 0, "no_log": False},
        },
    },
}


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where the parts of an interface are kept."""

    config: str
    peers: str
    applied: str

    @classmethod
    def of(cls, name: str) -> Paths:
        return cls(
            config=f"/etc/wireguard/{name}.conf",
            peers=KNOWN_PEERS,
            # Gone after a boot, and rightly: then the file is what was started.
            applied=f"/run/prime-spark/wireguard-{name}.json",
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What has to be done, and in words."""

    action: str
    changes: list[str]


def wanted_peers(
    given: list[dict[str, Any]], known: dict[str, dict[str, Any]]
) -> tuple[tuple[Peer, ...], list[str]]:
    """The peers with a public key, given now or known from before, and the names of the others."""
    peers, deferred = [], []
    for item in sorted(given, key=lambda peer: str(peer["name"])):
        public = item["public_key"] or known.get(item["name"], {}).get("public_key", "")
        if not public:
            deferred.append(item["name"])
            continue
        for label, key in (("public", public), ("preshared", item["preshared_key"])):
            try:
                decode_key(key)
            except WireGuardError as error:
                raise WireGuardError(f"{label} key of peer {item['name']}: {error}") from None
        peers.append(
            Peer(
                name=item["name"],
                address=item["address"],
                public_key=public,
                preshared_key=item["preshared_key"],
                allowed_ips=tuple(
                    sorted(str(ipaddress.ip_network(entry)) for entry in item["allowed_ips"])
                ),
                endpoint=item["endpoint"],
                keepalive=item["keepalive"],
            )
        )
    return tuple(peers), deferred


def peers_record(config: Config) -> str:
    """The key-free record that the status timer and later runs read."""
    peers = [
        {
            "name": peer.name,
            "address": peer.address,
            "public_key": peer.public_key,
            "endpoint": peer.endpoint,
        }
        for peer in config.peers
    ]
    return json.dumps({"interface": config.name, "peers": peers}, indent=1) + "\n"


def make_plan(
    config: Config,
    before: str | None,
    applied: dict[str, str] | None,
    running: Running | None,
    facts: dict[str, Any],
) -> Plan:
    """Decide between nothing, sync, restart and start.

    ``applied`` are the section digests of the file that was last brought into force, None when no
    run of this boot recorded any; ``facts`` are addresses, mtu, active and forwarding as seen.
    """
    text = config.text()
    interface, peers = sections(text)
    changes = [] if before == text else ["write the configuration"]
    if running is None:
        return Plan("start", [*changes, f"start {config.name}"])
    if applied is None:
        old_interface, old_peers = sections(before or "")
        applied = {"interface": old_interface, "peers": old_peers}

    reasons = []
    if applied["interface"] != interface:
        reasons.append("its own section differs from what was started")
    for label, seen, want in (
        ("address", facts["addresses"], [config.address]),
        ("port", running.listen_port, config.listen_port),
        ("MTU", facts["mtu"], config.mtu),
        ("own key", running.public_key, public_key_of(config.private_key)),
    ):
        if seen != want:
            reasons.append(f"{label} is {seen or 'none'}, wanted {want}")
    if not facts["active"]:
        reasons.append("its service is not active")
    if config.forward and not facts["forwarding"]:
        reasons.append("it does not forward between peers")
    if reasons:
        return Plan("restart", [*changes, *(f"restart {config.name}: {r}" for r in reasons)])

    differences = peer_differences(config.peers, running.peers)
    if not differences and applied["peers"] != peers:
        differences = ["set the peers again"]
    return Plan("sync" if differences else "none", [*changes, *differences])


class Host:
    """The interface on this host: what is there, and how it is changed."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        self.paths = Paths.of(self.name)
        self.unit = f"wg-quick@{self.name}.service"

    def unit_property(self, name: str) -> str:
        done = subprocess.run(
            ["systemctl", "show", "--property", name, "--value", "--", self.unit],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    def facts(self, config: Config) -> dict[str, Any]:
        shown = json.loads(run(["ip", "-json", "address", "show", "dev", self.name]))
        addresses = [
            f"{entry['local']}/{entry['prefixlen']}"
            for entry in shown[0].get("addr_info", [])
            if entry.get("scope") == "global"
        ]
        forwarding = False
        if config.forward:
            rule = subprocess.run(
                ["iptables", "-w", "-C", *config.forward_rule()], capture_output=True, check=False
            )
            allowed = (read_text("/proc/sys/net/ipv4/ip_forward") or "0").strip()
            forwarding = rule.returncode == 0 and allowed == "1"
        return {
            "addresses": addresses,
            "mtu": shown[0].get("mtu"),
            "active": self.unit_property("ActiveState") == "active",
            "forwarding": forwarding,
        }

    def applied(self) -> dict[str, str] | None:
        try:
            record = json.loads(read_text(self.paths.applied) or "null")
            return {"interface": record["interface"], "peers": record["peers"]}
        except (ValueError, KeyError, TypeError):
            return None

    def record_applied(self, text: str) -> None:
        interface, peers = sections(text)
        os.makedirs(os.path.dirname(self.paths.applied), mode=0o755, exist_ok=True)
        write_private(self.paths.applied, json.dumps({"interface": interface, "peers": peers}))

    def strip(self, text: str) -> str:
        """What wg-quick makes of the file; raises when it cannot read it."""
        directory = tempfile.mkdtemp(prefix="prime-spark-wg-", dir="/run")
        try:
            path = os.path.join(directory, f"{self.name}.conf")
            write_private(path, text)
            stripped: str = run(["wg-quick", "strip", path])
            return stripped
        finally:
            shutil.rmtree(directory)

    def sync(self, config: Config, stripped: str) -> None:
        """Change peers in the running interface, and make sure that it stayed who it was."""
        run(["wg", "syncconf", self.name, "/dev/stdin"], stdin=stripped, timeout=30)
        running = running_interface(self.name)
        expected = public_key_of(config.private_key)
        seen = running.public_key if running else "nothing"
        if seen != expected:
            raise WireGuardError(
                f"after wg syncconf expected the key {expected}, seen: {seen or 'none'}"
            )
        self.check_peers(config)

    def check_peers(self, config: Config) -> None:
        running = running_interface(self.name)
        if running is None:
            raise WireGuardError(f"{self.name} is not there after it was applied")
        left = peer_differences(config.peers, running.peers)
        if left:
            raise WireGuardError(f"{self.name} runs, but still has to: {'; '.join(left)}")

    def stop(self) -> None:
        """Stop by the file that started it, so that its own PostDown is what runs."""
        if self.unit_property("ActiveState") in ("active", "activating", "reloading"):
            run(["systemctl", "stop", self.unit])
        if os.path.exists(f"/sys/class/net/{self.name}"):
            # Someone else's interface, or one whose service forgot it.
            down = subprocess.run(["wg-quick", "down", self.name], capture_output=True, check=False)
            if down.returncode != 0:
                run(["ip", "link", "delete", "dev", self.name])

    def start(self) -> None:
        subprocess.run(["systemctl", "reset-failed", self.unit], capture_output=True, check=False)
        try:
            run(["systemctl", "start", self.unit])
        except WireGuardError as error:
            journal = subprocess.run(
                ["journalctl", "-u", self.unit, "-n", "12", "--no-pager", "-o", "cat"],
                capture_output=True,
                text=True,
                check=False,
            )
            raise WireGuardError(f"{error}\n{journal.stdout.strip()}") from None

    def restart(self, config: Config, before: str | None) -> None:
        self.stop()
        write_private(self.paths.config, config.text())
        try:
            self.start()
            self.check_peers(config)
        except WireGuardError as error:
            if before is None:
                raise
            write_private(self.paths.config, before)
            subprocess.run(["systemctl", "stop", self.unit], capture_output=True, check=False)
            self.start()
            self.record_applied(before)
            raise WireGuardError(f"{error}\nThe previous configuration runs again.") from None

    def apply(self, plan: Plan, config: Config, before: str | None, stripped: str) -> None:
        text = config.text()
        if before is not None and HEADER not in before:
            # Taken over from somebody: their peers may be needed again.
            write_private(f"{self.paths.config}.before-prime-spark", before)
        if plan.action in ("start", "restart"):
            self.restart(config, before)
        else:
            if before != text:
                if self.applied() is None and before is not None:
                    # What runs is the old file: a run that dies here must not hide that.
                    self.record_applied(before)
                write_private(self.paths.config, text)
            if plan.action == "sync":
                self.sync(config, stripped)
        self.record_applied(text)


def present(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    host = Host(module)
    peers, deferred = wanted_peers(params["peers"], known_peers(host.paths.peers))
    private = read_text(params["private_key_path"])
    installed = module.get_bin_path("wg-quick")
    if module.check_mode and (private is None or not installed):
        missing = "its key" if private is None else "wireguard-tools"
        sentence = f"deferred: {host.name} can be compared once {missing} is there"
        return {"action": "start", "changed": True, "changes": [sentence], "deferred": deferred}
    if private is None:
        raise WireGuardError(f"no {params['private_key_path']}: run the tag wireguard first")

    config = Config(
        name=host.name,
        address=str(ipaddress.ip_interface(params["address"])),
        listen_port=params["listen_port"],
        mtu=params["mtu"],
        private_key=private.strip(),
        forward=params["forward"],
        peers=peers,
    )
    text = config.text()
    before = read_text(host.paths.config)
    running = running_interface(host.name)
    facts = host.facts(config) if running else {}
    plan = make_plan(config, before, host.applied(), running, facts)
    changes = list(plan.changes)
    if before is not None and os.stat(host.paths.config).st_mode & 0o077:
        changes.append("permissions of the configuration")
    record = peers_record(config)
    if read_text(host.paths.peers) != record:
        changes.append("record of the peers")
    enabled = host.unit_property("UnitFileState") == "enabled"
    if not enabled:
        changes.append(f"enable {host.unit}")

    stripped = host.strip(text) if changes else ""
    if changes and not module.check_mode:
        host.apply(plan, config, before, stripped)
        os.chmod(host.paths.config, 0o600)
        write_private(host.paths.peers, record)
        if not enabled:
            run(["systemctl", "enable", "--quiet", host.unit])
    result: dict[str, Any] = {
        "action": plan.action,
        "changed": bool(changes),
        "changes": changes,
        "deferred": deferred,
    }
    shown = []
    if before != text:
        shown.append(
            {
                "before_header": host.paths.config,
                "after_header": host.paths.config,
                "before": mask(before or ""),
                "after": config.masked(before),
            }
        )
    if changes:
        shown.append({"header": host.name, "prepared": "\n".join(changes) + "\n"})
    return {**result, "diff": shown}


def absent(module: AnsibleModule) -> dict[str, Any]:
    host = Host(module)
    paths = [host.paths.config, host.paths.peers, host.paths.applied, STATUS]
    if module.params["purge"]:
        paths.append(module.params["private_key_path"])
    paths = [path for path in paths if os.path.exists(path)]
    up = os.path.exists(f"/sys/class/net/{host.name}")
    enabled = host.unit_property("UnitFileState") == "enabled"
    changes = [f"stop {host.name}"] if up else []
    changes += [f"disable {host.unit}"] if enabled else []
    changes += [f"remove {path}" for path in paths]
    if not module.check_mode:
        if up:
            host.stop()
        if enabled:
            run(["systemctl", "disable", "--quiet", host.unit])
        for path in paths:
            os.unlink(path)
    return {"action": "stop", "changed": bool(changes), "changes": changes, "deferred": []}


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "present", ["address"])],
    )
    # Debian keeps these out of the PATH of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    act = present if module.params["state"] == "present" else absent
    try:
        result = act(module)
    except (WireGuardError, OSError, ValueError) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
