#!/usr/bin/python
"""What the action ``fleet_plan`` takes and returns; it runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_plan
short_description: Decide which roles a run plays on which hosts
description:
  - Runs after every host has been examined by M(prime_spark.fleet.host_precheck).
  - A role is left out on a host where its stamp is the one of the last whole run and where nothing
    that this run brought up differs.
options:
  full:
    description: Play everything.
    type: bool
    default: false
  show:
    description: Print every role of every host.
    type: bool
    default: false
  file:
    description: Where to write that as JSON, too.
    type: path
"""

RETURN = r"""
run:
  description: Identifier of the run.
  type: str
  returned: always
everything:
  description: Whether nothing is left out.
  type: bool
  returned: always
due:
  description: Role to hosts.
  type: dict
  returned: always
played:
  description: Host to the roles that are sealed at the end, with their stamps.
  type: dict
  returned: always
state:
  description: Host to role to state and differences.
  type: dict
  returned: always
"""
