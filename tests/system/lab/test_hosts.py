"""What a host may and may not do to the machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import bases, cgroups, common, hosts, lxcfs
from lab.cli import ssh_command
from lab.topology import HOSTS

Run = Callable[..., subprocess.CompletedProcess[str]]

# Bit numbers of <linux/capability.h>.
CAPABILITIES = {"CAP_SYS_MODULE": 16, "CAP_SYS_RAWIO": 17, "CAP_SYS_TIME": 25}


@pytest.mark.parametrize("name", HOSTS)
def test_own_cgroup_in_every_hierarchy(leaders: dict[str, Path], name: str) -> None:
    own = f"/{common.CGROUP_PARENT}/{name}"
    lines = (leaders[name] / "cgroup").read_text().splitlines()
    paths = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}
    for controllers, path in paths.items():
        # The v2 line has no controllers; v1 hierarchies without limits are left alone.
        if not controllers or set(controllers.split(",")) & set(cgroups.find().v1):
            assert path == own or path.startswith(own + "/"), (controllers, path)


@pytest.mark.parametrize("name", HOSTS)
def test_limits(owner: common.Owner, name: str) -> None:
    host = HOSTS[name]
    limits = cgroups.limits(name)
    assert limits["memory"] == host.memory
    assert limits["pids"] == host.pids
    assert limits["cpu_quota"] is not None and 0 < limits["cpu_quota"] <= host.cpus * 100_000


@pytest.mark.parametrize("name", HOSTS)
def test_capabilities_are_dropped(leaders: dict[str, Path], name: str) -> None:
    assert set(hosts.DROPPED_CAPABILITIES) == set(CAPABILITIES)
    status = (leaders[name] / "status").read_text().splitlines()
    for field in ("CapBnd", "CapEff", "CapPrm"):
        mask = int(next(line for line in status if line.startswith(field)).split()[1], 16)
        held = [cap for cap, bit in CAPABILITIES.items() if mask >> bit & 1]
        assert held == [], field


@pytest.mark.parametrize("name", HOSTS)
def test_the_machines_sysctls_are_read_only(on_host: Run, name: str) -> None:
    script = "! test -w /proc/sys/vm/swappiness && ! test -w /proc/sys/kernel/pid_max && "
    script += "! test -w /proc/sys/fs/file-max && test -w /proc/sys/net/ipv4/ip_forward"
    assert on_host(name, "sh", "-c", script).returncode == 0


@pytest.mark.parametrize("name", HOSTS)
def test_time_is_left_alone(on_host: Run, name: str) -> None:
    result = on_host(name, "systemctl", "is-enabled", "systemd-timesyncd.service")
    assert result.stdout.strip() == "masked"


@pytest.mark.parametrize("name", HOSTS)
def test_own_memory_figure(owner: common.Owner, on_host: Run, name: str) -> None:
    if not Path(f"/proc/{owner['pid']}/root{lxcfs.MOUNT}/proc/meminfo").exists():
        pytest.skip("lxcfs does not work here: hosts show the machine's figures")
    kib = int(on_host(name, "awk", "/^MemTotal:/ {print $2}", "/proc/meminfo").stdout)
    assert kib * 1024 == HOSTS[name].memory


@pytest.mark.parametrize("name", HOSTS)
def test_ssh_with_pinned_host_key(owner: common.Owner, name: str) -> None:
    command = ssh_command(HOSTS[name], "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
    result = subprocess.run([*command, "hostname"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"{name}\n"), result.stderr


def test_every_host_is_its_own(on_host: Run) -> None:
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        assert len({on_host(name, "cat", path).stdout for name in HOSTS}) == len(HOSTS), path
    keys = {on_host(name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub").stdout for name in HOSTS}
    assert len(keys) == len(HOSTS)


def test_bases_are_bare(owner: common.Owner) -> None:
    for suite in {host.suite for host in HOSTS.values()}:
        status = (bases.BASES / suite / "var/lib/dpkg/status").read_text()
        installed = {line[9:] for line in status.splitlines() if line.startswith("Package: ")}
        assert not installed & {"docker.io", "wireguard-tools", "iptables", "nftables", "gnupg"}
        assert not list((bases.BASES / suite / "etc/ssh").glob("ssh_host_*"))
