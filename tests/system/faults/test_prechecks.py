"""A host that cannot be provisioned is refused before anything on it changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.faults import site
from tests.system.fleet.fleet import connect, members, setting, shell, vpn_address, wait_until

# It accepts nothing: whoever asks the API for its metrics meanwhile must not end it.
LISTEN = """
import signal, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
signal.pause()
"""


@pytest.fixture
def foreign_program() -> Iterator[str]:
    """Somebody else holds the API's port; yields the host."""
    (name,) = members("api")
    host, port = connect(name), str(setting(name, "api", "api_port"))
    shell(host, "systemctl stop prime-spark-api.service")
    try:
        start = 'systemd-run --quiet --unit fleet-test-listener /usr/bin/python3 -c "$1" "$2" "$3"'
        shell(host, start, LISTEN, vpn_address(name), port)
        wait_until("the listener", lambda: shell(host, f"ss -Hltn sport = :{port}"), 15)
        yield name
    finally:
        shell(host, "systemctl stop fleet-test-listener; systemctl start prime-spark-api")


def test_a_port_that_somebody_else_holds_is_named(foreign_program: str) -> None:
    port = setting(foreign_program, "api", "api_port")
    run = site.run("--tags", "api", "--limit", foreign_program)
    assert run.status == 2
    assert (
        f"listens on {vpn_address(foreign_program)}:{port}, which api needs; "
        "stop it or set api_port. Nothing on it was changed."
    ) in run.output, run.output[-3000:]
    assert run.recap[foreign_program]["changed"] == 0


@pytest.mark.looks
def test_a_service_of_our_own_holds_its_port() -> None:
    run = site.run("--tags", "api", "--limit", members("api")[0])
    assert run.status == 0 and run.changed == 0, run.output[-3000:]
