"""packages: what dpkg says is missing."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.prime_spark.fleet.plugins.modules import packages as module

STATUS = """\
procps install ok installed
docker.io hold ok installed
nftables deinstall ok config-files
wireguard-tools install ok half-configured
dpkg-query: no packages found matching sshfs
"""


def test_only_what_is_installed_completely_is_not_missing() -> None:
    names = ["procps", "docker.io", "nftables", "wireguard-tools", "sshfs"]
    assert module.missing_of(names, STATUS) == ["nftables", "wireguard-tools", "sshfs"]


def test_a_simulation_names_the_packages_last() -> None:
    argv = module.install_command(["a", "b"], "--simulate")
    assert argv[:2] == ["apt-get", "install"] and argv[-2:] == ["a", "b"]
    assert "--simulate" in argv and "--no-install-recommends" in argv


def test_a_unit_is_masked_by_a_link_to_dev_null(tmp_path: Path) -> None:
    (tmp_path / "masked.service").symlink_to("/dev/null")
    (tmp_path / "own.service").write_text("")
    units = ["masked.service", "own.service", "missing.service"]
    assert module.unmasked(units, str(tmp_path)) == ["own.service", "missing.service"]
