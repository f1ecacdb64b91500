#!/usr/bin/python
"""Ansible module: does this host's VPN really carry packets?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: wireguard_health
short_description: Wait until a WireGuard interface has a fresh handshake and reaches its peer
description:
  - Never changes anything. Fails with what was expected and what was seen.
  - Reads the peers from the record of M(wireguard_interface) on the host, so that it needs nothing
    from the run.
options:
  name:
    description: Name of the interface.
    type: str
    default: wg0
  peer:
    description: Name of the peer to reach; empty on the hub, where only the interface has to be up.
    type: str
    default: ""
  max_age:
    description: Seconds since the last handshake after which a peer counts as gone.
    type: int
    default: 180
  timeout:
    description: Seconds to wait for that.
    type: int
    default: 45
  status_file:
    description: Key-free status that has to be fresh as well; empty for none.
    type: path
    default: ""
  defer:
    description: Why the peer cannot be expected to answer now. The module then looks once and
      reports instead of failing.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Reach the hub
  wireguard_health:
    peer: hub
"""

RETURN = r"""
summary:
  description: One line about what was seen.
  type: str
  returned: success
healthy:
  description: False only where the check was deferred.
  type: bool
  returned: success
"""

import json
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.ping import ping
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    WireGuardError,
    known_peers,
    read_text,
    running_interface,
)

STATUS_AGE = 60


def handshake(name: str, public_key: str) -> int | None:
    """Seconds since the last handshake with a peer, None for never."""
    running = running_interface(name)
    if running is None:
        raise WireGuardError(f"expected the interface {name} to be up, seen: it does not exist")
    peer = running.peers.get(public_key)
    if peer is None or not peer.latest_handshake:
        return None
    age: int = int(time.time()) - peer.latest_handshake
    return max(0, age)


def status_problem(path: str) -> str:
    """What is wrong with the status file, or nothing."""
    if not path:
        return ""
    try:
        age = time.time() - float(json.loads(read_text(path) or "")["time"])
    except (ValueError, KeyError, TypeError):
        return f"expected {path} to be readable JSON with a time, seen: it is not"
    if age > STATUS_AGE:
        return f"expected {path} to be at most {STATUS_AGE} s old, seen: {age:.0f} s"
    return ""


def look(params: dict[str, Any]) -> tuple[bool, str]:
    """One look: whether all is well, and the line that says so."""
    name = params["name"]
    problem = status_problem(params["status_file"])
    if not params["peer"]:
        if running_interface(name) is None:
            return False, f"expected the interface {name} to be up, seen: it does not exist"
        return not problem, problem or f"{name} is up"
    peer = known_peers().get(params["peer"])
    if peer is None:
        return False, f"expected {params['peer']} among the peers of this host, seen: no such peer"
    delay = ping(peer["address"], interface=name)
    age = handshake(name, peer["public_key"])
    wanted = f"a handshake with {peer['name']} at most {params['max_age']} s old"
    if age is None:
        return False, f"expected {wanted}, seen: none at all"
    if age > params["max_age"]:
        return False, f"expected {wanted}, seen: {age} s"
    if delay is None:
        return False, f"expected {peer['address']} ({peer['name']}) to answer, seen: no answer"
    line = f"{peer['name']}: handshake {age} s ago, {peer['address']} answers"
    return not problem, problem or line


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "wg0"},
            "peer": {"type": "str", "default": ""},
            "max_age": {"type": "int", "default": 180},
            "timeout": {"type": "int", "default": 45},
            "status_file": {"type": "path", "default": ""},
            "defer": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    deadline = time.monotonic() + params["timeout"]
    while True:
        try:
            healthy, line = look(params)
        except (WireGuardError, OSError) as error:
            healthy, line = False, str(error)
        if healthy:
            module.exit_json(changed=False, healthy=True, summary=line)
        if params["defer"]:
            module.exit_json(changed=False, healthy=False, summary=f"deferred: {params['defer']}")
        if time.monotonic() >= deadline:
            module.fail_json(msg=line)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
