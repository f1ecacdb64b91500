#!/usr/bin/python
"""What the action ``fleet_table`` takes and returns; it runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_table
short_description: Print what every host was found to be, fail when something is wrong
description: One row for each host, and one line for each problem.
options:
  hosts:
    description: Names.
    type: list
    elements: str
    required: true
  health:
    description: Host to the result of M(prime_spark.fleet.host_health).
    type: dict
    required: true
  telemetry:
    description: Device to the age of its newest row, in seconds.
    type: dict
    required: true
  devices:
    description: Host that has to have telemetry to its device.
    type: dict
    required: true
  fresh:
    description: Age in seconds that telemetry may have.
    type: float
    required: true
  groups:
    description: Host to its groups.
    type: dict
    required: true
  deferred:
    description: Hosts that were away when the run began.
    type: list
    elements: str
    required: true
  telemetry_waits_for:
    description: Those of them without whom no telemetry arrives.
    type: list
    elements: str
    required: true
"""
