"""Hosts with a past, in a lab of their own that borrows the real lab's bases.

The real lab may run beside it. Each host gets its past from a script of `pasts/` before any run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import common
from tests.system.past.hosts import HOSTS, RUNTIME, STATE, Fleet, environment
from tools.vault import References, new_secret

PASTS = Path(__file__).parent / "pasts"


def lab(*words: str) -> None:
    argv = [sys.executable, "-m", "lab", *words]
    done = subprocess.run(
        argv, cwd=common.CHECKOUT, env=environment(), capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def state() -> Iterator[None]:
    """A lab of its own, down and without hosts."""
    if os.geteuid() != 0:
        pytest.fail("these tests need root")
    STATE.mkdir(exist_ok=True)
    if not (STATE / "cache").is_symlink():
        (STATE / "cache").symlink_to(common.CACHE)
    lab("destroy", "--takeover")
    yield
    lab("destroy", "--takeover")
    (STATE / "cache").unlink()
    shutil.rmtree(STATE)
    shutil.rmtree(RUNTIME)


def boot(*names: str) -> None:
    """Bare hosts."""
    lab("destroy", "--takeover")
    lab("up", "--no-images", *names)


@pytest.fixture(scope="module")
def fleet(state: None, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """The hosts, each with its past, and the inventory that wants roles on them."""
    boot(*HOSTS)
    found = Fleet(inventory(tmp_path_factory.mktemp("inventory")))
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(found.prepare, name, PASTS) for name in HOSTS]:
            done.result()
    return found


@pytest.fixture(scope="module")
def fresh(state: None, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Debian 12 and 13 with nothing but sshd and the provider's root login."""
    names = ("primecore1", "spark-agent-1")
    boot(*names)
    place = inventory(tmp_path_factory.mktemp("inventory"), names, user="prime")
    found = Fleet(place)
    for name in names:
        found.shell(name, FRESH)
    return found


# Without Python and sudo, under the name that a provider gives, with the clock of nowhere.
FRESH = """
export DEBIAN_FRONTEND=noninteractive SUDO_FORCE_REMOVE=yes
there=$(dpkg-query --show --showformat '${db:Status-Status} ${Package}\\n' 'python3*' 'libpython3*')
apt-get purge --yes --quiet sudo $(sed -n 's/^installed //p' <<<"$there") >/dev/null
if command -v python3 sudo; then exit 1; fi
echo vmi123456 >/etc/hostname && hostname vmi123456
ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime
"""


def inventory(folder: Path, names: Collection[str] = tuple(HOSTS), user: str = "") -> Path:
    """An inventory of these hosts, with secrets of its own; for ``user`` the least roles."""
    place = folder / "lab"
    (place / "group_vars/all").mkdir(parents=True)
    lab_variables = common.CHECKOUT / "inventories/lab/group_vars/all/main.yml"
    shared = yaml.safe_load(lab_variables.read_text())
    wanted = ("lab_directory", "ansible_", "wireguard_", "nas_", "node_exporter_")
    given: dict[str, Any] = {key: value for key, value in shared.items() if key.startswith(wanted)}
    given["lab_proxy"] = f"{common.CHECKOUT}/lab/bin/ssh-proxy"
    hosts = {name: dict(HOSTS[name]) for name in names}
    if user:
        given["ansible_user"] = user
        hosts["spark-agent-1"].pop("ansible_user")
    groups: dict[str, Any] = {
        "edge": {"hosts": {name: hosts[name] for name in names if name == "spark-agent-1"}},
        "cloud": {"hosts": {name: hosts[name] for name in names if name != "spark-agent-1"}},
        "managed": {"children": {"edge": {}, "cloud": {}}},
        "wireguard": {"children": {"managed": {}}},
        "node_exporter": {"children": {"managed": {}}},
    }
    if not user:
        groups |= {"nas": {"children": {"edge": {}}}, "docker": {"hosts": {"primecore1": {}}}}
    (place / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    (place / "group_vars/all/main.yml").write_text(yaml.safe_dump(given))
    secrets = {name: new_secret() for name in References(place).required}
    (place / "group_vars/all/vault.yml").write_text(yaml.safe_dump(secrets))
    return place
