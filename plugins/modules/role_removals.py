#!/usr/bin/python
"""What the action ``role_removals`` takes and returns; it runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: role_removals
short_description: Decide which roles leave which hosts, and stop what nobody confirmed
description:
  - Runs after every host has said which roles left records there.
  - Fails where something has to be confirmed and is not; in check mode it only says so.
options:
  most:
    description: Removals that need no confirmation.
    type: int
    required: true
  confirmed:
    description: Names of roles, separated by commas.
    type: str
    required: true
"""

RETURN = r"""
leaves:
  description: Host to roles, first to go first. A host that loses none is not in it.
  type: dict
  returned: always
"""
