#!/usr/bin/python
"""Ansible module: one WireGuard interface, its file, its service and what runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wireguard_interface
short_description: Configure and run a WireGuard interface through wg-quick
description:
  - Writes the wg-quick file with the private key that is already on the host, after wg-quick itself
    has read it, and enables the service.
  - Compares with what runs, not only with the file. When only peers differ, these are added, set
    and removed, and the others lose no packet; a difference of the interface itself restarts it.
  - A change that could cut the host off is made under a timer of systemd, which brings the previous
    state back unless M(wireguard_confirm) stops it. That is every restart with another
    configuration, another key, address or endpoint of a peer that this host calls itself, and a
    first start whose networks hold the address of the SSH client.
  - A peer without a public key keeps the one that this host was configured with before. Without
    that it is left out and named in RV(deferred).
  - Where such a change fails the previous state is put back at once.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
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
  revert_seconds:
    description: Seconds after which an unconfirmed change is taken back.
    type: int
    default: 90
  revert_program:
    description: The program that does so, as text. Without it nothing is armed.
    type: str
    default: ""
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
armed:
  description: Whether the state that runs now will be taken back unless it is confirmed.
  type: bool
  returned: always
deferred:
  description: Peers that have no known public key yet.
  type: list
  elements: str
  returned: always
"""

