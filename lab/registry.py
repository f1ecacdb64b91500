"""Debian's docker-registry over the lab's image storage.

`ensure_images` starts it for a moment, writable, to push what it built. The lab's supervisor
serves the same storage read-only at the lab's registry address:

    argv, config = serve_command(storage, "198.51.100.20:5000")
    path.write_text(config)                         # any file that only root may write
    subprocess.Popen([*in_registry_netns, *argv, str(path)])

Both may run at once: blobs and manifests are content-addressed and never rewritten. A rebuilt
image replaces the one with its tag; `collect_garbage` then drops the old one's blobs.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.common import LabError, run

_LISTENING = re.compile(r'msg="listening on ([0-9.]+:[0-9]+)"')
_START_SECONDS = 15


class RegistryError(LabError):
    """docker-registry did not start, or could not do its work."""


def serve_command(storage: Path, listen: str, *, readonly: bool = True) -> tuple[list[str], str]:
    """Return (argv, configuration text) that serve `storage` over plain HTTP at `listen`.

    The caller writes the text to a file and appends its path to argv. Port 0 takes a free port;
    the log on standard error then tells which.
    """
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(storage)},
            "maintenance": {
                "uploadpurging": {"enabled": False},
                "readonly": {"enabled": readonly},
            },
        },
        "http": {"addr": listen, "headers": {"X-Content-Type-Options": ["nosniff"]}},
    }
    # JSON is YAML: nothing to quote by hand.
    return ["docker-registry", "serve"], json.dumps(config, indent=2) + "\n"


@contextmanager
def writable(storage: Path) -> Iterator[str]:
    """Serve `storage` for pushing on a free loopback port; yields "127.0.0.1:port"."""
    storage.mkdir(parents=True, exist_ok=True)
    argv, config = serve_command(storage, "127.0.0.1:0", readonly=False)
    with tempfile.TemporaryDirectory(prefix="prime-spark-registry-") as directory:
        path = Path(directory) / "config.yml"
        path.write_text(config)
        log = Path(directory) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                # OpenTelemetry and proxies have no business here.
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OTEL_TRACES_EXPORTER": "none"},
            )
        try:
            yield wait_until_listening(process, log)
        finally:
            process.kill()
            process.wait()


def collect_garbage(storage: Path) -> None:
    """Delete what no tag refers to any more, such as the images before a rebuild."""
    _, config = serve_command(storage, "127.0.0.1:0")
    with tempfile.TemporaryDirectory(prefix="prime-spark-registry-") as directory:
        path = Path(directory) / "config.yml"
        path.write_text(config)
        run(["docker-registry", "garbage-collect", "--delete-untagged", path])


def wait_until_listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the address a starting registry takes, "127.0.0.1:port", in its log."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        text = log.read_text(errors="replace")
        if match := _LISTENING.search(text):
            return match.group(1)
        if process.poll() is not None or time.monotonic() > deadline:
            raise RegistryError(f"docker-registry did not start:\n{text[-2000:]}")
        time.sleep(0.02)
