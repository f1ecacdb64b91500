#!/usr/bin/python
"""Ansible module: the WireGuard key of a host, of which only the public half is ever shown."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wireguard_key
short_description: Make or read the WireGuard key of a host
description:
  - Makes the private key on the host, readable by root alone, and returns only the public key.
  - An interface that was set up by hand keeps its identity, its private key is taken over.
  - Needs no package, so that a key exists before anything is installed.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
options:
  state:
    description: V(present) makes the key where it is missing, V(read) never changes anything.
    type: str
    choices: [present, read]
    default: present
  path:
    description: File of the private key.
    type: path
    default: /etc/wireguard/private.key
  interface:
    description: Interface whose existing configuration may already hold a key.
    type: str
    default: wg0
"""

EXAMPLES = r"""
- name: Generate the key of this host
  wireguard_key:
  register: own

- name: Read the key of another host
  wireguard_key:
    state: read
  delegate_to: hub
"""

RETURN = r"""
public_key:
  description: The public key, empty where there is none yet.
  type: str
  returned: always
known_peers:
  description: Public keys of the peers that this host was configured with, by name.
  type: dict
  returned: always
kernel:
  description: Whether the kernel can make WireGuard interfaces; else wireguard-go is needed.
  type: bool
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import path_state
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    KNOWN_PEERS,
    PRIVATE_KEY,
    WireGuardError,
    generate_private_key,
    known_peers,
    private_key_in,
    public_key_of,
    read_text,
)

PROBE = "pswgprobe"


def kernel_has_wireguard(module: AnsibleModule) -> bool:
    """Ask the kernel: is it there, can it be loaded, and at last, does an interface come up?"""
    if os.path.isdir("/sys/module/wireguard"):
        return True
    modprobe = module.get_bin_path("modprobe", opt_dirs=["/usr/sbin", "/sbin"])
    if modprobe and attempt([modprobe, "-n", "-q", "wireguard"]).returncode == 0:
        return True
    # In a container neither shows what the machine's kernel would load by itself on demand.
    address = module.get_bin_path("ip", opt_dirs=["/usr/sbin", "/sbin"])
    if module.check_mode or module.params["state"] == "read" or not address:
        return False
    if module.get_bin_path("wireguard-go"):
        return False
    made = attempt([address, "link", "add", "dev", PROBE, "type", "wireguard"])
    if made.returncode == 0:
        attempt([address, "link", "delete", "dev", PROBE])
    return made.returncode == 0


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read"], "default": "present"},
            # no_log: False, because the name of the file is no secret.
            "path": {"type": "path", "default": PRIVATE_KEY, "no_log": False},
            "interface": {"type": "str", "default": "wg0"},
            **OWNER_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    changed = False
    try:
        private = read_text(path)
        if private is None and module.params["state"] == "present":
            changed = True
            if not module.check_mode:
                config = read_text(
                    os.path.join(os.path.dirname(path), f"{module.params['interface']}.conf")
                )
                private = private_key_in(config or "") or generate_private_key()
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                replace_file(path, f"{private}\n")
        elif private is not None and module.params["state"] == "present":
            status = os.stat(path)
            if (status.st_mode & 0o777, status.st_uid) != (0o600, 0):
                changed = True
                if not module.check_mode:
                    os.chmod(path, 0o600)
                    os.chown(path, 0, 0)
        if not module.check_mode and module.params["state"] == "present":
            note(module.params, "path", {path: path_state(path)})
        module.exit_json(
            changed=changed,
            public_key=public_key_of(private) if private else "",
            known_peers={
                name: peer["public_key"] for name, peer in known_peers(KNOWN_PEERS).items()
            },
            kernel=kernel_has_wireguard(module),
        )
    except (WireGuardError, OSError) as error:
        module.fail_json(msg=f"{path}: {error}")


if __name__ == "__main__":
    main()
