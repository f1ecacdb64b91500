"""Build the lab's container images, put them into its registry, unpack them for service tests.

Every image is one directory `lab/images/<name>/` with a Containerfile. buildah builds it on a
minimal Debian made with mmdebstrap; nothing else is downloaded than Debian packages and what the
Containerfile itself fetches. An image is rebuilt when a file of its directory, the base or the
machine's extra certificate authorities changed. A reference ends in the digest, so hosts pull
exactly what was built. Two images are built at a time, and all with the same package lists.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NotRequired, Self, TypedDict

from lab import bases, mirror, registry
from lab.common import CACHE, LOGS, LabError, Progress
from lab.topology import REGISTRY_ADDRESS, REGISTRY_PORT
from plugins.module_utils.atomic import replace_file
from plugins.module_utils.lock import exclusive

# In the order of building: what takes longest comes first.
IMAGES = (
    "airflow",
    "kafka",
    "timescale",
    "llama",
    "prometheus",
    "alertmanager",
    "redis",
    "postgres-exporter",
    "redis-exporter",
    "restic",
)
SUITE = "trixie"
REGISTRY = f"{REGISTRY_ADDRESS}:{REGISTRY_PORT}"
NAMESPACE = "prime-spark"

_RECIPES = Path(__file__).resolve().parent / "images"
_CA_DIR = Path("/usr/local/share/ca-certificates")
# Programs of this environment that a build may use: uv.
_TOOLS = Path(sys.executable).parent
_MAVEN_SETTINGS = Path.home() / ".m2" / "settings.xml"
# Documentation and translations are of no use in a container; licences stay.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "force-unsafe-io",
)
_BUILD = ("build", "--isolation=chroot", "--format=docker", "--layers=false")
_BASE_FORMAT = 2  # raise to rebuild every base after a change of the code below
_BUILDS_AT_ONCE = 2
_APT_SETTINGS = {"Acquire::Languages": "none", "APT::Install-Recommends": "false"}
_LOG_TAIL = 40
# buildah's own progress: "STEP 3/10: RUN …", after "[1/2] " when there are stages.
_STEP = re.compile(r"(?:\[\d+/\d+\] )?STEP \d+/\d+: ((?:FROM|ADD|COPY|RUN) .{0,60})")


class ImageError(LabError):
    """An image could not be built; the message ends with the end of the build's log."""


class Record(TypedDict):
    """What is known of a built image (cache/images.json)."""

    reference: str
    digest: str
    recipe: str
    unpacked: NotRequired[bool]  # False: its root is missing or an older image's


def root_path(name: str) -> Path:
    """The unpacked root of an image, for service tests."""
    return CACHE / "roots" / name


def ensure_images(
    progress: Progress, *, force: Sequence[str] = (), roots: bool = True
) -> dict[str, str]:
    """Build what is missing or out of date; return {name: reference with digest}.

    `force` names images to rebuild regardless; "debian" rebuilds the base and so all of them.
    Without `roots` images are left packed: only service tests need them unpacked.
    Safe to call at any time: a second caller waits, an interrupted build is taken up again.
    """
    unknown = set(force) - {*IMAGES, "debian"}
    if unknown:
        raise ImageError(f"no such image: {', '.join(sorted(unknown))}; there are {_names()}")
    base = _base_recipe()
    recipes = {name: _recipe(name, base) for name in IMAGES}
    records = _read_records()
    if not force and not any(_missing(name, recipes[name], records, roots) for name in IMAGES):
        return {name: records[name]["reference"] for name in IMAGES}

    if os.geteuid() != 0:
        raise ImageError("building images needs root")
    with _locked(progress):
        records = _read_records()  # the caller before us may have done it all
        again = set(IMAGES) if "debian" in force else set(force)
        stale = [
            name
            for name in IMAGES
            if name in again or not _is_current(name, recipes[name], records)
        ]
        packed = [
            name
            for name in IMAGES
            if name not in stale and _missing(name, recipes[name], records, roots)
        ]
        replaced = any(name in records for name in stale)
        with _Builder(progress) as builder:
            if stale:
                builder.prepare(base, rebuild="debian" in force)

            def make(name: str) -> None:
                if name in stale:
                    record = builder.build(name, recipes[name], unpack=roots)
                else:
                    record = builder.unpack(name, records[name])
                with builder.lock:
                    records[name] = record
                    _write_records(records)

            builder.work(make, [*stale, *packed])
        if replaced:
            registry.collect_garbage(CACHE / "registry")
    return {name: records[name]["reference"] for name in IMAGES}