import ipaddress
import os
import signal
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    PRIVATE_KEY,
    Config,
    WireGuardError,
    known_peers,
    mask,
    observed,
    read_text,
    run,
    running_interface,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_host import Host
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_plan import (
    client_is_within,
    make_plan,
    peers_record,
    wanted_peers,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_revert import (
    client_connection,
    clock,
    disarm,
    forget_reverted,
    locked,
    pending,
    revert_now,
    reverted,
)

MINIMUM_SECONDS = 15
STATUS = "/run/prime-spark/vpn.json"

ARGUMENTS: dict[str, dict[str, Any]] = {
    **OWNER_ARGUMENTS,
    "name": {"type": "str", "default": "wg0"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": False},
    # The name of the file is no secret.
    "private_key_path": {"type": "path", "default": PRIVATE_KEY, "no_log": False},
    "address": {"type": "str"},
    "listen_port": {"type": "int", "default": 51820},
    "mtu": {"type": "int", "default": 1420},
    "forward": {"type": "bool", "default": False},
    "revert_seconds": {"type": "int", "default": 90},
    # No secret, but its text would stand in the host's journal at every run.
    "revert_program": {"type": "str", "default": "", "no_log": True},
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


class Failed(WireGuardError):
    """A change under the timer went wrong: the way back is there and has to be taken."""


def wanted_config(module: AnsibleModule, host: Host, private: str) -> tuple[Config, list[str]]:
    """The configuration that this run wants, and the peers that have to wait."""
    params = module.params
    peers, deferred = wanted_peers(params["peers"], known_peers(host.paths.peers))
    config = Config(
        name=host.name,
        address=str(ipaddress.ip_interface(params["address"])),
        listen_port=params["listen_port"],
        mtu=params["mtu"],
        private_key=private.strip(),
        forward=params["forward"],
        peers=peers,
    )
    return config, deferred


def present(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    host = Host(module.params["name"])
    private = read_text(params["private_key_path"])
    installed = module.get_bin_path("wg-quick")
    if module.check_mode and (private is None or not installed):
        _, deferred = wanted_peers(params["peers"], known_peers(host.paths.peers))
        missing = "its key" if private is None else "wireguard-tools"
        sentence = f"deferred: {host.name} can be compared once {missing} is there"
        return {
            "action": "start",
            "armed": False,
            "changed": True,
            "changes": [sentence],
            "deferred": deferred,
        }
    if private is None:
        raise WireGuardError(f"no {params['private_key_path']}: run the tag wireguard first")
    if module.check_mode:
        return compare_and_apply(module, host, private)
    with locked():
        return compare_and_apply(module, host, private)


def compare_and_apply(module: AnsibleModule, host: Host, private: str) -> dict[str, Any]:
    params = module.params
    config, deferred = wanted_config(module, host, private)
    text = config.text()
    before = read_text(host.paths.config)
    running = running_interface(host.name)
    facts = host.facts(config) if running else {}
    plan = make_plan(config, before, host.applied(), running, facts, known_peers(host.paths.peers))
    changes = list(plan.changes)
    if before is not None and os.stat(host.paths.config).st_mode & 0o077:
        changes.append("permissions of the configuration")
    record = peers_record(config)
    if read_text(host.paths.peers) != record:
        changes.append("record of the peers")
    enabled = host.unit_property("UnitFileState") == "enabled"
    if not enabled:
        changes.append(f"enable {host.unit}")
    unread = host.unit_property("NeedDaemonReload") == "yes"
    if unread:
        changes.append(f"read {host.unit} again")

    # A change of an earlier run that nobody has confirmed waits for it still.
    waiting = pending() is not None
    risky = plan.risky or (plan.action == "start" and client_is_within(config, client_connection()))
    armed = bool(params["revert_program"]) and (waiting or risky)
    if armed:
        changes.append(
            f"under a timer: the previous state comes back after {params['revert_seconds']} s "
            "unless a new connection confirms this one"
        )
    if changes and (last := reverted()):
        changes.append(
            f"the last change was taken back at {clock(last['reverted'])}, "
            "because nothing had confirmed it"
        )

    if changes:
        # In check mode, too.
        host.validate(text)
    if changes and not module.check_mode:
        if armed:
            host.arm(params["revert_program"], params["revert_seconds"], running, enabled)
        # The session may run through the interface: its end must not be the end of this.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            host.apply(plan, config, before, running)
            os.chmod(host.paths.config, 0o600)
            replace_file(host.paths.peers, record)
            if unread:
                run(["systemctl", "daemon-reload"])
            if not enabled:
                run(["systemctl", "unmask", "--quiet", host.unit])
                run(["systemctl", "enable", "--quiet", host.unit])
        except (WireGuardError, OSError) as error:
            if armed:
                raise Failed(str(error)) from error
            raise
    elif not module.check_mode:
        forget_reverted()
    if not module.check_mode:
        rule = config.forward_rule() if config.forward else []
        calls = {p["name"]: p["address"] for p in params["peers"] if p["endpoint"]}
        seen = observed(host.name, rule)
        interface = {"forward_rule": rule, "calls": calls, "seen": seen}
        note(params, "interface", {host.name: interface})
        note(params, "unit", {host.unit: {"runs": True}})
    result: dict[str, Any] = {
        "action": plan.action,
        "armed": armed and not module.check_mode,
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
    host = Host(module.params["name"])
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
        # Or the timer would bring back what is removed here.
        disarm()
        if up:
            host.stop()
        if enabled:
            run(["systemctl", "disable", "--quiet", host.unit])
        for path in paths:
            os.unlink(path)
    return {
        "action": "stop",
        "changed": bool(changes),
        "changes": changes,
        "armed": False,
        "deferred": [],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("state", "present", ["address"])],
    )
    # Debian keeps these out of the PATH of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    act = present if module.params["state"] == "present" else absent
    if module.params["revert_seconds"] < MINIMUM_SECONDS:
        module.fail_json(
            msg=f"revert_seconds is {module.params['revert_seconds']}, expected at least "
            f"{MINIMUM_SECONDS}: a confirmation takes that long"
        )
    try:
        result = act(module)
    except Failed as error:
        try:
            revert_now()
            what = "The previous configuration runs again."
        except WireGuardError as second:
            what = f"The timer brings the previous configuration back, now it failed: {second}"
        module.fail_json(msg=f"{module.params['name']}: {error}\n{what}")
    except (WireGuardError, OSError, ValueError) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
