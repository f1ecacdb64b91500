#!/usr/bin/python
"""Ansible module: a command that makes something match by itself, truthful in check mode."""

from __future__ import annotations

DOCUMENTATION = r"""
module: converge_command
short_description: Run a command that makes something match and says whether it changed anything
description:
  - For what lies outside the file system and has a tool that compares before it changes, such as
    topics of Kafka, users and schema of a database.
  - The command says what it changed, as one JSON object with C(changed) (and C(changes)), or with
    O(changed_prefix) as lines.
  - In check mode it gets O(check_argv) in addition and has to change nothing. It then judges the
    configuration that a run would write, not the one on the host; O(trees), O(files) and
    O(secret_files) are laid out in a private directory for it, which is removed afterwards.
  - Where the command cannot look in check mode, because its program or its server is not there yet,
    the task is C(changed) and says what it was deferred for. Outside check mode that is an error.
extends_documentation_fragment: [tree]
options:
  argv:
    description: The command. C({stage}) stands for the directory of the staged files in check mode,
      and for nothing otherwise, so that C({stage}/etc/x) is C(/etc/x).
    type: list
    elements: str
    required: true
  check_argv:
    description: What to append in check mode.
    type: list
    elements: str
    default: []
  environment:
    description: Variables of the command's environment; C({stage}) as in O(argv).
    type: dict
    default: {}
  stdin:
    description: Text for the command's standard input; never shown.
    type: str
  changed_prefix:
    description: The command prints lines, and those that begin so are changes. Without it the
      command prints one JSON object.
    type: str
  project:
    description: Compose project that has to run before the command can look.
    type: str
  release:
    description: Directory of the release that a run would use. While it is not installed, check
      mode asks the installed one; where that one fails, the answer is deferred to the run.
    type: path
  release_files:
    description: Path below C(src) of the Python services, and below C(site-packages) of a release,
      of data that decides about changes, such as migrations. An installed release with other data
      cannot answer for O(release), which defers.
    type: str
  timeout:
    description: Seconds that the command may take.
    type: int
    default: 300
"""

EXAMPLES = r"""
- name: Make topics, users and rights match
  converge_command:
    argv: [kafka-admin, --config, "{stage}/etc/kafka-admin/config.json", apply]
    check_argv: [--check]
    trees:
      - {src: admin, dest: /etc/kafka-admin}
    project: kafka
"""

RETURN = r"""
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
"""

import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from typing import Any

from ansible.module_utils.prime_spark_tree import (
    TREE_ARGUMENTS,
    TreeModule,
    stage_files,
    tree_files,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    **{key: TREE_ARGUMENTS[key] for key in ("files", "secret_files", "directories")},
    "argv": {"type": "list", "elements": "str", "required": True},
    "check_argv": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "stdin": {"type": "str", "no_log": True},
    "changed_prefix": {"type": "str"},
    "project": {"type": "str"},
    "release": {"type": "path"},
    "release_files": {"type": "str"},
    "release_digest": {"type": "str"},
    "timeout": {"type": "int", "default": 300},
}


class CommandError(Exception):
    """The command failed or said nothing that can be understood."""


def project_runs(name: str) -> bool:
    """Whether any container of the compose project runs."""
    if shutil.which("docker") is None:
        return False
    argv = ["docker", "ps", "--quiet", "--filter", f"label=com.docker.compose.project={name}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def digest_of(directory: str) -> str:
    """Hash over names and contents of a directory's files, as the action plugin makes it."""
    digest = hashlib.sha256()
    for path in sorted(glob.glob(f"{directory}/*")):
        if os.path.isfile(path) and not path.endswith(".pyc"):
            with open(path, "rb") as stream:
                content = hashlib.sha256(stream.read()).hexdigest()
            digest.update(f"{os.path.basename(path)}\0{content}\0".encode())
    return digest.hexdigest()


def prerequisite(params: dict[str, Any]) -> str:
    """What the command lacks so far, in words; empty when it can be asked."""
    program = params["argv"][0]
    if shutil.which(program) is None:
        return f"{program} is not installed yet"
    if params["project"] and not project_runs(params["project"]):
        return f"the project {params['project']} does not run yet"
    return ""


def other_data(params: dict[str, Any]) -> bool:
    """Whether the installed release has other data than the one that a run would install."""
    if not params["release_digest"] or os.path.isdir(params["release"] or "/"):
        return False
    home = os.path.dirname(os.path.dirname(params["argv"][0]))
    found = glob.glob(f"{home}/lib/python3*/site-packages/{params['release_files']}")
    return [digest_of(path) for path in found] != [params["release_digest"]]


def changes_in(output: str, prefix: str | None) -> list[str]:
    """The changes that the command names; raises CommandError when it names none properly."""
    if prefix is not None:
        return [
            line.removeprefix(prefix).strip()
            for line in output.splitlines()
            if line.startswith(prefix)
        ]
    try:
        answer = json.loads(output)
        changed = answer["changed"]
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"expected one JSON object with `changed`, seen: {output!r}") from None
    if not changed:
        return []
    sentences = [
        str(sentence)
        for key in ("changes", "applied", "pending", "grants")
        for sentence in answer.get(key) or []
    ]
    return sentences or ["changed"]


def execute(params: dict[str, Any], stage: str, check_mode: bool) -> list[str]:
    """Run the command; the changes that it made, or would make."""
    words = [*params["argv"], *(params["check_argv"] if check_mode else [])]
    argv = [word.replace("{stage}", stage) for word in words]
    environment = {
        key: str(value).replace("{stage}", stage) for key, value in params["environment"].items()
    }
    shown = " ".join(word.replace("{stage}", "") for word in words)
    try:
        done = subprocess.run(
            argv,
            input=params["stdin"] or "",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
            timeout=params["timeout"],
            cwd="/",
        )
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is not installed: run the role without --check") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{shown}` did not end within {params['timeout']} s") from None
    if done.returncode != 0:
        raise CommandError(f"`{shown}` failed: {(done.stderr or done.stdout).strip()}")
    try:
        return changes_in(done.stdout, params["changed_prefix"])
    except CommandError as error:
        raise CommandError(f"`{shown}`: {error}") from None


def predict(params: dict[str, Any]) -> list[str]:
    """What a run would change, or why that is not known yet."""
    lacking = prerequisite(params)
    if not lacking and other_data(params):
        lacking = f"the new release brings other {os.path.basename(params['release_files'])}"
    if lacking:
        return [f"deferred: {lacking}"]
    with tempfile.TemporaryDirectory(prefix="prime-spark-check-", dir="/run") as stage:
        stage_files(tree_files(params), stage)
        try:
            return execute(params, stage, check_mode=True)
        except CommandError as error:
            if params["release"] and not os.path.isdir(params["release"]):
                return [f"deferred: the new release is not installed yet, the old one says {error}"]
            raise


def main() -> None:
    module = TreeModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        if module.check_mode:
            changes = predict(module.params)
        else:
            changes = execute(module.params, "", check_mode=False)
    except (CommandError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
