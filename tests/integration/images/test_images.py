"""Images are built once, referred to by digest, and pulled back as what was built."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from lab import image_builds as images
from lab import registry
from lab.common import CACHE


def test_nothing_is_built_twice(references: dict[str, str]) -> None:
    said: list[str] = []
    assert images.ensure_images(said.append) == references
    assert not said


def test_references_end_in_the_digest(references: dict[str, str]) -> None:
    recorded = json.loads((CACHE / "images.json").read_text())
    assert set(references) == set(images.IMAGES)
    for name, reference in references.items():
        address, _, digest = reference.partition("@")
        assert address.startswith(f"198.51.100.20:5000/prime-spark/{name}:")
        assert (recorded[name]["reference"], recorded[name]["digest"]) == (reference, digest)


def test_an_image_that_was_left_packed_is_unpacked_when_it_is_wanted(
    references: dict[str, str],
) -> None:
    """`lab up` leaves images packed."""
    root = images.root_path("redis-exporter")
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    shutil.rmtree(root)
    assert images.ensure_images(print, roots=False) == references
    assert not root.exists()
    assert images.ensure_images(print) == references
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


def test_unknown_image_is_refused() -> None:
    with pytest.raises(images.ImageError, match="there are debian, airflow"):
        images.ensure_images(print, force=["postgres"])


def test_recipe_follows_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tmp_path / "x"
    context.mkdir()
    monkeypatch.setattr(images, "_RECIPES", tmp_path)

    def recipe(base: str = "base") -> str:
        return images._recipe("x", base)

    (context / "Containerfile").write_text("FROM scratch\n")
    seen = {recipe(), recipe("other base")}
    (context / "entrypoint").write_text("#!/bin/sh\n")
    seen.add(recipe())
    (context / "entrypoint").chmod(0o755)
    seen.add(recipe())
    (context / "entrypoint").rename(context / "start")
    seen.add(recipe())
    assert len(seen) == 5
    assert recipe() in seen


def test_read_only_registry_serves_by_digest_and_takes_no_push(
    references: dict[str, str], tmp_path: Path
) -> None:
    """As the lab's supervisor serves it to the hosts."""
    argv, text = registry.serve_command(CACHE / "registry", "127.0.0.1:0")
    config = tmp_path / "config.yml"
    config.write_text(text)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*argv, str(config)], stdout=log, stderr=log)
        try:
            address = registry.wait_until_listening(process, Path(f"/proc/self/fd/{log.fileno()}"))
            for name, reference in references.items():
                digest = reference.partition("@")[2]
                url = f"http://{address}/v2/prime-spark/{name}/manifests/{digest}"
                accept = "application/vnd.docker.distribution.manifest.v2+json"
                request = urllib.request.Request(url, headers={"Accept": accept})
                with urllib.request.urlopen(request, timeout=10) as answer:
                    manifest = json.load(answer)
                    assert answer.headers["Docker-Content-Digest"] == digest
                assert manifest["layers"]
            push = urllib.request.Request(
                f"http://{address}/v2/prime-spark/redis/blobs/uploads/", method="POST"
            )
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(push, timeout=10)
            assert refusal.value.code == 405
        finally:
            process.kill()
            process.wait()
