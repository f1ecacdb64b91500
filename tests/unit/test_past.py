"""What a host had before, from its own files: what stands in the way is named with its remedy."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils import listeners, past
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import HEADER
from ansible_collections.prime_spark.fleet.plugins.modules import host_adopt, packages


def problems(found: list[past.Finding]) -> str:
    return "; ".join(finding.problem for finding in found)


def test_docker_of_another_source_is_adopted_first() -> None:
    ce = {"docker-ce": "5:28.1.1", "containerd.io": "1.7"}
    said = problems(past.docker_findings(ce, "", {}, known=False))
    assert said.startswith("docker-ce 5:28.1.1 is installed") and past.ADOPT in said
    assert past.docker_findings(ce, "", {}, known=True) == []
    assert past.docker_findings({}, "", {}, known=False) == []


def test_a_runtime_that_docker_io_would_remove_is_named() -> None:
    said = problems(past.docker_findings({"containerd.io": "1.7"}, "", {}, known=False))
    assert said.startswith("containerd.io is installed without docker-ce")


def test_settings_of_the_daemon_are_not_dropped() -> None:
    own = '{"data-root": "/srv/docker", "live-restore": false}'
    said = problems(past.docker_findings({}, own, {}, known=False))
    assert 'set docker_daemon_settings: {"data-root": "/srv/docker"}' in said
    assert past.docker_findings({}, own, {"data-root": "/srv/docker"}, known=False) == []
    assert "no JSON object" in problems(past.docker_findings({}, "[]", {}, known=False))


FSTAB = (
    "# /mnt/nas was here\n\nUUID=1 / ext4 defaults 0 1\n10.0.0.9:/share /mnt/nas nfs defaults 0 0\n"
)
MOUNTED = "36 35 98:0 / /mnt/nas rw - nfs 10.0.0.9:/share rw\n"
GROUPS = "root:x:0:\nmedia:x:1490:\n"


def nas(
    fstab: str = "",
    mounts: str = "",
    units: tuple[str, ...] = (),
    ours: bool = False,
    groups: str = "",
) -> str:
    return problems(
        past.nas_findings("/mnt/nas", fstab, mounts, units, ours, "prime-spark-nas", 1490, groups)
    )


def test_a_line_of_fstab_and_a_foreign_mount_stand_in_the_way() -> None:
    assert nas() == ""
    assert nas(FSTAB, MOUNTED).startswith("/etc/fstab mounts 10.0.0.9:/share at /mnt/nas")
    assert nas("", MOUNTED).startswith("10.0.0.9:/share is there for /mnt/nas")
    assert nas(units=("mnt-nas.mount",)).startswith("mnt-nas.mount is there for /mnt/nas")
    assert nas("", MOUNTED, ("mnt-nas.mount",), ours=True) == ""
    automount = "35 1 0:4 / /mnt/nas rw - autofs systemd-1 rw\n"
    assert nas("", automount) == ""


def test_a_group_number_that_is_taken_names_the_input() -> None:
    assert "1490 is the group media's" in nas(groups=GROUPS) and "set nas_gid" in nas(groups=GROUPS)
    assert nas(groups="prime-spark-nas:x:1490:\n") == ""


def test_an_interface_made_by_hand_is_adopted_first() -> None:
    own = "[Interface]\nPrivateKey = x\n"
    said = problems(past.wireguard_findings(own, True, ""))
    assert said.startswith("/etc/wireguard/wg0.conf was made by hand") and past.ADOPT in said
    assert past.wireguard_findings(own, True, past.digest(own)) == []
    assert problems(past.wireguard_findings(own + "#", True, past.digest(own)))
    assert past.wireguard_findings(HEADER + own, True, "") == []
    assert past.wireguard_findings("", False, "") == []
    assert problems(past.wireguard_findings("", True, "")).startswith("an interface wg0")


WANTED = {
    "ports": [{"port": 9100}],
    "networks": ["172.30.0.0/16"],
    "vpn_port": 51820,
    "forward": True,
}
RULES = """\
*filter
### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### allow udp 51820 0.0.0.0/0 any 0.0.0.0/0 in
### tuple ### route:allow any any 0.0.0.0/0 any 0.0.0.0/0 in_wg0!out_wg0 comment=61
### tuple ### allow tcp 9100 0.0.0.0/0 any 0.0.0.0/0 in_wg0
### tuple ### allow tcp 9100 0.0.0.0/0 any 172.30.0.0/16 in
"""


def test_ufw_has_to_let_in_what_the_fleet_asks() -> None:
    def said(conf: str, rules: str) -> str:
        return problems(past.firewall_findings(WANTED, conf, rules, False, ""))

    assert said("ENABLED=no\n", "") == ""
    assert "`ufw allow to any port 51820 proto udp` among them" in said("ENABLED=yes\n", "")
    assert said("ENABLED=yes\n", RULES) == ""
    for line in RULES.splitlines()[2:]:
        assert past.ADOPT in said("ENABLED=yes\n", RULES.replace(line + "\n", "")), line


def test_firewalld_has_to_trust_the_vpn() -> None:
    (finding,) = past.firewall_findings(WANTED, "", "", True, "<zone/>")
    assert "--zone=trusted --add-interface=wg0" in finding.problem
    trusted = '<zone><interface name="wg0"/></zone>'
    assert past.firewall_findings(WANTED, "", "", True, trusted) == []


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("console=tty1 cgroup_disable=memory root=x", True),
        ("cgroup_disable=memory cgroup_enable=memory root=x", False),
        ("root=x", False),
    ],
)
def test_a_kernel_that_accounts_no_memory_is_refused(line: str, refused: bool) -> None:
    assert bool(past.kernel_findings(line)) == refused


def test_programs_of_32_bits_under_a_kernel_of_64_are_refused() -> None:
    assert "install the 64-bit image" in problems(past.userland_findings(32, "aarch64"))
    assert past.userland_findings(64, "aarch64") == [] == past.userland_findings(32, "armv7l")


def test_a_container_counts_as_ours_by_project_and_directory() -> None:
    ours = listeners.Container("kafka-1", "kafka", "/opt/prime-spark/stack/kafka", {9094})
    old = listeners.Container("kafka-1", "kafka", "/home/pi/kafka", {9094})
    assert listeners.is_ours(ours, ["kafka"])
    assert not listeners.is_ours(old, ["kafka"])
    assert not listeners.is_ours(ours, ["redis"])


def test_published_ports_are_those_of_the_host() -> None:
    assert listeners.published("0.0.0.0:80-81->80-81/tcp, :::443->8443/tcp, 9/tcp") == {80, 81, 443}
    assert listeners.published("") == set()


def test_a_plan_of_apt_that_removes_is_refused_by_name() -> None:
    plan = "Remv docker-ce [5:28.1.1]\nRemv containerd.io [1.7]\nInst docker.io (26.1 Debian)\n"
    with pytest.raises(packages.PackageError, match=r"would remove docker-ce, containerd\.io"):
        packages.refuse_removals(["docker.io"], plan)
    packages.refuse_removals(["docker.io"], "Inst docker.io (26.1 Debian)\n")


def adoption(check: bool) -> host_adopt.Adoption:
    return host_adopt.Adoption({"wanted": {}, "ports": []}, check)


def test_steps_are_taken_back_in_the_opposite_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "KEPT", str(tmp_path / "kept"))
    monkeypatch.setattr(host_adopt, "UNDO", str(tmp_path / "kept/undo"))
    (tmp_path / "fstab").write_text("line\n")
    said = adoption(check=True)
    assert not said.step("one", "do this", ["undo this"])
    said.keep(str(tmp_path / "fstab"))
    assert not (tmp_path / "kept").exists()
    done = adoption(check=False)
    assert done.step("one", "do this", ["echo 1"]) and done.step("two", "do that", ["echo 2"])
    kept = Path(done.keep(str(tmp_path / "fstab")))
    assert kept.read_text() == "line\n"
    undone = subprocess.run([tmp_path / "kept/undo"], capture_output=True, text=True, check=True)
    assert undone.stdout.split() == ["2", "1"]
    assert not kept.exists()
    assert done.steps == ["one: do this", "two: do that"]


def test_the_memory_of_a_raspberry_pi_is_accounted_from_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "KEPT", str(tmp_path / "kept"))
    monkeypatch.setattr(host_adopt, "UNDO", str(tmp_path / "kept/undo"))
    line = tmp_path / "cmdline.txt"
    line.write_text("console=tty1 root=x rootwait\n")
    monkeypatch.setattr(past, "COMMAND_LINES", (str(line),))
    adoption(check=True).memory()
    assert line.read_text() == "console=tty1 root=x rootwait\n"
    for _ in range(2):
        adoption(check=False).memory()
        assert line.read_text() == (
            "console=tty1 root=x rootwait cgroup_enable=memory cgroup_memory=1\n"
        )
