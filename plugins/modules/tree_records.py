#!/usr/bin/python
"""Ansible module: which roles have left files, units or containers on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tree_records
short_description: Name the roles that wrote trees or projects on a host
description:
  - Reads the records that M(config_tree) and M(compose_project) keep. Nothing else on the host is
    looked at, so what was not written by a role of this repository is never named.
options: {}
"""

EXAMPLES = r"""
- name: Read which roles this host had
  tree_records:
  register: records
"""

RETURN = r"""
roles:
  description: Names of the roles, each once, sorted.
  type: list
  elements: str
  returned: always
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.prime_spark_tree import RECORD_DIR, read


def recorded_roles(directory: str) -> list[str]:
    """The roles named in the records; one that cannot be read names none."""
    found = set()
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        if not name.endswith(".json"):
            continue
        try:
            role = json.loads(read(os.path.join(directory, name)) or b"{}").get("role")
        except ValueError:
            continue
        if role:
            found.add(str(role))
    return sorted(found)


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, roles=recorded_roles(RECORD_DIR))


if __name__ == "__main__":
    main()
