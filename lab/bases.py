"""Bare Debian roots, the lower layer of every host's disk.

A base lies in cache/bases/<suite>-<recipe>/ and is never changed after it was built: overlay disks
made on it stay valid. cache/bases/<suite> is a link to the current one, <suite>.json its recipe.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from lab import mirror
from lab.common import CACHE, LOGS, LabError, Progress, remove_tree, run
from plugins.module_utils.atomic import replace_link
from plugins.module_utils.lock import exclusive

BASES = CACHE / "bases"

# What any Debian server has before anybody provisions it; roles install the rest.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libpam-systemd",
    "netbase",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
_FORMAT = 3  # raise when the code below changes what a base contains
_CA_DIR = Path("/usr/local/share/ca-certificates")
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "force-unsafe-io",
)
# Settings of the machine's apt that its mirror may need.
_APT_SETTINGS = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-FutureTime",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)


@functools.cache
def sources(suite: str) -> tuple[str, ...]:
    """`deb` lines for a suite, from the machine's own apt sources."""
    return tuple(mirror.debian_sources(suite))


@functools.cache
def apt_settings() -> dict[str, str]:
    """The machine's apt settings that hosts have to share."""
    settings = {}
    for line in run(["apt-config", "dump"]).stdout.splitlines():
        name, _, value = line.partition(" ")
        if name in _APT_SETTINGS and value.strip('";'):
            settings[name] = value.strip('";')
    return settings


def base_name(suite: str) -> str:
    """Directory name of the current recipe's base."""
    return f"{suite}-{_recipe(suite)['hash'][:12]}"


def base_path(name: str) -> Path:
    """Where a base lies."""
    return BASES / name


def ensure_bases(suites: Sequence[str], progress: Progress) -> dict[str, str]:
    """Build the bases that are missing; return {suite: base name}."""
    BASES.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    names = {suite: base_name(suite) for suite in suites}
    if any(not base_path(name).is_dir() for name in names.values()):
        with _locked(progress), ThreadPoolExecutor() as pool:
            for built in [pool.submit(_build, suite, progress) for suite in suites]:
                built.result()
    for suite, name in names.items():
        _link(suite, name)
    return names


def _recipe(suite: str) -> dict[str, str]:
    recipe = {
        "format": _FORMAT,
        "suite": suite,
        "architecture": platform.machine(),
        "packages": PACKAGES,
        "dpkg": _DPKG_OPTIONS,
        "sources": sources(suite),
        "apt": apt_settings(),
        "certificates": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _certificates()],
    }
    text = json.dumps(recipe, sort_keys=True)
    return {"hash": hashlib.sha256(text.encode()).hexdigest(), "recipe": text}


def _certificates() -> list[Path]:
    return sorted(_CA_DIR.glob("**/*.crt"))


def _build(suite: str, progress: Progress) -> None:
    name = base_name(suite)
    final = base_path(name)
    if final.is_dir():
        return
    started = time.monotonic()
    progress(f"base {suite}: installing with mmdebstrap")
    partial = BASES / f".{name}.partial"
    remove_tree(partial)
    hooks = [
        f'mkdir -p "$1{_CA_DIR}"',
        *(f'cp "{path}" "$1{_CA_DIR}/{path.name}"' for path in _certificates()),
        'chroot "$1" update-ca-certificates >/dev/null',
        # Identity belongs to a host, not to its base.
        'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/hostname "$1"/etc/resolv.conf',
        ': > "$1"/etc/machine-id; rm -f "$1"/var/lib/dbus/machine-id',
        'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/*.log',
        'mkdir -p "$1"/var/lib/docker',
    ]
    argv = ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory"]
    argv += [f"--include={','.join(PACKAGES)}"]
    argv += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    settings = {
        # Every package source has to be a name that the lab's resolver allows.
        "Acquire::EnableSrvRecords": "false",
        "Acquire::Languages": "none",
        "Acquire::ForceIPv4": "true",
        **apt_settings(),
    }
    argv += [f'--aptopt={key} "{value}"' for key, value in settings.items()]
    argv += [f"--customize-hook={hook}" for hook in hooks]
    argv += [suite, str(partial), *sources(suite)]
    log = LOGS / f"base-{suite}.log"
    # Its own namespaces: mounts and processes of an interrupted build vanish with it.
    isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    with log.open("w") as stream:
        result = subprocess.run(
            # Images are built at the same time and take longer.
            ["setpriv", "--pdeathsig", "KILL", "nice", *isolated, *argv],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": "/tmp", "LC_ALL": "C.UTF-8"},
        )
    if result.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise LabError(f"mmdebstrap failed for {suite} (log: {log}):\n{tail}")
    partial.rename(final)
    progress(f"base {suite}: ready ({time.monotonic() - started:.0f} s)")


def _link(suite: str, name: str) -> None:
    link = BASES / suite
    if not link.is_symlink() or os.readlink(link) != name:
        replace_link(link, name)
        (BASES / f"{suite}.json").write_text(json.dumps(_recipe(suite), indent=2) + "\n")


def forget_unused(used: set[str]) -> None:
    """Delete bases that neither the recipe nor a disk refers to any more."""
    if CACHE.is_symlink():  # a cache lent by another lab, whose disks are not ours to know
        return
    for path in BASES.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name not in used:
            remove_tree(path)


def _locked(progress: Progress) -> AbstractContextManager[None]:
    said = "base: another build is running, waiting for it"
    return exclusive(BASES / ".lock", waiting=lambda: progress(said))