class _Builder:
    """buildah with its own storage under cache/build, one log file per image.

    As a context it serves the registry for pushing, and clears the storage at its end: layers
    kept for a later build would also keep packages that Debian has fixed since.
    """

    def __init__(self, progress: Progress) -> None:
        self.lock = threading.Lock()
        self._say = progress
        self._processes: set[subprocess.Popen[str]] = set()
        self._over = False
        self._resources = ExitStack()
        self._dir = CACHE / "build"
        self._storage = self._dir / "storage"
        self._tar = self._dir / f"debian-{SUITE}.tar"
        self._tar_recipe = self._dir / f"debian-{SUITE}.recipe"
        self._lists = self._dir / "lists"
        self._logs = LOGS
        self._registry = ""

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        self._dir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._storage, ignore_errors=True)
        self._registry = self._resources.enter_context(registry.writable(CACHE / "registry"))
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()
        for path in (self._storage, self._lists):
            shutil.rmtree(path, ignore_errors=True)

    def work(self, make: Callable[[str], None], names: Sequence[str]) -> None:
        """Call `make` for every name, a few at a time; the first failure ends all of it."""
        with ThreadPoolExecutor(_BUILDS_AT_ONCE) as pool:
            results = [pool.submit(make, name) for name in names]
            try:
                for result in as_completed(results):
                    result.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                with self.lock:
                    self._over = True
                    for process in self._processes:
                        process.kill()
                raise

    def prepare(self, base_recipe: str, *, rebuild: bool) -> None:
        """Make and import the base, read the package lists."""
        # The base names the package sources, which may change without changing any image.
        apt = {**_APT_SETTINGS, **bases.apt_settings()}
        sources = mirror.debian_sources(SUITE)
        wanted = json.dumps([base_recipe, apt, sources])
        have = self._tar_recipe.read_text() if self._tar_recipe.exists() else ""
        if rebuild or have != wanted or not self._tar.exists():
            self._tar_recipe.unlink(missing_ok=True)
            self._make_base(apt, sources)
            self._tar_recipe.write_text(wanted)
        self._import_base()
        self._read_lists()

    def build(self, name: str, recipe: str, *, unpack: bool) -> Record:
        """Build and push one image; unpack it where that is asked for."""
        started = time.monotonic()
        context = _RECIPES / name
        version = _version(name)
        local = f"localhost/{NAMESPACE}/{name}:{version}"
        log = self._logs / f"image-{name}.log"
        with log.open("w") as stream:
            stream.write(f"{name} {version}\n")
        # Over the shared lists every step has an upper layer of its own, which goes with the step.
        options = [f"--volume={self._lists}:/var/lib/apt/lists:O", "--tag", local]
        if _MAVEN_SETTINGS.exists():
            options += [f"--secret=id=maven,src={_MAVEN_SETTINGS}"]
        options += [f"--build-context=tools={_TOOLS}"]
        options += ["--file", f"{context}/Containerfile", str(context)]
        self._buildah(name, log, [*_BUILD, *options])

        self._say(f"images: {name}: pushing ({_seconds(started)})")
        digest_file = self._dir / f"{name}.digest"
        push = ["push", "--quiet", "--tls-verify=false", "--compression-level=1"]
        push += [f"--digestfile={digest_file}", local]
        self._buildah(name, log, [*push, f"docker://{self._registry}/{NAMESPACE}/{name}:{version}"])
        digest = digest_file.read_text().strip()

        if unpack:
            self._say(f"images: {name}: unpacking ({_seconds(started)})")
            self._unpack(name, local)
        reference = f"{REGISTRY}/{NAMESPACE}/{name}:{version}@{digest}"
        self._say(f"images: {name}: ready, {reference} ({_seconds(started)})")
        return Record(reference=reference, digest=digest, recipe=recipe, unpacked=unpack)

    def unpack(self, name: str, record: Record) -> Record:
        """Unpack an image that was built before, out of the registry."""
        self._say(f"images: {name}: unpacking")
        source = f"docker://{self._registry}/{NAMESPACE}/{name}@{record['digest']}"
        self._unpack(name, source)
        return Record(**{**record, "unpacked": True})

    def _make_base(self, apt: dict[str, str], sources: list[str]) -> None:
        started = time.monotonic()
        self._say(f"images: debian {SUITE}: installing the base")
        scratch = self._dir / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        partial = self._tar.with_suffix(".partial.tar")
        partial.unlink(missing_ok=True)
        certificates = " ".join(f"'{path}'" for path in _certificates())
        copy = f'cp {certificates} "$1{_CA_DIR}/" && ' if certificates else ""
        argv = ["mmdebstrap", "--mode=root", "--variant=apt", "--include=ca-certificates"]
        argv += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
        argv += [f'--aptopt={key} "{value}"' for key, value in apt.items()]
        argv += [f'--customize-hook={copy}chroot "$1" update-ca-certificates']
        argv += ['--customize-hook=rm -rf "$1"/var/log/* "$1"/var/cache/ldconfig/*']
        argv += [SUITE, str(partial), *sources]
        self._run("debian", self._logs / "image-debian.log", argv, {"TMPDIR": str(scratch)})
        shutil.rmtree(scratch, ignore_errors=True)
        partial.rename(self._tar)
        self._say(f"images: debian {SUITE}: done ({_seconds(started)})")

    def _read_lists(self) -> None:
        """`apt-get update` in the base, once for all builds: each then asks only what is new."""
        shutil.rmtree(self._lists, ignore_errors=True)
        self._lists.mkdir()
        script = (
            'container=$(buildah $3 from "$1") && '
            'buildah $3 run --isolation=chroot --volume "$2:/var/lib/apt/lists" "$container" '
            'apt-get update && buildah $3 rm "$container"'
        )
        self._sh("debian", script, f"localhost/{NAMESPACE}/debian:{SUITE}", self._lists)

    def _import_base(self) -> None:
        log = self._logs / "image-debian.log"
        tag = f"localhost/{NAMESPACE}/debian:{SUITE}"
        context = self._dir / "debian"
        shutil.rmtree(context, ignore_errors=True)
        context.mkdir()
        os.link(self._tar, context / "root.tar")
        self._buildah(
            "debian",
            log,
            [*_BUILD, "--tag", tag, "--file", f"{_RECIPES}/debian/Containerfile", str(context)],
        )
        shutil.rmtree(context)

    def _unpack(self, name: str, local: str) -> None:
        roots = CACHE / "roots"
        roots.mkdir(parents=True, exist_ok=True)
        partial = roots / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        script = (
            'container=$(buildah $3 from --tls-verify=false "$1") && '
            'root=$(buildah $3 mount "$container") && '
            'cp -a --reflink=auto "$root/." "$2" && buildah $3 rm "$container"'
        )
        partial.mkdir()
        self._sh(name, script, local, partial)
        final = root_path(name)
        old = roots / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def _options(self) -> list[str]:
        return ["--root", str(self._storage), "--runroot", str(self._dir / "run")]

    def _sh(self, name: str, script: str, image: str, directory: Path) -> None:
        """Run a script with an image as $1, a directory as $2 and buildah's options as $3."""
        argv = ["sh", "-euc", script, "sh", image, str(directory), " ".join(self._options())]
        self._run(name, self._logs / f"image-{name}.log", argv)

    def _buildah(self, name: str, log: Path, arguments: list[str]) -> None:
        self._run(name, log, ["buildah", *self._options(), *arguments])

    def _run(
        self, name: str, log: Path, argv: list[str], environment: dict[str, str] | None = None
    ) -> None:
        """Run a build step in its own mount and PID namespace.

        Its mounts then vanish with it and none of its children survives it or us.
        """
        shell = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
        shell += ["--kill-child=KILL", "--mount-proc", "--", *argv]
        started = time.monotonic()
        with (
            log.open("a") as stream,
            subprocess.Popen(
                shell,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **(environment or {})},
            ) as process,
        ):
            with self.lock:
                self._processes.add(process)
                if self._over:
                    process.kill()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    stream.write(line)
                    stream.flush()
                    if match := _STEP.match(line):
                        self._say(f"images: {name}: {match.group(1)} ({_seconds(started)})")
            except BaseException:
                process.kill()
                raise
            finally:
                with self.lock:
                    self._processes.discard(process)
        if process.returncode != 0:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL:])
            raise ImageError(
                f"image {name}: {argv[0]} failed with {process.returncode}, see {log}\n{tail}"
            )


