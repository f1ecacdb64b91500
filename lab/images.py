"""Build the lab's container images, put them into its registry, unpack them for service tests.

Every image is one directory `lab/images/<name>/` with a Containerfile. buildah builds it on a
minimal Debian made with mmdebstrap; nothing else is downloaded than Debian packages and what the
Containerfile itself fetches. An image is rebuilt when a file of its directory, the base or the
machine's extra certificate authorities changed. A reference ends in the digest, so hosts pull
exactly what was built.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from lab import bases, mirror, registry
from lab.common import CACHE, LOGS, LabError, Progress
from lab.topology import REGISTRY_ADDRESS, REGISTRY_PORT

IMAGES = (
    "redis",
    "timescale",
    "kafka",
    "llama",
    "airflow",
    "prometheus",
    "alertmanager",
    "postgres-exporter",
    "redis-exporter",
)
SUITE = "trixie"
REGISTRY = f"{REGISTRY_ADDRESS}:{REGISTRY_PORT}"
NAMESPACE = "prime-spark"

_RECIPES = Path(__file__).resolve().parent / "images"
_CA_DIR = Path("/usr/local/share/ca-certificates")
_MAVEN_SETTINGS = Path.home() / ".m2" / "settings.xml"
# Documentation and translations are of no use in a container; licences stay.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
)
_BUILD = ("build", "--isolation=chroot", "--format=docker", "--layers")
_BASE_FORMAT = 1  # raise to rebuild every base after a change of the code below
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


def root_path(name: str) -> Path:
    """The unpacked root of an image, for service tests."""
    return CACHE / "roots" / name


def ensure_images(progress: Progress, *, force: Sequence[str] = ()) -> dict[str, str]:
    """Build what is missing or out of date; return {name: reference with digest}.

    `force` names images to rebuild regardless; "debian" rebuilds the base and so all of them.
    Safe to call at any time: a second caller waits, an interrupted build is taken up again.
    """
    unknown = set(force) - {*IMAGES, "debian"}
    if unknown:
        raise ImageError(f"no such image: {', '.join(sorted(unknown))}; there are {_names()}")
    base = _base_recipe()
    recipes = {name: _recipe(name, base) for name in IMAGES}
    records = _read_records()
    if not force and all(_is_current(name, recipes[name], records) for name in IMAGES):
        return {name: records[name]["reference"] for name in IMAGES}

    if os.geteuid() != 0:
        raise ImageError("building images needs root")
    with _locked(progress):
        records = _read_records()  # the caller before us may have done it all
        builder = _Builder(progress)
        rebuild_all = "debian" in force
        stale = [
            name
            for name in IMAGES
            if rebuild_all or name in force or not _is_current(name, recipes[name], records)
        ]
        if stale:
            builder.prepare(base, rebuild=rebuild_all)
        for name in stale:
            records[name] = builder.build(name, recipes[name])
            _write_records(records)
        if stale:
            builder.finish()
    return {name: records[name]["reference"] for name in IMAGES}


class _Builder:
    """buildah with its own storage under cache/build, one log file per image."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._dir = CACHE / "build"
        self._storage = self._dir / "storage"
        self._unfinished = self._dir / "unfinished"
        self._tar = self._dir / f"debian-{SUITE}.tar"
        self._tar_recipe = self._dir / f"debian-{SUITE}.recipe"
        self._logs = LOGS

    def prepare(self, base_recipe: str, *, rebuild: bool) -> None:
        """Clear away what an interrupted build left, then make and import the base."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._dir.mkdir(parents=True, exist_ok=True)
        if self._unfinished.exists():
            self._say("images: the last build was interrupted, starting from a clean storage")
            shutil.rmtree(self._storage, ignore_errors=True)
        self._unfinished.touch()

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

    def finish(self) -> None:
        """Drop replaced images and buildah's storage; registry and roots hold what is needed.

        Layers kept for a later build would also keep packages that Debian has fixed since.
        """
        registry.collect_garbage(CACHE / "registry")
        shutil.rmtree(self._storage, ignore_errors=True)
        self._unfinished.unlink(missing_ok=True)

    def build(self, name: str, recipe: str) -> Record:
        """Build, push and unpack one image."""
        started = time.monotonic()
        context = _RECIPES / name
        version = _version(name)
        local = f"localhost/{NAMESPACE}/{name}:{version}"
        log = self._logs / f"image-{name}.log"
        with log.open("w") as stream:
            stream.write(f"{name} {version}\n")
        secrets = [f"--secret=id=maven,src={_MAVEN_SETTINGS}"] if _MAVEN_SETTINGS.exists() else []
        self._buildah(
            name,
            log,
            [*_BUILD, *secrets, "--tag", local, "--file", f"{context}/Containerfile", str(context)],
        )

        self._say(f"images: {name}: pushing ({_seconds(started)})")
        digest_file = self._dir / f"{name}.digest"
        with registry.writable(CACHE / "registry") as address:
            target = f"docker://{address}/{NAMESPACE}/{name}:{version}"
            self._buildah(
                name,
                log,
                [
                    "push",
                    "--quiet",
                    "--tls-verify=false",
                    f"--digestfile={digest_file}",
                    local,
                    target,
                ],
            )
        digest = digest_file.read_text().strip()

        self._say(f"images: {name}: unpacking ({_seconds(started)})")
        self._unpack(name, log, local)
        reference = f"{REGISTRY}/{NAMESPACE}/{name}:{version}@{digest}"
        self._say(f"images: {name}: ready, {reference} ({_seconds(started)})")
        return Record(reference=reference, digest=digest, recipe=recipe)

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

    def _unpack(self, name: str, log: Path, local: str) -> None:
        roots = CACHE / "roots"
        roots.mkdir(parents=True, exist_ok=True)
        partial = roots / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        script = (
            'container=$(buildah $3 from "$1") && root=$(buildah $3 mount "$container") && '
            'cp -a --reflink=auto "$root/." "$2" && buildah $3 rm "$container"'
        )
        partial.mkdir()
        self._run(
            name,
            log,
            ["sh", "-euc", script, "unpack", local, str(partial), " ".join(self._options())],
        )
        final = root_path(name)
        old = roots / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        partial.rename(final)
        shutil.rmtree(old, ignore_errors=True)

    def _options(self) -> list[str]:
        return ["--root", str(self._storage), "--runroot", str(self._dir / "run")]

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
        if process.returncode != 0:
            # buildah ended by itself: its storage is in order.
            self._unfinished.unlink(missing_ok=True)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL:])
            raise ImageError(
                f"image {name}: {argv[0]} failed with {process.returncode}, see {log}\n{tail}"
            )

    def _say(self, text: str) -> None:
        self._progress(text)


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
    if record is None or record["recipe"] != recipe or not root_path(name).is_dir():
        return False
    algorithm, _, value = record["digest"].partition(":")
    repository = CACHE / "registry/docker/registry/v2/repositories" / NAMESPACE / name
    return (repository / "_manifests/revisions" / algorithm / value / "link").is_file()


def _records_path() -> Path:
    return CACHE / "images.json"


def _read_records() -> dict[str, Record]:
    try:
        records: dict[str, Record] = json.loads(_records_path().read_text())
    except FileNotFoundError:
        return {}
    return records


def _write_records(records: dict[str, Record]) -> None:
    path = _records_path()
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(records, indent=2, sort_keys=True) + "\n")
    partial.rename(path)


@contextmanager
def _locked(progress: Progress) -> Iterator[None]:
    cache = CACHE
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "images.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("images: another build is running, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m lab.images`: build what is needed, print the references."""
    parser = argparse.ArgumentParser(prog="python -m lab.images", description=__doc__)
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
