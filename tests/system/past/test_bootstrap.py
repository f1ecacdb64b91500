"""Images with nothing but sshd become hosts that site.yml provisions, by what the docs say."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.system.past.hosts import STATE, Fleet, Run

KEY = ("-e", f"bootstrap_public_key={STATE}/ssh/id_ed25519.pub")
BOOTSTRAP = "playbooks/bootstrap.yml"
HOSTS = ("primecore1", "spark-agent-1")
LOOK = """
command -v python3 sudo || true; hostname; readlink /etc/localtime; getent passwd prime || true
ls /etc/sudoers.d /etc/systemd/journald.conf.d 2>/dev/null || true
dpkg-query --show --showformat '${Package}\\n' | wc -l
"""


class Story(NamedTuple):
    """The runs in their order, and what the hosts had before, after the check and at last."""

    before: dict[str, str]
    predicted: Run
    checked: dict[str, str]
    first: Run
    after: dict[str, str]
    second: Run
    site: Run


@pytest.fixture(scope="module")
def story(fresh: Fleet) -> Story:
    def look() -> dict[str, str]:
        return {name: fresh.shell(name, LOOK) for name in HOSTS}

    return Story(
        look(),
        fresh.play(BOOTSTRAP, "--check", *KEY),
        look(),
        fresh.play(BOOTSTRAP, *KEY),
        look(),
        fresh.play(BOOTSTRAP, *KEY),
        fresh.site(),
    )


def test_a_check_says_so_and_changes_nothing(story: Story) -> None:
    assert story.predicted.status == 0, story.predicted.output
    assert "deferred: Python is installed first" in story.predicted.output
    assert story.checked == story.before


@pytest.mark.parametrize("name", HOSTS)
def test_the_host_gets_user_name_and_time(story: Story, name: str) -> None:
    assert story.first.status == 0, story.first.output
    after = story.after[name]
    assert {"/usr/bin/python3", "/usr/bin/sudo", name, "prime-spark.conf"} <= set(after.split())
    assert "zoneinfo/Etc/UTC" in after and "/home/prime:/bin/bash" in after


def test_it_ends_with_a_line_for_the_inventory(story: Story) -> None:
    assert "primecore1: {ansible_host: 198.51.100.11, ansible_user: prime}" in story.first.output


def test_a_second_run_changes_nothing(story: Story) -> None:
    assert story.second.status == 0 and story.second.changed == 0, story.second.output


def test_site_then_provisions_it_as_that_user(story: Story) -> None:
    assert story.site.status == 0, story.site.output[-4000:]
    assert re.search(r"all well", story.site.output)
