"""Hosts with a past are refused before any change, adopted, provisioned, and lose nothing."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from lab import common
from tests.system.past.hosts import HOSTS, Fleet, Run

# Everything that a run may write to, and what the owner has beside that.
STATE = (
    (common.CHECKOUT / "molecule/default/fingerprint.sh").read_text()
    + r"""
dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Status}\n'
findmnt --noheadings --output SOURCE,TARGET /mnt/nas || true
ip -brief address show dev wg0 2>/dev/null | awk '{print $1, $3}' || true
docker ps --format '{{.Names}} {{.State}}' 2>/dev/null || true
"""
)
# What is the owner's and stays, whatever runs: by host.
KEPT = {
    "primecore1": """
        dpkg-query --show docker-ce docker-ce-cli containerd.io docker-compose-plugin
        docker image inspect --format '{{.Id}}' old:1
        docker inspect --format '{{.Id}}' old-stack-exporter-1
        docker run --rm --volume old-stack_data:/data old:1 /bin/busybox cat /data/kept
        cat /home/old-stack/compose.yml
        grep -c -e 'tcp 22 ' -e 'tcp 80 ' /etc/ufw/user.rules
        ufw status | head -n 1
    """,
    "primecore4": """
        f=/var/lib/prime-spark/adopted/etc/wireguard/wg0.conf
        [ -e $f ] || f=/etc/wireguard/wg0.conf
        cat $f
        grep -c 'tcp 22 ' /etc/ufw/user.rules
        ufw status | head -n 1
    """,
    "spark-agent-1": """
        cat /srv/share/kept
        getent group media; getent passwd pi; getent shadow pi
        grep -o '/srv/share /mnt/nas .*' /etc/fstab
    """,
}
# The numbers that this fleet takes, as its owner is told to set it.
SETTLED = ("-e", '{"nas_gid": 1495}')
STOP = ("-e", "stop=old-stack")


def states(fleet: Fleet) -> dict[str, set[str]]:
    """What every host has, a line each; not what is kept aside, which goes with the undoing."""

    def lines(host: str) -> set[str]:
        said = fleet.shell(host, STATE).splitlines()
        return {line for line in said if "/var/lib/prime-spark" not in line}

    with ThreadPoolExecutor() as pool:
        return dict(zip(HOSTS, pool.map(lines, HOSTS), strict=True))


def kept(fleet: Fleet) -> dict[str, str]:
    return {host: fleet.shell(host, script) for host, script in KEPT.items()}


class Story(NamedTuple):
    """The runs in their order, and what the hosts had between them."""

    before: dict[str, set[str]]
    refused: Run
    after_refusal: dict[str, set[str]]
    predicted: Run
    adopted: Run
    after_undo: dict[str, set[str]]
    again: Run
    first: Run
    second: Run
    owned_before: dict[str, str]
    owned_after: dict[str, str]


@pytest.fixture(scope="module")
def story(fleet: Fleet) -> Story:
    before, owned_before = states(fleet), kept(fleet)
    refused = fleet.site()
    predicted = fleet.play("playbooks/adopt.yml", "--check", *STOP, *SETTLED)
    after_refusal = states(fleet)
    adopted = fleet.play("playbooks/adopt.yml", *STOP, *SETTLED)
    for host in HOSTS:
        fleet.shell(host, "/var/lib/prime-spark/adopted/undo")
    after_undo = states(fleet)
    fleet.play("playbooks/adopt.yml", *STOP, *SETTLED)
    again = fleet.play("playbooks/adopt.yml", *STOP, *SETTLED)
    first = fleet.site(*SETTLED)
    # Nothing is left out for being in sync.
    second = fleet.site(*SETTLED, "-e", "full=true")
    return Story(
        before,
        refused,
        after_refusal,
        predicted,
        adopted,
        after_undo,
        again,
        first,
        second,
        owned_before,
        kept(fleet),
    )


REFUSALS = {
    "primecore1": [
        r"docker-ce \S+ is installed, .*: playbooks/adopt\.yml resolves it",
        r"ufw is on and lacks 5 rules .*: playbooks/adopt\.yml resolves it",
        r"the container old-stack-exporter-1 listens on .*:19100, which node_exporter needs; "
        r"stop it \(`playbooks/adopt\.yml -e stop=old-stack`\) or set node_exporter_port",
    ],
    "primecore4": [
        r"/etc/wireguard/wg0\.conf was made by hand, .*: playbooks/adopt\.yml resolves it",
        r"ufw is on and lacks 1 rules .*: playbooks/adopt\.yml resolves it",
    ],
    "spark-agent-1": [
        r"/etc/fstab mounts /srv/share at /mnt/nas, .*: playbooks/adopt\.yml resolves it",
        r"the number 1490 is the group media's, .*: set nas_gid .*",
    ],
}


@pytest.mark.parametrize("host", HOSTS)
def test_site_refuses_it_with_a_line_for_each_thing(story: Story, host: str) -> None:
    assert story.refused.status == 2 and story.refused.changed == 0
    said = story.refused.refusals(host)
    assert len(said) == len(REFUSALS[host]), said
    for pattern, sentence in zip(sorted(REFUSALS[host]), sorted(said), strict=True):
        assert re.fullmatch(pattern, sentence), sentence


@pytest.mark.parametrize("host", HOSTS)
def test_neither_a_refusal_nor_a_check_changes_anything(story: Story, host: str) -> None:
    assert story.predicted.status == 0, story.predicted.output
    assert story.after_refusal[host] ^ story.before[host] == set()


def test_the_check_says_what_is_then_done(story: Story) -> None:
    def steps(run: Run) -> set[str]:
        return set(re.findall(r'"((?:docker|fstab|stop|ufw|wireguard): [^"]*)"', run.output))

    assert story.adopted.status == 0, story.adopted.output
    assert {step.partition(":")[0] for step in steps(story.adopted)} == {
        *("docker", "fstab", "stop", "ufw", "wireguard"),
    }
    assert steps(story.predicted) == steps(story.adopted)


@pytest.mark.parametrize("host", HOSTS)
def test_what_was_done_can_be_undone(story: Story, host: str) -> None:
    assert story.after_undo[host] ^ story.before[host] == set()


def test_a_second_adoption_finds_nothing(story: Story) -> None:
    assert story.again.status == 0 and story.again.changed == 0, story.again.output


def test_the_hosts_are_provisioned_and_a_second_run_changes_nothing(story: Story) -> None:
    assert story.first.status == 0, story.first.output[-4000:]
    assert re.search(r"all (others )?well", story.first.output)
    assert story.second.status == 0 and story.second.changed == 0, story.second.output[-4000:]


@pytest.mark.parametrize("host", HOSTS)
def test_nothing_of_the_owner_is_lost(story: Story, host: str) -> None:
    assert story.owned_after[host] == story.owned_before[host]


def test_the_vpn_lets_in_through_the_firewall_what_the_fleet_asks(
    fleet: Fleet, story: Story
) -> None:
    """The node exporter of a host with ufw on, asked by another host of the VPN."""
    assert story.first.status == 0
    ask = "python3 -c \"import socket; socket.create_connection(('{}', 19100), 10)\""
    for host, other in (("primecore1", "10.90.8.14"), ("spark-agent-1", "10.90.8.11")):
        fleet.shell(host, ask.format(other), 60)
