"""The role's rules and routes as a run renders them: production's values, a sample fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "monitoring"
CONFIG = ROLE / "templates" / "stack" / "config"
RULES = CONFIG / "prometheus" / "rules"

# What a run takes from the inventory.
FLEET: dict[str, Any] = {
    "__monitoring_targets": [
        {"job": "node", "host": "hub", "address": "10.0.0.2:9100"},
        {"job": "prime_spark", "host": "hub", "address": "10.0.0.2:8000", "service": "api"},
    ],
    "monitoring_vpn_peers": ["hub", "spoke"],
    "monitoring_nas_hosts": ["hub"],
    "__monitoring_devices": {"hub": "hub", "pump": "spoke"},
    "monitoring_backups": ["timescale"],
    "monitoring_deadman_url": "http://10.0.0.14:9105/alertmanager",
}


def variables(**changes: Any) -> dict[str, Any]:
    """The role's defaults and internal variables, over them the sample fleet and `changes`."""
    found: dict[str, Any] = {}
    for name in ("defaults", "vars"):
        found |= yaml.safe_load((ROLE / name / "main.yml").read_text())
    return found | FLEET | changes


def render(path: Path, **changes: Any) -> str:
    """The text that config_tree makes of a template of the role."""
    text = path.read_text()
    if path.suffix != ".j2":
        return text
    templar = Templar(loader=DataLoader(), variables=variables(**changes))
    return str(
        templar.template(
            trust_as_template(text),
            escape_backslashes=False,
            overrides={"trim_blocks": True, "lstrip_blocks": True},
        )
    )


def rules(**changes: Any) -> dict[str, str]:
    """Rendered rule files by name."""
    return {
        path.name.removesuffix(".j2"): render(path, **changes) for path in sorted(RULES.iterdir())
    }


def alerts(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The alerts of rendered rule files by name."""
    return {
        rule["alert"]: rule
        for text in files.values()
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"] or []
        if "alert" in rule
    }
