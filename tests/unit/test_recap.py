"""Tests read a run's last lines."""

from __future__ import annotations

from tests.system.fleet.recap import recap_of

OUTPUT = """\
ok: [nas-1] => nas-1 : ok=9
PLAY RECAP *******************************
nas-1                      : ok=4    changed=0    failed=0
spark-agent-1              : ok=18   changed=2    failed=1

FAILED   spark-agent-1: nas : Mount on demand and check the share
         the server does not accept the key of this host
"""


def test_a_recap_has_the_hosts_and_not_what_ended_the_run() -> None:
    assert recap_of(OUTPUT) == {
        "nas-1": {"ok": 4, "changed": 0, "failed": 0},
        "spark-agent-1": {"ok": 18, "changed": 2, "failed": 1},
    }
