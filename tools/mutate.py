"""Break the code one line at a time and see a test fail: `make mutate`.

Each entry of the lists says which line of which file is replaced by what, and which test notices:

    [[mutation]]
    file = "api/authorization.py"
    old = "a line, or a part of one, that occurs once"
    new = "what stands there instead"
    test = "integration/test_api_auth.py::test_roles"

Files and tests of the lists in files/python_services/tests/mutations are those of the services,
below src/prime_spark and tests there; in tests/mutations they are paths in the repository, and the
tests are those of `make check`.

The tests run in a private copy of the repository. First all of them on unbroken code, so that a
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
SERVICES = Path("files/python_services")
# pytest's exit status when tests ran and some failed; any other tells nothing about the mutation.
_TESTS_FAILED = 1


class ListError(Exception):
    """An entry cannot be applied; the message names it."""


@dataclass(frozen=True)
class Kind:
    """Where the lists of a kind are, what their paths are relative to, and where pytest runs."""

    lists: Path
    files: Path
    tests: Path
    folder: Path

    def read(self) -> list[Mutation]:
        """Return the entries of every list of this kind."""
        return [
            Mutation(self, **entry)
            for path in sorted((ROOT / self.lists).glob("*.toml"))
            for entry in tomllib.loads(path.read_text())["mutation"]
        ]


@dataclass(frozen=True)
class Mutation:
    """One entry of a list; `file` and `test` as it has them."""

    kind: Kind
    file: str
    old: str
    new: str
    test: str

    @property
    def path(self) -> Path:
        """The file, in the repository."""
        return self.kind.files / self.file

    @property
    def suite(self) -> Path:
        """The file of the test, in the repository."""
        return self.kind.tests / self.test.partition("::")[0]

    def broken(self, text: str) -> str:
        """Return what the file holds after the mutation. Raises ListError."""
        if text.count(self.old) != 1:
            raise ListError(f"{self.path}: occurs {text.count(self.old)} times: {self.old.strip()}")
        changed = text.replace(self.old, self.new)
        if self.path.suffix == ".py":
            try:
                compile(changed, self.file, "exec")
            except SyntaxError as error:
                raise ListError(f"{self.path}: {self.new.strip()}: {error}") from None
        return changed


KINDS = (
    Kind(
        SERVICES / "tests" / "mutations",
        SERVICES / "src" / "prime_spark",
        SERVICES / "tests",
        SERVICES,
    ),
    Kind(Path("tests/mutations"), Path(), Path(), Path()),
)


def read_lists() -> list[Mutation]:
    """Return the entries of every list."""
    return [mutation for kind in KINDS for mutation in kind.read()]


def run_tests(
    copy: Path, kind: Kind, tests: Sequence[str], seconds: float, workers: int = 0
) -> tuple[int, str]:
    """Run tests in a copy of the repository; return pytest's exit status and its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=line"]
    command += ["-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-n", str(workers), "--dist", "loadfile"] if workers else []
    command += [str((kind.tests / test).relative_to(kind.folder)) for test in tests]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{copy / SERVICES / 'src'}{os.pathsep}{copy}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=copy / kind.folder,
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


def copy_repository(copy: Path) -> None:
    """Copy what git tracks or does not ignore; the tools of .venv are shared."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    (copy / ".venv").symlink_to(ROOT / ".venv")


class Copies:
    """Copies of the repository, one for each job, and what became of each mutation."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        self._jobs = jobs
        for number in range(jobs):
            copy = folder / str(number)
            copy_repository(copy)
            self._free.put(copy)

    def baseline(self, kind: Kind, tests: Sequence[str]) -> tuple[int, str]:
        """Run all tests of a kind on the unbroken code."""
        copy = self._free.get()
        try:
            return run_tests(copy, kind, tests, 1800, self._jobs)
        finally:
            self._free.put(copy)

    def run_one(self, mutation: Mutation) -> bool:
        """Return whether the mutation's test noticed it; print what happened."""
        copy = self._free.get()
        started = time.monotonic()
        try:
            path = copy / mutation.path
            before = path.read_text()
            path.write_text(mutation.broken(before))
            try:
                status, output = run_tests(copy, mutation.kind, [mutation.test], 180)
            finally:
                path.write_text(before)
        except (ListError, OSError) as error:
            say(f"BROKEN    {error}")
            return False
        finally:
            self._free.put(copy)
        what = f"{time.monotonic() - started:5.1f} s  {mutation.path}: {mutation.new.strip()}"
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
    chosen = [one for one in read_lists() if arguments.only in f"{one.path} {one.test}"]
    if not chosen:
        parser.error(f"no entry contains {arguments.only!r}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prime-spark-mutations-") as folder:
        copies = Copies(Path(folder), arguments.jobs)
        for kind in () if arguments.no_baseline else KINDS:
            tests = sorted({mutation.test for mutation in chosen if mutation.kind is kind})
            if not tests:
                continue
            status, output = copies.baseline(kind, tests)
            if status != 0:
                say(f"{output[-5000:]}\nthe tests fail on unbroken code")
                return 1
            say(f"{len(tests)} tests pass on unbroken code, {time.monotonic() - started:.0f} s")
        with ThreadPoolExecutor(arguments.jobs) as jobs:
            killed = sum(jobs.map(copies.run_one, chosen))
    say(f"killed {killed}/{len(chosen)} in {time.monotonic() - started:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