def _names() -> str:
    return ", ".join(("debian", *IMAGES))


def _seconds(started: float) -> str:
    return f"{time.monotonic() - started:.0f} s"


def _version(name: str) -> str:
    """The image's version: the default of ARG VERSION in its Containerfile."""
    text = (_RECIPES / name / "Containerfile").read_text()
    match = re.search(r"^ARG VERSION=(\S+)$", text, re.MULTILINE)
    if match is None:
        raise ImageError(f"image {name}: its Containerfile has no ARG VERSION=…")
    return match.group(1)


def _certificates() -> list[Path]:
    return sorted(_CA_DIR.glob("**/*.crt"))


def _base_recipe() -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([_BASE_FORMAT, SUITE, _DPKG_OPTIONS, platform.machine()]).encode())
    for path in (_RECIPES / "debian" / "Containerfile", *_certificates()):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _recipe(name: str, base: str) -> str:
    digest = hashlib.sha256(base.encode())
    context = _RECIPES / name
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(context)).encode() + b"\0")
        digest.update(b"x" if os.access(path, os.X_OK) else b"-")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_current(name: str, recipe: str, records: dict[str, Record]) -> bool:
    record = records.get(name)
    if record is None or record["recipe"] != recipe:
        return False
    algorithm, _, value = record["digest"].partition(":")
    repository = CACHE / "registry/docker/registry/v2/repositories" / NAMESPACE / name
    return (repository / "_manifests/revisions" / algorithm / value / "link").is_file()


