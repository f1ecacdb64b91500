"""The wheels of every target, as a host gets them: locked, complete, made for it, and unchanged.

Downloads what `python_release` downloads, into the same cache; needs the package index the first
time.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from email.parser import BytesParser
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from ansible_collections.prime_spark.fleet.plugins.action import python_release as action
from ansible_collections.prime_spark.fleet.plugins.modules import python_release as module
from packaging import tags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "files" / "python_services"
CACHE = Path.home() / ".cache" / "prime-spark" / "releases"
TARGETS = sorted(path.stem for path in (SOURCE / "locks").glob("*.txt"))
# Debian 12's C library is 2.36, Ubuntu 24.04's and Debian 13's are newer; wheels are taken up to
# the baseline that the locks are made for.
GLIBC = range(5, 29)


class Wheel(NamedTuple):
    """A wheel's version and what it requires."""

    version: str
    requires: list[Requirement]
    extras: set[str]


def lock_of(target: str) -> Path:
    return SOURCE / "locks" / f"{target}.txt"


@cache
def fetched() -> dict[str, Path]:
    """The wheelhouse of each target, downloaded at once where the cache lacks it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda t: action.fetch_wheelhouse(str(CACHE), str(lock_of(t)), t), TARGETS)
        return dict(zip(TARGETS, map(Path, found), strict=True))


def read_wheel(path: Path) -> tuple[str, Wheel]:
    with zipfile.ZipFile(path) as archive:
        (name,) = [
            n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA")
        ]
        data = BytesParser().parsebytes(archive.read(name))
    requires = [Requirement(text) for text in data.get_all("Requires-Dist") or []]
    wheel = Wheel(str(data["Version"]), requires, set(data.get_all("Provides-Extra") or []))
    return canonicalize_name(str(data["Name"])), wheel


@cache
def our_wheel(directory: Path) -> Path:
    action.build_wheel(str(SOURCE), str(directory))
    (path,) = directory.glob("prime_spark-*.whl")
    return path


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the distribution itself."""
    return our_wheel(tmp_path_factory.getbasetemp() / "ours")


def environment(target: str) -> dict[str, str]:
    """The environment markers on a host of the target."""
    machine, _, python = target.partition("-py")
    version = f"{python[0]}.{python[1:]}"
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{version}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }


def supported(target: str) -> set[tags.Tag]:
    """The tags of wheels that a host of the target takes."""
    machine, _, python = target.partition("-py")
    version = (int(python[0]), int(python[1:]))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    return {
        *tags.cpython_tags(version, abis=[f"cp{python}"], platforms=platforms),
        *tags.compatible_tags(version, interpreter=f"cp{python}", platforms=platforms),
    }


def lacking(target: str, wheels: dict[str, Wheel]) -> list[str]:
    """Requirements of any extra of ours, or of what it brings in, that no wheel here satisfies."""
    markers, missing = environment(target), []
    waiting = [("prime-spark", extra) for extra in sorted(wheels["prime-spark"].extras)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for requirement in wheels[name].requires:
            if requirement.marker and not requirement.marker.evaluate({**markers, "extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            found = wheels.get(needed)
            if found is None or not requirement.specifier.contains(found.version, True):
                missing.append(f"{name}[{extra}] requires {requirement}")
                continue
            for item in {(needed, wanted) for wanted in {"", *requirement.extras}} - seen:
                seen.add(item)
                waiting.append(item)
    return missing


@pytest.mark.parametrize("target", TARGETS)
def test_every_wheel_is_locked_and_runs_on_the_target(target: str) -> None:
    action.check_wheelhouse(str(fetched()[target]), str(lock_of(target)))
    fitting = supported(target)
    files = list(fetched()[target].iterdir())
    unfit = [path.name for path in files if not parse_wheel_filename(path.name)[3] & fitting]
    assert unfit == []
    locked = [line for line in lock_of(target).read_text().splitlines() if "==" in line]
    assert len(files) == len(locked)


@pytest.mark.parametrize("target", TARGETS)
def test_the_wheels_are_all_that_our_extras_need(target: str, ours: Path) -> None:
    wheels = dict(read_wheel(path) for path in (ours, *fetched()[target].iterdir()))
    assert wheels["prime-spark"].extras >= {"telemetry", "ingest", "api", "agent"}
    assert lacking(target, wheels) == []
    # And it would be noticed: without any of them something is missing.
    for name in ("msgspec", "async-timeout" if target.endswith("py311") else "aiokafka"):
        rest = {key: wheel for key, wheel in wheels.items() if key != name}
        if name in wheels:
            assert lacking(target, rest) != []


def test_there_is_a_lock_for_every_architecture_and_python() -> None:
    wanted = {f"{m}-py{p}" for m in ("x86_64", "aarch64") for p in ("311", "312", "313")}
    assert set(TARGETS) == wanted


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # it may be a hard link into the cache
    path.write_bytes(data)


@pytest.fixture
def tampered(tmp_path: Path) -> tuple[str, Path]:
    """A target, and its wheelhouse with one byte of one wheel changed."""
    target = TARGETS[-1]
    copy = tmp_path / "wheelhouse"
    shutil.copytree(fetched()[target], copy)
    flip_a_byte(sorted(copy.iterdir())[0])
    return target, copy


def test_a_changed_wheel_in_the_cache_is_refused(tampered: tuple[str, Path]) -> None:
    target, wheelhouse = tampered
    with pytest.raises(action.AnsibleActionFail, match="its sha256"):
        action.check_wheelhouse(str(wheelhouse), str(lock_of(target)))


def test_a_changed_wheel_of_an_index_is_refused(
    tampered: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, wheelhouse = tampered
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheelhouse))
    with pytest.raises(action.AnsibleActionFail, match="DO NOT MATCH THE HASHES"):
        action.fetch_wheelhouse(str(tmp_path / "cache" / "releases"), str(lock_of(target)), target)
    assert list((tmp_path / "cache" / "wheelhouses").iterdir()) == []


def test_a_changed_archive_is_refused_on_the_host(tmp_path: Path, ours: Path) -> None:
    archive = tmp_path / "release.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(ours, f"wheel/{ours.name}")
    digest = action.file_digest(str(archive))
    flip_a_byte(archive)
    with pytest.raises(module.ReleaseError, match="arrived damaged"):
        module.unpack(str(archive), digest, str(tmp_path / "artifact"))
    assert not (tmp_path / "artifact").exists()


def test_installing_needs_nothing_but_the_archive(tmp_path: Path, ours: Path) -> None:
    """In a network namespace without any way out, with what this controller would send."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    target = f"{environment_machine()}-py{version}"
    artifact = tmp_path / "artifact"
    (artifact / "wheel").mkdir(parents=True)
    shutil.copy(ours, artifact / "wheel")
    (artifact / "wheelhouse").symlink_to(fetched()[target])
    code = (
        "import sys, socket; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path;"
        "assert Path('/proc/net/route').read_text().splitlines()[1:] == [], 'there is a route';"
        "from ansible_collections.prime_spark.fleet.plugins.modules.python_release import install;"
        "install(sys.executable, sys.argv[2], 'ingest', sys.argv[3])"
    )
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", code]
    subprocess.run(
        [*command, str(ROOT / "collections"), str(artifact), str(tmp_path / "release")],
        check=True,
    )
    program = tmp_path / "release" / "bin" / "prime-spark-ingest"
    assert subprocess.run([program, "--help"], capture_output=True, check=True).stdout


def environment_machine() -> str:
    import platform

    return platform.machine()
