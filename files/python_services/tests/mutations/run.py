"""Break the code one line at a time and see a test fail: `python tests/mutations/run.py`.

Each entry of the lists (*.toml) beside this file says which line of which file of src/prime_spark
is replaced by what, and which test has to notice:

    [[mutation]]
    file = "api/access.py"
    old = "a line, or a part of one, that occurs once"
    new = "what stands there instead"
    test = "services/test_api_auth.py::test_roles"

The tests run against a private copy of the sources. First all of them on unbroken code, so that a
test which fails anyway does not count as one that noticed. Exits with 1 when a mutation survives
or cannot be applied. `--only TEXT` takes the entries whose file or test contains TEXT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

LISTS = Path(__file__).resolve().parent
SERVICES = LISTS.parents[1]
REPOSITORY = SERVICES.parents[1]
SOURCES = SERVICES / "src"
# pytest's exit status when tests ran and some failed; any other tells nothing about the mutation.
_TESTS_FAILED = 1


class ListError(Exception):
    """An entry cannot be applied; the message names it."""


@dataclass(frozen=True)
class Mutation:
    """One entry of a list."""

    file: str
    old: str
    new: str
    test: str

    def apply(self, sources: Path) -> str:
        """Change the file below `sources`; return what was there. Raises ListError."""
        path = sources / "prime_spark" / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise ListError(f"{self.file}: occurs {text.count(self.old)} times: {self.old.strip()}")
        changed = text.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise ListError(f"{self.file}: {self.new.strip()}: {error}") from None
        path.write_text(changed)
        return text


def read_lists() -> list[Mutation]:
    """Return the entries of every list."""
    return [
        Mutation(**entry)
        for path in sorted(LISTS.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutation"]
    ]


def run_tests(sources: Path, tests: list[str], seconds: float) -> tuple[int, str]:
    """Run tests against a copy of the sources; return pytest's exit status and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=line"]
    command += ["-p", "no:cacheprovider", "-W", "ignore", *(f"tests/{test}" for test in tests)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{sources}{os.pathsep}{REPOSITORY}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=SERVICES,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return _TESTS_FAILED, f"did not end within {seconds:g} s"
    return process.returncode, output


class Copies:
    """Copies of the sources, one for each job, and what became of each mutation."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copy = folder / str(number)
            shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
            self._free.put(copy)

    def baseline(self, tests: list[str]) -> tuple[int, str]:
        """Run all tests on the unbroken code."""
        copy = self._free.get()
        try:
            return run_tests(copy, tests, 1800)
        finally:
            self._free.put(copy)

    def judge(self, mutation: Mutation) -> bool:
        """Return whether the mutation's test noticed it; print what happened."""
        copy = self._free.get()
        started = time.monotonic()
        try:
            before = mutation.apply(copy)
            try:
                status, output = run_tests(copy, [mutation.test], 180)
            finally:
                (copy / "prime_spark" / mutation.file).write_text(before)
        except ListError as error:
            say(f"BROKEN    {error}")
            return False
        finally:
            self._free.put(copy)
        what = f"{time.monotonic() - started:5.1f} s  {mutation.file}: {mutation.new.strip()}"
        if status == _TESTS_FAILED:
            say(f"killed    {what}")
            return True
        say(f"SURVIVED  {what}\n          {mutation.test} (exit status {status})")
        if status != 0:
            say(output[-2000:])
        return False


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="entries whose file or test contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-baseline", action="store_true", help="trust that all tests pass")
    arguments = parser.parse_args()
    chosen = [one for one in read_lists() if arguments.only in f"{one.file} {one.test}"]
    if not chosen:
        parser.error(f"no entry contains {arguments.only!r}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prime-spark-mutations-") as folder:
        copies = Copies(Path(folder), arguments.jobs)
        tests = sorted({mutation.test for mutation in chosen})
        if not arguments.no_baseline:
            status, output = copies.baseline(tests)
            if status != 0:
                say(f"{output[-5000:]}\nthe tests fail on unbroken code")
                return 1
            say(f"{len(tests)} tests pass on unbroken code, {time.monotonic() - started:.0f} s")
        with ThreadPoolExecutor(arguments.jobs) as jobs:
            killed = sum(jobs.map(copies.judge, chosen))
    say(f"killed {killed}/{len(chosen)} in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
