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
  - In check mode it gets O(check_argv) in addition and has to change nothing. It then validates the
    configuration that a run would write, not the one on the host; O(trees), O(files) and
    O(secret_files) are laid out in a private directory for it, which is removed afterwards.
  - Where the command cannot look in check mode, because its program or its server is not there yet,
    the task is C(changed) and says what it was deferred for. Outside check mode that is an error.
extends_documentation_fragment: [prime_spark.fleet.tree, prime_spark.fleet.tree.role]
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
  check_stdin:
    description: Text for its standard input in check mode, where that has to be another one.
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
- name: Apply topics, users and rights
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
import os
import shutil
import tempfile
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.command import CommandError, execute
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    TREE_ARGUMENTS,
    TreeModule,
    stage_files,
    tree_files,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    **{key: TREE_ARGUMENTS[key] for key in ("files", "secret_files", "directories")},
    **OWNER_ARGUMENTS,
    "argv": {"type": "list", "elements": "str", "required": True},
    "check_argv": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "stdin": {"type": "str", "no_log": True},
    "check_stdin": {"type": "str", "no_log": True},
    "changed_prefix": {"type": "str"},
    "project": {"type": "str"},
    "release": {"type": "path"},
    "release_files": {"type": "str"},
    "release_digest": {"type": "str"},
    "timeout": {"type": "int", "default": 300},
}


def project_runs(name: str) -> bool:
    """Whether any container of the compose project runs."""
    argv = ["docker", "ps", "--quiet", "--filter", f"label=com.docker.compose.project={name}"]
    done = attempt(argv)
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


def asked(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters for check mode."""
    return params if params["check_stdin"] is None else {**params, "stdin": params["check_stdin"]}


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
            changes: list[str] = execute(params, stage, check_mode=True)
            return changes
        except CommandError as error:
            if params["release"] and not os.path.isdir(params["release"]):
                return [f"deferred: the new release is not installed yet, the old one says {error}"]
            raise


def note_question(params: dict[str, Any]) -> None:
    """Note what to ask later to see whether all still matches."""
    keys = ("argv", "check_argv", "environment", "changed_prefix", "timeout")
    question = {key: params[key] for key in keys}
    question["stdin"] = params["stdin"] if params["check_stdin"] is None else params["check_stdin"]
    note(params, "command", {params["argv"][0] + " " + params["argv"][-1]: question})


def main() -> None:
    module = TreeModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        if module.check_mode:
            changes = predict(asked(module.params))
        else:
            changes = execute(module.params, "", check_mode=False)
            note_question(module.params)
    except (CommandError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
