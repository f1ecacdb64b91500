"""Makes modules, module_utils, filters and the lab importable as Ansible sees them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Modules import their helpers as ansible.module_utils.<name>, and helpers each other.
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
for kind in ("modules", "filter", "action", "callback"):
    for path in sorted((ROOT / "plugins" / kind).glob("*.py")):
        load(f"prime_spark_{kind}.{path.stem}", path)
