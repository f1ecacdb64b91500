#!/usr/bin/python
"""Ansible module: the public keys with which hosts may log in to the NAS of the lab."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nas_keys
short_description: Keep one file for each host's public key, and no others
description:
  - Writes the keys that are given and leaves those of the other known hosts alone, so that a run
    with C(--limit) needs to reach nobody else. Removes the keys of hosts that are not known.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
options:
  directory:
    description: Directory of the files, C(<host>.pub) each.
    type: path
    required: true
  keys:
    description:
      - Public key by host. An empty one is still to be made on its host, which only happens in
        check mode; it counts as a change.
    type: dict
    default: {}
  hosts:
    description: Hosts that may have a key.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Let the clients in
  nas_keys:
    directory: /etc/ssh/nas
    keys: {pi-1: ssh-ed25519 AAAA…}
    hosts: [pi-1, pi-2]
"""

RETURN = r"""
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
"""

import hashlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note

SUFFIX = ".pub"


def synchronize(
    directory: str, keys: dict[str, str], hosts: list[str], check_mode: bool
) -> list[str]:
    """Bring the directory up to date; returns a sentence for each change."""
    changes = []
    present = os.listdir(directory) if os.path.isdir(directory) else []
    for host, key in sorted(keys.items()):
        path = os.path.join(directory, f"{host}{SUFFIX}")
        # An SSH key that may do nothing that is not allowed elsewhere: no forwarding, no terminal.
        text = f"restrict {key.strip()}\n"
        if not key:
            changes.append(f"accept {host} (deferred: its key is not made yet)")
            continue
        if os.path.basename(path) in present:
            with open(path, encoding="utf-8") as stream:
                if stream.read() == text:
                    continue
        changes.append(f"accept {host}")
        if not check_mode:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            replace_file(path, text, 0o644)
    for name in sorted(present):
        # What an interrupted run left begins with a dot.
        if name.removesuffix(SUFFIX) not in hosts:
            changes.append(f"remove {name}")
            if not check_mode:
                os.unlink(os.path.join(directory, name))
    return changes


def kept(directory: str) -> dict[str, Any]:
    """The directory with its files, as the drift probe compares them."""
    files = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        with open(path, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        files[path] = [digest, "0644", "root", "root"]
    return {"files": files, "directories": {directory: ["0755", "root", "root", sorted(files)]}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            # Public keys; without False everything that looks like one would be hidden.
            "keys": {"type": "dict", "default": {}, "no_log": False},
            "hosts": {"type": "list", "elements": "str", "required": True},
            **OWNER_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        changes = synchronize(
            params["directory"], params["keys"], params["hosts"], module.check_mode
        )
        if not module.check_mode:
            note(params, "tree", {"nas-keys": kept(params["directory"])})
    except OSError as error:
        module.fail_json(msg=f"keys of the NAS's clients: {error}")
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
