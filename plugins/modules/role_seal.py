#!/usr/bin/python
"""Ansible module: seal what roles brought up on a host, for the next run to compare."""

from __future__ import annotations

DOCUMENTATION = r"""
module: role_seal
short_description: Seal what roles brought up on a host
description:
  - Writes a manifest of each role that was played to its end, from what its modules noted in this
    run. The drift probe of M(host_precheck) compares it with the host.
  - A manifest is for root alone and sealed with a key that the host does not keep, so that a change
    of the manifest is noticed.
  - Use it through the action plugin of the same name, which makes the keys.
options:
  run:
    description: Identifier of the run.
    type: str
    required: true
  roles:
    description: What to seal, each C(role), C(stamp), C(nonce) and C(key).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Seal what this run brought up
  role_seal:
    run: "{{ fleet_plan.run }}"
    roles: "{{ fleet_plan.played[inventory_hostname] }}"
"""

RETURN = r"""
unsealed:
  description: By role, what was not as the run had left it a moment ago. The next run plays it
    again.
  type: dict
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.state import seal


def main() -> None:
    options = {
        "role": {"type": "str", "required": True},
        "stamp": {"type": "str", "required": True},
        "nonce": {"type": "str", "required": True},
        "key": {"type": "str", "required": True, "no_log": True},
    }
    module = AnsibleModule(
        argument_spec={
            "run": {"type": "str", "required": True},
            "roles": {"type": "list", "elements": "dict", "required": True, "options": options},
        },
        supports_check_mode=True,
    )
    # Debian keeps these out of the PATH of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    unsealed = {}
    for entry in [] if module.check_mode else module.params["roles"]:
        words = (entry["stamp"], entry["nonce"], entry["key"])
        try:
            found = seal(entry["role"], module.params["run"], *words)
        except Exception as error:
            # One role that cannot be recorded keeps no other from it.
            found = [f"it cannot be recorded: {error!r}"]
        if found:
            unsealed[entry["role"]] = found
    module.exit_json(changed=False, unsealed=unsealed)


if __name__ == "__main__":
    main()
