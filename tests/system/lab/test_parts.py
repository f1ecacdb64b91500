"""Parts of the lab that need no running lab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import cgroups, common, network
from lab.topology import HOSTS, SEGMENTS

HYBRID = """\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
PURE = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime 0 0\n"


def test_cgroups_of_a_hybrid_machine() -> None:
    found = cgroups.find(HYBRID)
    both = Path("/sys/fs/cgroup/cpu,cpuacct")
    memory = Path("/sys/fs/cgroup/memory")
    systemd = Path("/sys/fs/cgroup/systemd")
    assert found.v1 == {"cpu": both, "cpuacct": both, "memory": memory, "name=systemd": systemd}
    assert set(found.roots()) == {Path("/sys/fs/cgroup/unified"), both, memory, systemd}


def test_cgroups_of_a_pure_v2_machine() -> None:
    found = cgroups.find(PURE)
    assert found == cgroups.Hierarchies(Path("/sys/fs/cgroup"))
    assert found.roots() == [Path("/sys/fs/cgroup")]


def fake_trees(top: Path, files: dict[str, list[str]]) -> None:
    """Directories with empty control files, as the kernel would provide them."""
    host = HOSTS["nas-1"].name
    for tree, names in files.items():
        group = top / tree / common.CGROUP_PARENT / host
        group.mkdir(parents=True)
        for name in names:
            (group / name).touch()


def written(top: Path) -> dict[str, str]:
    """What the control files contain, by tree and name."""
    return {
        f"{path.relative_to(top).parts[0]}/{path.name}": path.read_text()
        for path in top.rglob("*")
        if path.is_file()
    }


def test_limits_of_a_pure_v2_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_trees(tmp_path, {"v2": ["memory.max", "cpu.max", "cpu.weight", "pids.max"]})
    monkeypatch.setattr(cgroups, "find", lambda: cgroups.Hierarchies(tmp_path / "v2"))
    cgroups.limit(HOSTS["nas-1"])
    assert written(tmp_path) == {
        "v2/memory.max": str(HOSTS["nas-1"].memory),
        "v2/cpu.max": "100000 100000",
        "v2/cpu.weight": "50",
        "v2/pids.max": str(HOSTS["nas-1"].pids),
    }
    assert cgroups.procs_files("nas-1") == [
        tmp_path / "v2" / common.CGROUP_PARENT / "nas-1" / "cgroup.procs"
    ]


def test_limits_of_a_hybrid_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without CFS bandwidth (no cpu.cfs_quota_us), the other limits still hold.
    files = {"v2": [], "memory": ["memory.limit_in_bytes"], "cpu": ["cpu.shares"]}
    fake_trees(tmp_path, files)
    v1 = {"memory": tmp_path / "memory", "cpu": tmp_path / "cpu"}
    monkeypatch.setattr(cgroups, "find", lambda: cgroups.Hierarchies(tmp_path / "v2", v1))
    cgroups.limit(HOSTS["nas-1"])
    assert written(tmp_path) == {
        "memory/memory.limit_in_bytes": str(HOSTS["nas-1"].memory),
        "cpu/cpu.shares": "512",
    }
    assert cgroups.limits("nas-1") == {
        "memory": HOSTS["nas-1"].memory,
        "cpu_quota": None,
        "pids": None,
    }


def test_sources_are_split_into_names_addresses_and_ports() -> None:
    found = network.sources_from_urls(
        {"http://mirror.example/debian/", "https://203.0.113.7:8443/x", "http://proxy.example:3128"}
    )
    assert found.names == ("mirror.example", "proxy.example")
    assert found.addresses == (IPv4Address("203.0.113.7"),)
    assert found.ports == (80, 443, 3128, 8443)


def test_rule_sets_are_accepted_by_nft() -> None:
    sources = network.Sources((), (IPv4Address("203.0.113.7"),), (80, 443))
    empty = network.Sources((), (), (80,))
    texts = [network.inet_rules(sources), network.inet_rules(empty), network.router_rules()]
    for text in [*texts, network.ctl_rules(), network.registry_rules()]:
        # In a namespace of its own: nft asks the kernel even when it only checks.
        argv = ["unshare", "--net", "nft", "--check", "--file", "-"]
        result = subprocess.run(argv, input=text, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_addresses_lie_in_their_segments_and_are_unique() -> None:
    addresses = [host.address for host in HOSTS.values()]
    assert len(set(addresses)) == len(addresses)
    assert all(host.address in host.segment.network for host in HOSTS.values())
    assert not SEGMENTS[0].network.overlaps(SEGMENTS[1].network)


def _remove_with_mount(tree: Path, mount: str) -> dict[str, str]:
    """Mount something below `tree` in a private namespace, call remove_tree, report."""
    script = (
        "import json, sys; from pathlib import Path; from lab import common\n"
        "try: common.remove_tree(Path(sys.argv[1])); error = ''\n"
        "except common.LabError as e: error = str(e)\n"
        "kept = (Path(sys.argv[1]) / 'mounted/kept').exists()\n"
        "print(json.dumps({'error': error, 'kept': str(kept)}))"
    )
    shell = f'set -e; {mount}; exec "$1" -c "$2" "$3"'
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", sys.executable, script, str(tree)],
        capture_output=True,
        text=True,
        cwd=common.CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(common.CHECKOUT)},
    )
    assert result.returncode == 0, result.stderr
    answer: dict[str, str] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_deleting_never_crosses_a_mount_point(tmp_path: Path, kind: str) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "mounted").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").touch()
    # A bind mount has the same device number as what is around it.
    mount = {
        "tmpfs": f"mount -t tmpfs none {tree}/mounted; touch {tree}/mounted/kept",
        "bind": f"mount --bind {outside} {tree}/mounted",
    }[kind]
    answer = _remove_with_mount(tree, mount)
    assert "is mounted" in answer["error"]
    assert f"{tree}/mounted" in answer["error"]
    assert answer["kept"] == "True"


def test_deleting_does_not_follow_links(tmp_path: Path) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    tree.mkdir()
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "link").symlink_to(outside)
    common.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "kept").exists()
    link = tmp_path / "link"
    link.symlink_to(outside)
    with pytest.raises(common.LabError, match="not a directory"):
        common.remove_tree(link)


def test_writing_replaces_a_link_instead_of_following_it(tmp_path: Path) -> None:
    victim, target = tmp_path / "victim", tmp_path / "resolv.conf"
    victim.write_text("untouched")
    target.symlink_to(victim)
    assert common.write_if_changed(target, "new", 0o600)
    assert (victim.read_text(), target.read_text(), target.is_symlink()) == (
        "untouched",
        "new",
        False,
    )
    assert target.stat().st_mode & 0o777 == 0o600
    assert not common.write_if_changed(target, "new", 0o600)
