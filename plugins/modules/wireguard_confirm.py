#!/usr/bin/python
"""Ansible module: confirm a change of the VPN from a new connection, or take it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wireguard_confirm
short_description: Confirm what wireguard_interface did under its timer, or take it back
description:
  - V(look) tells whether the VPN works after the change and never fails for that; V(keep) stops the
    timer, or takes the change back at once where O(problem) says what is wrong.
  - The connection that runs this has to be another one than that of the change, since a session
    that exists already proves nothing. On the controller itself, O(local=true), there is no
    connection that could break, and peers alone confirm.
options:
  name:
    description: Name of the interface.
    type: str
    default: wg0
  state:
    description: What to do.
    type: str
    choices: [look, keep]
    required: true
  local:
    description: Whether this runs on the controller itself, without SSH.
    type: bool
    default: false
  timeout:
    description: Seconds for a peer to answer; less where the timer would run out before.
    type: int
    default: 45
  problem:
    description: With O(state=keep), why the change cannot stay; empty where it can.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: See whether the VPN works
  wireguard_confirm:
    state: look
  register: seen

- name: Keep the new state, or go back
  wireguard_confirm:
    state: keep
    problem: "{{ seen.problem }}"
"""

RETURN = r"""
problem:
  description: Why the change cannot stay; empty where it can.
  type: str
  returned: with O(state=look)
answering:
  description: The peers with a fresh handshake before the change that answer after it.
  type: list
  elements: str
  returned: with O(state=look)
summary:
  description: What was seen, one line.
  type: str
  returned: success
"""

import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.ping import ping
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    WireGuardError,
    known_peers,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_revert import (
    client_connection,
    clock,
    disarm,
    locked,
    pending,
    revert_now,
    reverted,
)

# What asking the peers and keeping the state take after the last look.
RESERVE_SECONDS = 8


def too_late() -> str:
    """The sentence for a timer that has run out already."""
    when = reverted()
    return (
        "expected a change that waits for its confirmation, seen: none; the previous state "
        f"came back {'at ' + clock(when['reverted']) if when else 'already'}"
    )


def look(name: str, timeout: int, *, local: bool = False) -> dict[str, Any]:
    state = pending()
    if state is None:
        return {"problem": too_late(), "answering": [], "summary": "too late"}
    # On the controller the session is the operator's: the change has not come over it.
    connection = "" if local else client_connection()
    if connection and connection == state["connection"]:
        problem = "expected a new connection to confirm the change, seen: the one that made it"
        return {"problem": problem, "answering": [], "summary": problem}
    fresh: list[str] = state["fresh"]
    if not fresh:
        line = "no peer had a fresh handshake before the change: the new connection confirms it"
        return {"problem": "", "answering": [], "summary": line}
    peers = known_peers()
    asked = {peer: peers[peer]["address"] for peer in fresh if peer in peers}
    if not asked:
        line = "every peer with a fresh handshake has left: the new connection confirms the change"
        return {"problem": "", "answering": [], "summary": line}
    ends = min(time.time() + timeout, state["deadline"] - RESERVE_SECONDS)
    while True:
        # All of them, not only the first: others are asked what they see of this host.
        answering = [
            peer for peer, address in asked.items() if ping(address, 0.7, name) is not None
        ]
        if answering:
            line = f"{', '.join(answering)} answer through {name}"
            return {"problem": "", "answering": answering, "summary": line}
        if time.time() >= ends:
            break
        time.sleep(0.2)
    listed = ", ".join(f"{peer} ({address})" for peer, address in asked.items())
    problem = f"expected one of {listed} to answer through {name} as before, seen: no answer"
    return {"problem": problem, "answering": [], "summary": problem}


def keep(module: AnsibleModule, problem: str) -> None:
    """Ends the module."""
    with locked():
        state: Any = pending()
        if state is not None and not problem:
            disarm()
            # The change itself was reported where it was made; this ends what came with it.
            module.exit_json(changed=False, summary="the change is confirmed, the timer is stopped")
    if state is None:
        module.fail_json(msg=problem or too_late())
    try:
        revert_now()
    except WireGuardError as error:
        module.fail_json(
            msg=f"{problem}; the previous state comes back at {clock(state['deadline'])} "
            f"(at once was not possible: {error})"
        )
    module.fail_json(msg=f"{problem}; the previous state is back")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "wg0"},
            "state": {"type": "str", "choices": ["look", "keep"], "required": True},
            "local": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 45},
            "problem": {"type": "str", "default": ""},
        },
    )
    params = module.params
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    try:
        if params["state"] == "keep":
            keep(module, params["problem"])
        else:
            seen = look(params["name"], params["timeout"], local=params["local"])
            module.exit_json(changed=False, **seen)
    except (WireGuardError, OSError, KeyError) as error:
        module.fail_json(msg=f"{params['name']}: {error}")


if __name__ == "__main__":
    main()
