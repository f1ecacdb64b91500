"""wireguard_key: a key is made once, on its host, and only its public half is shown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import public_key_of
from ansible_collections.prime_spark.fleet.plugins.modules import wireguard_key as module


def run(monkeypatch: pytest.MonkeyPatch, path: Path, state: str, **more: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    params = {"state": state, "path": str(path), "interface": "wg0"}
    fake = SimpleNamespace(params=params, check_mode=False, exit_json=shown.update)
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: SimpleNamespace(**vars(fake) | more))
    monkeypatch.setattr(module, "kernel_has_wireguard", lambda _: True)
    monkeypatch.setattr(module, "KNOWN_PEERS", str(path.with_name("peers.json")))
    # Who tests is not always root.
    monkeypatch.setattr(module.os, "chown", lambda *_: None)
    module.main()
    return shown


def test_a_key_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wireguard" / "private.key"
    assert run(monkeypatch, path, "read")["public_key"] == ""
    assert run(monkeypatch, path, "present", check_mode=True)["changed"] is True
    assert not path.exists(), "made by a look or by check mode"
    made = run(monkeypatch, path, "present")
    private = path.read_text().strip()
    assert made["changed"] is True
    assert made["public_key"] == public_key_of(private)
    assert private not in str(made)
    assert path.stat().st_mode & 0o777 == 0o600
    assert run(monkeypatch, path, "read") == {**made, "changed": False}


def test_a_key_that_others_can_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "private.key"
    run(monkeypatch, path, "present")
    path.chmod(0o644)
    assert run(monkeypatch, path, "present")["changed"] is True
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_key_of_a_configuration_made_by_hand_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = module.generate_private_key()
    (tmp_path / "wg0.conf").write_text(f"[Interface]\nPrivateKey = {key}\n")
    run(monkeypatch, tmp_path / "private.key", "present")
    assert (tmp_path / "private.key").read_text().strip() == key
