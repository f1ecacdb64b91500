"""Containers' health checks: rare once healthy, and in words that the host's Docker knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(ROOT.glob("roles/*/templates/stack/compose.yml.j2"))


def check(template: Path, distribution: str, version: str) -> dict[str, Any]:
    """What all checks of a project share, on a host of that system."""
    block = re.search(r"^x-check: &check\n(?:(?:  |\{%).*\n)+", template.read_text(), re.MULTILINE)
    assert block, template
    facts = {"distribution": distribution, "distribution_major_version": version}
    rendered = jinja2.Environment(trim_blocks=True).from_string(block[0])
    return dict(yaml.safe_load(rendered.render(ansible_facts=facts))["x-check"])


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parents[2].name)
def test_every_check_of_a_project_is_paced_alike(template: Path) -> None:
    text = template.read_text()
    assert text.count("    healthcheck:\n      <<: *check\n") == text.count("healthcheck:") > 0
    assert not re.search(r"^ {6}(interval|retries|start_interval):", text, re.MULTILINE)
    assert check(template, "Debian", "13") == check(TEMPLATES[0], "Debian", "13")


@pytest.mark.parametrize("system", [("Debian", "12"), ("Ubuntu", "24")])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parents[2].name)
def test_docker_before_25_is_asked_for_nothing_it_refuses(
    template: Path, system: tuple[str, str]
) -> None:
    found = check(template, *system)
    assert "start_interval" not in found
    # A start is waited for as long as the interval is.
    assert int(found["interval"].removesuffix("s")) <= 10


def test_a_container_is_found_ill_before_its_alert_may_be_late() -> None:
    """docs/decisions.md: ContainerDown fires about five minutes after."""
    found = check(TEMPLATES[0], "Debian", "13")
    interval = int(found["interval"].removesuffix("s"))
    assert interval * found["retries"] <= 120
    assert int(found["start_interval"].removesuffix("s")) <= 5
