"""Results of benchmarks: read from their output, kept in one committed file."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from tools.bench.sections import SECTIONS, Section

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "docs/benchmarks.json"
_PAIRS = re.compile(r"[a-z][a-z0-9_]*=\S+(?: [a-z][a-z0-9_]*=\S+)*")

Value = int | float | str


@dataclasses.dataclass(frozen=True)
class Result:
    """What one section printed last, when, where, and of which tree."""

    values: dict[str, Value]
    date: str
    machine: str
    tree: str


def pairs(output: str) -> dict[str, Value]:
    """The ``key=value`` pairs of the last lines of an output that consist of nothing else."""
    found: dict[str, Value] = {}
    for line in reversed(output.rstrip().splitlines()):
        if not _PAIRS.fullmatch(line.strip()):
            break
        for pair in line.split():
            key, _, text = pair.partition("=")
            found.setdefault(key, _value(text))
    return found


def _value(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def environment() -> dict[str, str]:
    """What a make of its own is given: nothing of what this one was asked for."""
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS", "HOSTS")
    return {key: value for key, value in os.environ.items() if key not in of_make}


def machine() -> str:
    """Processor, cores, memory and kernel of this machine."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    model = found[1] if found else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = platform.release()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {kernel}"


def tree(sources: tuple[str, ...]) -> str:
    """A hash of what git knows below these paths, as it is on the disk; documents left out."""
    argv = ["git", "ls-files", "-z", "--cached", "--", *sources]
    names = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256()
    for name in sorted(filter(None, names.split("\0"))):
        path = REPOSITORY / name
        if path.suffix != ".md" and path.is_file():
            digest.update(f"{name}\0{path.stat().st_mode & 0o100}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def load() -> dict[str, Result]:
    """The results in the file, by section; sections that no longer exist are left out."""
    if not FILE.exists():
        return {}
    stored = json.loads(FILE.read_text())
    return {name: Result(**entry) for name, entry in stored.items() if name in SECTIONS}


def save(results: dict[str, Result]) -> None:
    """Write the file again."""
    entries = {name: dataclasses.asdict(result) for name, result in sorted(results.items())}
    FILE.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def result_of(section: Section, output: str) -> Result:
    """What a section's output says; raises ValueError when it does not end with pairs."""
    values = pairs(output)
    if not values:
        raise ValueError(f"`{section.command}` did not end with key=value pairs")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Result(values, today, machine(), tree(section.sources))
