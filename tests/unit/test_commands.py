"""Every command of README and getting-started.md exists; what is cheap is run as far as it goes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from ansible.cli.playbook import PlaybookCLI
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import catalogue

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "docs/getting-started.md"]
SERVICES = ROOT / "files/python_services/src"
# How a line is tried, by its first word; the reason where it is not run to its end.
FORMS = {
    "make": "make -n: it says what it would do. Its work needs root, minutes, or an inventory",
    "ansible-playbook": "--syntax-check: the run itself is that of the system tests",
    "prime-spark": "--help of the subcommand: the rest needs an API",
    "ansible-inventory": "--help: its answer needs the lab's vault",
    ".": "the file is made by make: it has to be one that tools/bootstrap makes",
}
# Blocks that show files or pictures.
OTHER = re.compile(r"[│┌└├─◄►]|home LAN|collector on every host|^\w+: ")


def lines() -> list[tuple[Path, str]]:
    """The lines of indented blocks, without comments."""
    found = []
    for document in DOCUMENTS:
        for line in re.findall(r"^(?: {4}|- {5})(\S.*)$", document.read_text(), re.MULTILINE):
            if not OTHER.search(line):
                found.append((document, line.partition("  #")[0].strip()))
    return found


@pytest.fixture(params=[*{line: None for _, line in lines()}])
def command(request: pytest.FixtureRequest) -> list[str]:
    return shlex.split(request.param)


def run(command: list[str]) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SERVICES),
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (
        f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )


@cache
def check_syntax(inventory: tuple[str, ...], playbook: str) -> None:
    run(["ansible-playbook", "--syntax-check", *inventory, playbook])


def parse_playbook_options(words: list[str]) -> None:
    """Refuse an option that ansible-playbook does not have, and a playbook that is not there."""
    command = PlaybookCLI(["ansible-playbook", *words])
    command.init_parser()
    options = command.parser.parse_args(words)
    assert [name for name in options.args if not (ROOT / name).is_file()] == []
    tags = [tag for given in options.tags for tag in given.split(",")]
    assert set(tags) <= {*catalogue(), "all", "verify"}


def test_the_documents_have_commands() -> None:
    assert {line.split()[0] for _, line in lines()} == set(FORMS)


def test_a_command_works(command: list[str]) -> None:
    program, *words = command
    if program == "make":
        run(["make", "--dry-run", *words])
    elif program == "ansible-playbook":
        # What is given besides does not change the syntax: one check for each inventory.
        parse_playbook_options(words)
        at = words.index("-i") if "-i" in words else None
        check_syntax(tuple(words[at : at + 2]) if at is not None else (), "site.yml")
    elif program == "prime-spark":
        names = []
        for word in words:
            if word.startswith("-") or not re.fullmatch(r"[a-z]+", word):
                break
            names.append(word)
        # A name that is no subcommand is an argument: `login admin`.
        names = names[:2] if names[0] in {"tasks", "memory"} else names[:1]
        called = "from prime_spark.cli.main import main; main()"
        run([sys.executable, "-c", called, *names, "--help"])
    elif program == "ansible-inventory":
        run([program, "--help"])
    else:
        assert words == [".venv/bin/activate"]
        assert ".venv" in (ROOT / "tools/bootstrap").read_text()
