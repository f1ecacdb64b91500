"""Time make targets: `python -m tools.bench.timed check` ends with `seconds=…`.

`demo` is timed three times: with nothing cached, with images cached and bare hosts, with disks
kept. It deletes the lab with its disks and caches, and the wheels and releases of the controller.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.common import STATE
from lab.topology import GIB
from tools.bench.results import REPOSITORY, environment


def make(*targets: str) -> float:
    """Seconds that a make takes; ends this program when it fails."""
    started = time.monotonic()
    argv = ["make", "--no-print-directory", *targets]
    status = subprocess.run(argv, cwd=REPOSITORY, env=environment(), check=False).returncode
    if status != 0:
        sys.exit(f"`{' '.join(argv)}` ended with status {status}")
    return time.monotonic() - started


def lab(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "lab", *words], cwd=REPOSITORY, check=True)


def used() -> tuple[float, float]:
    """GiB of memory that the lab's hosts use, and of disk below its directory."""
    argv = [sys.executable, "-m", "lab", "status", "--json"]
    said = subprocess.run(argv, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout
    memory = sum(host["memory_used"] or 0 for host in json.loads(said)["hosts"].values())
    argv = ["du", "--summarize", "--one-file-system", "--block-size=1", str(STATE)]
    disk = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]
    return memory / GIB, int(disk) / GIB


def demo() -> str:
    """The three ways to start, as pairs."""
    lab("destroy", "--cache")
    cache = Path(os.environ.get("PRIME_SPARK_CACHE", "~/.cache/prime-spark")).expanduser()
    shutil.rmtree(cache, ignore_errors=True)
    nothing = make("demo")
    lab("destroy")
    images = make("demo")
    memory, disk = used()
    lab("down")
    disks = make("demo")
    return (
        f"nothing_cached_seconds={nothing:.0f} images_cached_seconds={images:.0f}"
        f" disks_kept_seconds={disks:.0f} memory_gib={memory:.1f} disk_gib={disk:.1f}"
    )


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    target = sys.argv[1]
    line = demo() if target == "demo" else f"seconds={make(target):.0f}"
    print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