def _missing(name: str, recipe: str, records: dict[str, Record], roots: bool) -> bool:
    if not _is_current(name, recipe, records):
        return True
    return roots and not (records[name].get("unpacked", True) and root_path(name).is_dir())


def _records_path() -> Path:
    return CACHE / "images.json"


def _read_records() -> dict[str, Record]:
    try:
        records: dict[str, Record] = json.loads(_records_path().read_text())
    except FileNotFoundError:
        return {}
    return records


def _write_records(records: dict[str, Record]) -> None:
    text = json.dumps(records, indent=2, sort_keys=True) + "\n"
    replace_file(_records_path(), text, 0o644, durable=False)


def _locked(progress: Progress) -> AbstractContextManager[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    said = "images: another build is running, waiting for it"
    return exclusive(CACHE / "images.lock", waiting=lambda: progress(said))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m lab.image_builds`: build what is needed, print the references."""
    parser = argparse.ArgumentParser(prog="python -m lab.image_builds", description=__doc__)
    parser.add_argument(
        "--force", action="append", default=[], metavar="NAME", help=f"rebuild: {_names()}"
    )
    options = parser.parse_args(arguments)
    try:
        references = ensure_images(
            lambda line: print(line, file=sys.stderr, flush=True), force=options.force
        )
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    for name, reference in references.items():
        print(f"{name}: {reference}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
