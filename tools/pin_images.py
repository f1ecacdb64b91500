#!/usr/bin/env python3
"""Pin every image of an inventory by digest: write what follows the @ in its images.yml.

Asks each image's own registry what its tag means today, checks that the image exists for every
architecture of the fleet, and changes only the references that lack a digest (--update: all).
A digest is never invented: an image that cannot be read stays as it is and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# What an images.yml looks like: one mapping, a line for each image, quoted or not.
LINE = re.compile(
    r"^(?P<indent>\s+)(?P<name>[\w-]+):\s+(?P<quote>[\"']?)"
    r"(?P<image>[\w./:-]+?)(?:@(?P<digest>sha256:[0-9a-f]{64})?)?(?P=quote)"
    r"(?P<comment>\s*(?:#.*)?)$"
)
# The Raspberry Pis are arm64, the cloud servers amd64.
ARCHITECTURES = ("amd64", "arm64")
SECONDS = 60


class PinError(Exception):
    """Why an image could not be pinned."""


@dataclass(frozen=True)
class Pinned:
    """What a registry says of a tag."""

    digest: str
    architectures: frozenset[str]


def inspect(image: str, *words: str) -> bytes:
    """What `skopeo inspect` prints for a reference without digest."""
    argv = ["skopeo", "inspect", *words, f"docker://{image}"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=SECONDS)
    except FileNotFoundError:
        raise PinError("skopeo is not installed: apt install skopeo") from None
    except subprocess.TimeoutExpired:
        raise PinError(f"its registry did not answer within {SECONDS} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise PinError(said[-1] if said else f"skopeo exits with {done.returncode}")
    return done.stdout


def resolve(image: str, *options: str) -> Pinned:
    """The digest of a tag (of the index, where the image has several architectures)."""
    raw = inspect(image, *options, "--raw")
    manifest = json.loads(raw)
    if "manifests" in manifest:
        found = {entry.get("platform", {}).get("architecture") for entry in manifest["manifests"]}
    else:
        found = {json.loads(inspect(image, *options, "--config"))["architecture"]}
    # The digest of a manifest is that of its bytes as the registry sent them.
    return Pinned(f"sha256:{hashlib.sha256(raw).hexdigest()}", frozenset(filter(None, found)))


def pin(
    text: str, architectures: tuple[str, ...], update: bool, options: tuple[str, ...] = ()
) -> tuple[str, list[str], list[str]]:
    """The text with digests filled in, one line for each change, and one for each problem."""
    lines, changes, problems = [], [], []
    for line in text.splitlines():
        found = LINE.match(line)
        if found is None or (found["digest"] and not update):
            lines.append(line)
            continue
        name, image = found["name"], found["image"]
        try:
            pinned = resolve(image, *options)
            missing = [a for a in architectures if a not in pinned.architectures]
            if missing:
                there = ", ".join(sorted(pinned.architectures))
                raise PinError(f"not built for {', '.join(missing)}, only for {there}")
        except PinError as error:
            problems.append(f"{name}: {image}: {error}")
            lines.append(line)
            continue
        if pinned.digest != found["digest"]:
            changes.append(f"{name}: {image}@{pinned.digest}")
        reference = f'"{image}@{pinned.digest}"'
        lines.append(f"{found['indent']}{name}: {reference}{found['comment']}")
    return "\n".join(lines) + "\n", changes, problems


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    parser.add_argument(
        "--update", action="store_true", help="ask again for images that have a digest, too"
    )
    parser.add_argument(
        "--architectures",
        default=",".join(ARCHITECTURES),
        metavar="LIST",
        help="architectures that every image must have (default: %(default)s)",
    )
    parser.add_argument(
        "--plain-http", action="store_true", help="for a registry of one's own without TLS"
    )
    arguments = parser.parse_args()
    path: Path = arguments.inventory / "group_vars" / "all" / "images.yml"
    if not path.is_file():
        parser.error(f"{path} does not exist: is {arguments.inventory} an inventory directory?")
    before = path.read_text()
    options = ("--tls-verify=false",) if arguments.plain_http else ()
    architectures = tuple(filter(None, arguments.architectures.split(",")))
    text, changes, problems = pin(before, architectures, arguments.update, options)
    if changes:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text)
        partial.rename(path)
    for line in changes:
        print(f"pinned   {line}")
    for line in problems:
        print(f"WRONG    {line}", file=sys.stderr)
    if not changes and not problems:
        print(f"every image in {path} is pinned")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
