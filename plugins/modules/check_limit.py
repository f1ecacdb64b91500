#!/usr/bin/python
"""What the action ``check_limit`` takes and returns; it runs on the controller alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_limit
short_description: Refuse a --limit whose names the inventory lacks
description:
  - Ansible passes over them. What is to run on two hosts runs on one, and what is to leave one out
    runs on all.
  - An inventory without managed hosts is refused as well. A run on nobody would end well.
"""
