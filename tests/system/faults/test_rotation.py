"""Every secret can be renewed: the old one is refused, nothing is lost, nothing is left to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.system.faults import site
from tests.system.faults.delivery import DEVICES, Delivery
from tests.system.fleet import canaries, fleet
from tools.vault import PREVIOUS, References, Vault, new_secret

INVENTORY = fleet.ROOT / "inventories" / "lab"
RECOVERY_SECONDS = 120.0
# One that the collectors have, with a server that has others as well, and one that ingest has.
SHORT = ["vault_kafka_telemetry_password", "vault_timescale_ingest_password"]
# Who would be asked is not in the lab; the rotation says so.
NOBODY_TO_ASK = {"vault_grafana_admin_password": "skipped: images has no `grafana` here"}
SECRETS = References(INVENTORY).required if fleet.FULL else SHORT


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What was read of the vault does not hold any longer afterwards."""
    yield
    for cached in (fleet.inventory, canaries.secrets, canaries.wanted):
        cached.cache_clear()


def rotate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/rotate_secret.py", "--inventory", INVENTORY, *arguments],
        cwd=fleet.ROOT,
        env=site.environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_renewed_and_the_old_one_is_refused(secret: str) -> None:
    vault = Vault(INVENTORY)
    before = vault.read()
    delivery = Delivery()
    done = rotate(secret)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    proof = NOBODY_TO_ASK.get(secret, "the new one is accepted, the old one is refused")
    assert proof in output
    assert f"{secret}: the new one is in use, the old one is refused" in output
    after = vault.read()
    assert after[secret] != before[secret]
    assert {**after, secret: ""} == {**before, secret: ""}
    told = [name for name, value in {**before, "new": after[secret]}.items() if value in output]
    assert told == []
    # Collectors that have the secret were restarted and may have missed a tick.
    restarted = DEVICES if "telemetry" in References(INVENTORY).roles(secret) else []
    delivery.confirm(f"a rotation of {secret}", RECOVERY_SECONDS, silent=restarted)


def test_then_nothing_is_left_to_change() -> None:
    roles = {role for secret in SECRETS for role in References(INVENTORY).roles(secret)}
    again = site.run(*([] if fleet.FULL else ["--tags", ",".join(sorted(roles))]))
    assert again.status == 0, again.output[-3000:]
    assert again.changed == 0


def test_an_old_one_that_still_works_would_be_noticed() -> None:
    """As if nothing had been rotated: old and new are the same."""
    vault, secret = Vault(INVENTORY), SHORT[0]
    before = vault.read()
    vault.write({**before, secret + PREVIOUS: before[secret]})
    try:
        done = subprocess.run(
            [
                fleet.BIN / "ansible-playbook",
                "playbooks/rotate.yml",
                "-e",
                f"rotate_secret={secret}",
            ],
            cwd=fleet.ROOT,
            env=site.environment(),
            capture_output=True,
            text=True,
        )
    finally:
        vault.write(before)
    assert done.returncode == 2
    assert "telemetry: the new one is accepted, the old one is ACCEPTED" in done.stdout
    assert before[secret] not in done.stdout + done.stderr


def test_an_interrupted_rotation_is_continued() -> None:
    """The vault has the new value, no host has heard of it: as after kill -9 right at the start."""
    vault, secret = Vault(INVENTORY), "vault_redis_telemetry_password"
    before = vault.read()
    half = {**before, secret: new_secret(), secret + PREVIOUS: before[secret]}
    vault.write(half)
    done = rotate(secret)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "going on with the rotation" in done.stdout
    assert vault.read() == {**before, secret: half[secret]}


def test_the_secrets_are_listed_with_their_uses() -> None:
    done = rotate()
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "kafka, telemetry" in lines["vault_kafka_telemetry_password"]
    assert "set by its own administrator" in lines["vault_nas_cifs_password"]
