"""Imports of the Python services run down the layers of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "files" / "python_services" / "src" / "prime_spark"


def documented_layers() -> list[set[str]]:
    """Return the packages of each layer, from the uppermost to the lowest."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("| layer | packages |\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    return [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in table.splitlines()]


def imports(path: Path) -> set[str]:
    """Return the packages of prime_spark from which a module imports."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    found = {module.split(".")[1] for module in modules if module.startswith("prime_spark.")}
    return found - {"__version__"}


def package_of(path: Path) -> str:
    return path.relative_to(SOURCES).parts[0].removesuffix(".py")


def test_every_package_is_in_one_layer() -> None:
    packages = {package_of(path) for path in SOURCES.rglob("*.py")} - {"__init__"}
    documented = [package for layer in documented_layers() for package in layer]
    assert sorted(documented) == sorted(packages)


def test_imports_run_down_only() -> None:
    layers = documented_layers()
    level = {package: number for number, layer in enumerate(layers) for package in layer}
    wrong = []
    for path in SOURCES.rglob("*.py"):
        package = package_of(path)
        for other in imports(path) - {package}:
            if package == "__init__" or level[other] <= level[package]:
                wrong.append(f"{path.relative_to(SOURCES)} imports from prime_spark.{other}")
    assert not wrong, "\n".join(wrong)
