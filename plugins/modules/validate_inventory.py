#!/usr/bin/python
"""What the action ``validate_inventory`` takes and returns; it runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: validate_inventory
short_description: Validate the whole inventory before any host is contacted
description:
  - What a role will see on a host is worked out here as the role would, the inventory's variable,
    else the role's default, templated for that host.
  - Then every input is held against the role's argument specification, and the fleet as a whole
    against what its parts need from each other. Nothing that only a host can tell is asked for.
"""

RETURN = r"""
ports:
  description: By host, what its roles will listen on.
  type: dict
  returned: success
wanted:
  description: By host, what its roles want of it, for M(host_precheck) and M(host_adopt).
  type: dict
  returned: success
stamps:
  description: By host and role, that by which a later run sees that nothing that decides about the
    role has changed.
  type: dict
  returned: success
"""
