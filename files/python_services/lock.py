"""Write locks/<arch>-py<XY>.txt: every dependency of every extra, pinned with hashes.

Run with `python lock.py` after a change of pyproject.toml, `python lock.py --upgrade` for newer
versions. Needs `uv` (on PATH or in the running environment). The locks cover what the hosts
install offline, pip included: a release brings its own installer.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13")
# The oldest C library of the fleet is Debian 12's 2.36; 2.28 is the newest baseline that wheels
# of our dependencies are built for.
PLATFORM = "manylinux_2_28"


def lock_path(architecture: str, python: str) -> Path:
    """Return the lock file of one target."""
    return HERE / "locks" / f"{architecture}-py{python.replace('.', '')}.txt"


def main() -> int:
    """Resolve all targets; return 0 when every lock was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest allowed versions")
    arguments = parser.parse_args()
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    for architecture in ARCHITECTURES:
        for python in PYTHONS:
            target = lock_path(architecture, python)
            target.parent.mkdir(exist_ok=True)
            command = [uv, "pip", "compile", "pyproject.toml", "-", "--all-extras"]
            command += ["--python-platform", f"{architecture}-{PLATFORM}"]
            command += ["--python-version", python, "--only-binary", ":all:", "--generate-hashes"]
            command += ["--no-annotate", "--no-header", "--no-emit-index-url", "--quiet"]
            command += ["--output-file", str(target)]
            command += ["--upgrade"] if arguments.upgrade else []
            subprocess.run(command, check=True, cwd=HERE, input="pip\n", text=True)  # noqa: S603
            sys.stdout.write(f"{target.relative_to(HERE)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
