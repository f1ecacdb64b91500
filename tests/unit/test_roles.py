"""The contract of a role: every input is specified, and defaults and specification agree."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def options(role: str) -> dict[str, dict[str, Any]]:
    found = load(ROOT / "roles" / role / "meta" / "argument_specs.yml")
    return dict(found["argument_specs"]["main"].get("options") or {})


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_have_the_same_keys(role: str) -> None:
    defaults = set(load(ROOT / "roles" / role / "defaults" / "main.yml") or {})
    specified = options(role)
    required = {name for name, option in specified.items() if option.get("required")}
    assert defaults == set(specified) - required


@pytest.mark.parametrize("role", ROLES)
def test_every_option_has_type_and_description(role: str) -> None:
    for name, option in options(role).items():
        assert option.get("type"), f"{name} has no type"
        assert option.get("description"), f"{name} has no description"


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    internal = set(load(ROOT / "roles" / role / "vars" / "main.yml") or {})
    assert all(name.startswith(f"{role}_") for name in options(role))
    assert all(name.startswith(f"__{role}_") for name in internal)


@pytest.mark.parametrize("role", ROLES)
def test_a_default_of_a_secret_is_in_the_vault(role: str) -> None:
    for name, value in (load(ROOT / "roles" / role / "defaults" / "main.yml") or {}).items():
        if re.search(r"(password|seed|token|secret)$", name):
            assert "vault_" in str(value), f"{name} has a default that is not the vault's"


def test_every_option_is_read() -> None:
    read: set[str] = set()
    for folder in ("roles", "playbooks", "plugins"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".yml", ".j2", ".py"} and path.name != "argument_specs.yml":
                words = Counter(re.findall(r"\w+", path.read_text()))
                # Where a variable gets its default, its name stands once in any case.
                at_least = 2 if path.parent.name == "defaults" else 1
                read |= {word for word, count in words.items() if count >= at_least}
    assert {name for role in ROLES for name in options(role)} - read == set()


def test_every_role_can_be_removed_by_command() -> None:
    # python_service is the others' tool, never run by itself.
    for role in set(ROLES) - {"python_service"}:
        assert {f"{role}_state"} <= set(options(role)), f"{role} cannot be absent"


@pytest.mark.parametrize("role", ROLES)
def test_a_name_of_a_role_is_a_variable_s_prefix(role: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", role)
