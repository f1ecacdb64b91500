#!/usr/bin/python
"""Ansible module: one Docker Compose project, from its files to healthy containers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_project
short_description: Render, validate, pull, start and await one compose project
description:
  - Writes the project's directory, validates it with C(docker compose config), brings the
    containers up when what runs differs from what is wanted, all in one remote run.
  - What runs is compared by the hash that compose itself keeps on every container. The action
    plugin adds a hash of C(config/<service>/) to the project's environment as
    C(CONFIG_HASH_<SERVICE>); put it into a label of the service, and a changed configuration file
    restarts that service alone.
  - A service whose files were changed behind the run's back is restarted once they are back, or
    told to reload, since it may have read them.
  - Where a new definition runs a service as another user, the containers stop and the data in
    O(directories) goes to that user before they start again.
  - A project whose containers all run, healthy and as wanted, is not touched.
  - A new definition that does not come up healthy fails the task, and where an earlier one was
    healthy its files and containers come back. The next run tries again.
  - Two runs never work on one project at the same time; the second waits for the first.
extends_documentation_fragment:
  - prime_spark.fleet.tree
  - prime_spark.fleet.tree.owned
  - prime_spark.fleet.tree.role
options:
  name:
    description: Name of the project and of its directory.
    type: str
    required: true
  state:
    description: V(absent) removes containers, networks, images and files, never volumes or
      bind-mounted data (but what O(absent) names).
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: Directory of the project; set by the action plugin.
    type: path
    required: true
  environment:
    description: Entries of the project's C(.env) (0600, content hidden).
    type: dict
  trees:
    description: Further trees beside the role's C(templates/stack). Their C(dest), like C(path) of
      O(files) and O(secret_files), is below the project's directory.
    type: list
    elements: dict
  wait_timeout:
    description: Seconds until every service has to be running and healthy.
    type: int
    default: 180
  reload:
    description:
      - What a service reads again without a restart, each C(service), C(paths) below its
        C(config/<service>/), and C(url) with C(username) and C(password), which is posted to when
        one of these files changed. Without C(url) the service looks by itself.
      - A reload that is refused takes the files back, as an unhealthy start does. What was loaded
        is recorded, so the next run does a reload that an interrupted run left out.
    type: list
    elements: dict
    default: []
  validate_in:
    description: Programs of an image that validate a service's new files before a change, each
      C(service), C(image), C(argv) and C(mount), where the image sees C(config/<service>/). Check
      mode pulls no image; it leaves the validation to the run, and says so.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Run Redis
  compose_project:
    name: redis
    directories:
      - {path: /var/lib/prime-spark/redis, owner: "71002", group: "71002", mode: "0700"}
"""

RETURN = r"""
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
"""

import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import (
    NOT_FOUND,
    attempt,
    finish,
    run,
    said,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    TREE_ARGUMENTS,
    Difference,
    Tree,
    TreeError,
    TreeModule,
    gid_of,
    is_there,
    remove_path,
    uid_of,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.undo import (
    Snapshot,
    discard_rollback,
    locked,
    save_rollback,
    saved_rollback,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    **TREE_ARGUMENTS,
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "directory": {"type": "path", "required": True},
    "wait_timeout": {"type": "int", "default": 180},
    "reload": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,
        "options": {
            "service": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "str", "required": True},
            "url": {"type": "str", "default": ""},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
        },
    },
    "validate_in": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "service": {"type": "str", "required": True},
            "image": {"type": "str", "required": True},
            "mount": {"type": "path", "required": True},
            "argv": {"type": "list", "elements": "str", "required": True},
        },
    },
}
RELOAD_SECONDS = 30


def docker(*words: str, check: bool = True) -> str:
    """Run ``docker``; what it printed."""
    argv = ["docker", *words]
    return run(argv, TreeError) if check else finish(argv).stdout


def docker_state() -> str:
    """``missing``, ``down`` or ``up``."""
    asked = attempt(["docker", "version", "--format", "{{.Server.Version}}"])
    return {0: "up", NOT_FOUND: "missing"}.get(asked.returncode, "down")


def service_of(sentence: str) -> str:
    """The service that a sentence of `Project.differences` is about."""
    return sentence.split()[1].rstrip(":")


class Project:
    """The compose project as Docker on this host sees it."""

    def __init__(self, name: str, directory: str) -> None:
        self.name = name
        self.directory = directory

    def compose(self, *words: str, source: str | None = None, check: bool = True) -> str:
        """Run ``docker compose``; with ``source`` read the files there instead of the directory."""
        where = source or self.directory
        argv = ["docker", "compose", "--project-name", self.name]
        argv += ["--project-directory", self.directory]
        argv += ["--file", f"{where}/compose.yml", "--env-file", f"{where}/.env", *words]
        done = finish(argv, cwd="/")
        if check and done.returncode != 0:
            why = said(done).replace(where, self.directory)
            raise TreeError(f"`docker compose {' '.join(words)}` of {self.name} failed: {why}")
        return done.stdout

    def wanted(self, source: str | None = None) -> dict[str, str]:
        """Service name to the hash of its definition."""
        lines = self.compose("config", "--hash", "*", source=source).split("\n")
        return dict(line.split() for line in lines if line.strip())

    def running_as_wanted(self) -> dict[str, str]:
        """Every service with what the drift probe has to see of its container."""
        return {service: f"{digest} running" for service, digest in self.wanted().items()}

    def containers(self) -> dict[str, dict[str, str]]:
        """Service name to hash, state and status of its container."""
        listed = docker(
            "ps", "--all", "--no-trunc", "--format", "{{json .}}", "--filter", self.filter
        )
        found = {}
        for line in listed.splitlines():
            entry = json.loads(line)
            labels = dict(item.partition("=")[::2] for item in entry["Labels"].split(","))
            found[labels.get("com.docker.compose.service", entry["Names"])] = {
                "hash": labels.get("com.docker.compose.config-hash", ""),
                "state": entry["State"],
                "status": entry["Status"],
                "id": entry["ID"],
            }
        return found

    def needed(self, disturbed: list[str], source: str | None = None) -> list[str]:
        """As `differences`, and the restarts of what may have read files that were disturbed."""
        found = self.differences(source)
        touched = {service_of(sentence) for sentence in found}
        services = self.wanted(source)
        return found + [
            f"restart {service}: its files were changed behind its back"
            for service in disturbed
            if service in services and service not in touched
        ]

    @property
    def filter(self) -> str:
        return f"label=com.docker.compose.project={self.name}"

    def images(self) -> dict[str, str]:
        """Reference to id of the images of the project's containers.

        An image that was pulled by its digest has no tag by which it could be removed.
        """
        found = docker("ps", "--all", "--quiet", "--filter", self.filter).split()
        if not found:
            return {}
        lines = docker("inspect", "--format", "{{.Config.Image}} {{.Image}}", *found)
        pairs = (line.split() for line in sorted(lines.splitlines()))
        return {pair[0]: pair[1] for pair in pairs}

    def networks(self) -> list[str]:
        """The project's networks."""
        lines = docker("network", "ls", "--format", "{{.Name}}", "--filter", self.filter)
        return sorted(lines.split())

    def stop(self) -> None:
        """Stop every container, each within the time that its definition gives it."""
        if ids := [container["id"] for container in self.containers().values()]:
            docker("stop", *ids)

    def down(self) -> None:
        """Stop and remove containers and networks, also where the project's files are gone."""
        argv = ["docker", "compose", "--project-name", self.name, "down", "--remove-orphans"]
        run(argv, TreeError, cwd="/")
        if left := self.networks():
            docker("network", "rm", *left)

    def differences(self, source: str | None = None) -> list[str]:
        """Why what runs is not what is wanted, one sentence a service; empty when it is."""
        wanted = self.wanted(source)
        running = self.containers()
        found = []
        for service, digest in sorted(wanted.items()):
            container = running.get(service)
            if container is None:
                found.append(f"start {service}")
            elif container["hash"] != digest:
                found.append(f"recreate {service}: its definition or configuration differs")
            elif container["state"] != "running":
                found.append(f"start {service}: it is {container['state']}")
            elif "(unhealthy)" in container["status"]:
                found.append(f"restart {service}: it is unhealthy")
        found += [
            f"remove {service}: no longer defined" for service in sorted(set(running) - set(wanted))
        ]
        return found

    def up(self, wait_timeout: int, restart: list[str] | None = None) -> None:
        """Bring every service up, restart those that ``restart`` names, wait until all is well."""
        unhealthy = [s for s, c in self.containers().items() if "(unhealthy)" in c["status"]]
        deadline = time.monotonic() + wait_timeout
        if paused := [s for s, c in self.containers().items() if c["state"] == "paused"]:
            self.compose("unpause", *paused, check=False)
        # Bring up first, wait afterwards: a pull's time is not the start's time.
        self.compose("up", "--detach", "--remove-orphans", "--quiet-pull")
        # Compose removes only those orphans that it made itself.
        wanted = self.wanted()
        for service, container in self.containers().items():
            if service not in wanted:
                docker("rm", "--force", container["id"])
        if again := sorted({*unhealthy, *(restart or [])}):
            self.compose("restart", *again, check=False)
        while True:
            waiting = {
                service: container["status"]
                for service, container in self.containers().items()
                if container["state"] != "running"
                or "(unhealthy)" in container["status"]
                or "health: starting" in container["status"]
            }
            if not waiting:
                return
            if time.monotonic() >= deadline:
                seen = ", ".join(f"{s}: {status}" for s, status in sorted(waiting.items()))
                logs = self.compose("logs", "--no-color", "--tail", "25", *waiting, check=False)
                raise TreeError(
                    f"expected every service of {self.name} to run healthy within "
                    f"{wait_timeout} s, seen {seen}\n{logs}"
                )
            time.sleep(0.5)


def stage(tree: Tree, directory: str) -> tempfile.TemporaryDirectory[str]:
    """The project's files in a private temporary directory, for compose to validate."""
    staged: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="prime-spark-")
    for file in tree.files:
        below = os.path.relpath(file.path, directory)
        if below.startswith(".."):
            continue
        path = os.path.join(staged.name, below)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as stream:
            stream.write(file.content)
    return staged


def docker_misses(image: str) -> bool:
    return finish(["docker", "image", "inspect", image]).returncode != 0


def validate_in(images: list[dict[str, Any]], source: str, name: str, pull: bool) -> list[str]:
    """Let programs of images validate the files in ``source``; return what has to wait."""
    deferred = []
    for validator in images:
        image, (program, *words) = validator["image"], validator["argv"]
        if docker_misses(image):
            if not pull:
                deferred.append(f"deferred: validation needs the image {image}")
                continue
            docker("pull", "--quiet", image)
        argv = ["docker", "run", "--rm", "--network", "none", "--read-only", "--user", "0:0"]
        argv += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--volume"]
        argv += [f"{source}/config/{validator['service']}:{validator['mount']}:ro"]
        argv += ["--entrypoint", program, image, *words]
        done = finish(argv)
        if done.returncode != 0:
            raise TreeError(
                f"the new configuration of {name} is not valid; nothing was changed. "
                f"`{' '.join(validator['argv'])}` said: {(done.stdout + done.stderr).strip()}"
            )
    return deferred


def disturbed(found: Difference, directory: str, live: dict[str, list[str]]) -> list[list[str]]:
    """Services whose files are put back: those to restart, and those that read them again.

    ``live`` are the paths by service that it reads again without a restart.
    """
    prefix = os.path.join(directory, "config") + os.sep
    restart: set[str] = set()
    reload: set[str] = set()
    for path in [*(file.path for file in found.write), *found.remove]:
        if not path.startswith(prefix):
            continue
        service, _, below = path.removeprefix(prefix).partition(os.sep)
        reads = any(f"{below}/".startswith(f"{path}/") for path in live.get(service, []))
        (reload if reads else restart).add(service)
    return [sorted(restart), sorted(reload)]


class Reloads:
    """What running services have to be told to read again."""

    def __init__(self, tree: Tree, params: dict[str, Any], disturbed: Sequence[str] = ()) -> None:
        self._entries = {entry["service"]: entry for entry in params["reload"] if entry["url"]}
        self._loaded = {
            service: digest
            for service, digest in (tree.record.get("loaded") or {}).items()
            if service not in disturbed
        }
        self.wanted = {
            service: self._digest(tree, f"{params['directory']}/config/{service}", entry["paths"])
            for service, entry in self._entries.items()
        }

    @staticmethod
    def _digest(tree: Tree, directory: str, paths: list[str]) -> str:
        digest = hashlib.sha256()
        for file in sorted(tree.files, key=lambda f: f.path):
            below = os.path.relpath(file.path, directory)
            if any(f"{below}/".startswith(f"{path}/") for path in paths):
                digest.update(f"{below}\0{file.mode:o}\0{file.digest}\0".encode())
        return digest.hexdigest()

    def pending(self, started: list[str]) -> list[str]:
        """Services that have not loaded what is wanted; ``started`` are about to, or just did."""
        fresh = {service_of(sentence) for sentence in started}
        return [
            service
            for service, digest in sorted(self.wanted.items())
            if self._loaded.get(service) != digest and service not in fresh
        ]

    def tell(self, services: list[str]) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for service in services:
            entry = self._entries[service]
            word = base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
            headers = {"Authorization": f"Basic {word}"} if entry["username"] else {}
            request = urllib.request.Request(entry["url"], b"", headers)
            try:
                opener.open(request, timeout=RELOAD_SECONDS).close()
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace").strip()
                raise TreeError(f"{service} refuses to reload ({error.code}): {said}") from None
            except OSError as error:
                raise TreeError(f"{service} cannot be told to reload: {error}") from None


class Ownership:
    """Data of containers that belongs to another user than the one they are to run as.

    A new definition may name another user. What root has in there stays root's.
    """

    def __init__(self, tree: Tree) -> None:
        self._wrong: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
        for directory in tree.directories:
            wanted = uid_of(directory.owner), gid_of(directory.group)
            if directory.purge or wanted[0] == 0 or not os.path.isdir(directory.path):
                continue
            for entry in os.scandir(directory.path):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid not in (0, wanted[0]):
                    self._wrong[directory.path] = (status.st_uid, status.st_gid), wanted
                    break

    def __bool__(self) -> bool:
        return bool(self._wrong)

    def sentences(self) -> list[str]:
        return [f"give all of {path} to user {new[0]}" for path, (_, new) in self._wrong.items()]

    def change(self) -> None:
        for path, (old, new) in self._wrong.items():
            self._give(path, old, new)

    def change_back(self) -> None:
        for path, (old, new) in self._wrong.items():
            self._give(path, new, old)
            os.chown(path, *old)

    @staticmethod
    def _give(directory: str, old: tuple[int, int], new: tuple[int, int]) -> None:
        # From the bottom up: what a killed run left undone is found again. Whoever may write there
        # can swap an entry for a link at any time: what was looked at is held, and given away.
        for _, names, leaves, parent in os.fwalk(directory, topdown=False):
            for name in leaves + names:
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
                try:
                    if os.fstat(entry).st_uid == old[0]:
                        os.chown(f"/proc/self/fd/{entry}", *new)
                finally:
                    os.close(entry)


def present(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    project = Project(tree.name, module.params["directory"])
    found = tree.difference()
    live = {entry["service"]: entry["paths"] for entry in module.params["reload"]}
    restart, reload = disturbed(found, project.directory, live)
    reloads = Reloads(tree, module.params, reload)
    ownership = Ownership(tree)
    changes = found.sentences() + ownership.sentences()
    result: dict[str, Any] = {"diff": tree.diff(found)}
    docker_is = docker_state()
    if docker_is != "up":
        lacking = "is not installed" if docker_is == "missing" else "does not run"
        if not module.check_mode:
            raise TreeError(f"Docker {lacking} on this host: run the tag `docker` first")
        changes.append(f"deferred: Docker {lacking} yet, the project would be started")
        return {**result, "changed": True, "changes": changes}
    if found or not os.path.exists(f"{project.directory}/compose.yml"):
        with stage(tree, project.directory) as source:
            project.compose("config", "--quiet", source=source)
            tree.validate()
            validators = module.params["validate_in"]
            deferred = validate_in(validators, source, tree.name, pull=not module.check_mode)
            if module.check_mode:
                needed = project.needed(restart, source)
                changes += needed + [f"reload {s}" for s in reloads.pending(needed)] + deferred
                return {**result, "changed": bool(changes), "changes": changes}
    if module.check_mode:
        needed = project.needed(restart)
        changes += needed + [f"reload {service}" for service in reloads.pending(needed)]
        return {**result, "changed": bool(changes), "changes": changes}
    before = save_rollback(tree, found, []) if found or saved_rollback(tree) else None
    try:
        tree.apply(found)
        needed = project.needed(restart)
        if ownership:
            project.stop()
            ownership.change()
        if needed or ownership:
            again = [service_of(s) for s in needed if s.startswith("restart ")]
            project.up(module.params["wait_timeout"], again)
        told = reloads.pending(needed)
        reloads.tell(told)
    except (TreeError, OSError) as error:
        if before is None:
            raise
        raise TreeError(
            f"{error}\n{go_back(project, tree, before, module.params, reloads, ownership)}"
        ) from None
    tree.save(
        loaded=reloads.wanted or None,
        files=sorted(file.path for file in tree.files),
        directories=sorted(directory.path for directory in tree.directories) or None,
        applied=tree.fingerprint(),
        managed={**tree.managed(), "project": {tree.name: project.running_as_wanted()}},
    )
    discard_rollback(tree)
    changes += needed + [f"reload {service}" for service in told]
    return {**result, "changed": bool(changes), "changes": changes}


def go_back(
    project: Project,
    tree: Tree,
    before: Snapshot,
    params: dict[str, Any],
    reloads: Reloads,
    ownership: Ownership,
) -> str:
    """Restore the files that were there, run them, and say how that went."""
    try:
        before.restore()
        if ownership:
            project.stop()
            ownership.change_back()
        project.up(params["wait_timeout"])
        reloads.tell(list(reloads.wanted))
    except (TreeError, OSError) as error:
        return f"Went back to the previous definition, which does not work either: {error}"
    discard_rollback(tree)
    return "Went back to the previous definition."


def absent(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    project = Project(tree.name, module.params["directory"])
    files = [path for path in tree.record.get("files", []) if os.path.lexists(path)]
    usable = docker_state()
    if tree.record and usable == "down":
        raise TreeError(
            f"Docker does not run, so {tree.name} cannot be removed: run the tag `docker`"
        )
    containers = sorted(project.containers()) if usable == "up" else []
    images = project.images() if containers else {}
    networks = project.networks() if usable == "up" else []
    directories = [path for path in tree.empty_directories() if path != project.directory]
    leaving = [path for path in module.params["absent"] if is_there(path)]
    changes = [f"remove container {service}" for service in containers]
    changes += [f"remove network {name}" for name in networks]
    changes += [f"remove image {name}" for name in images]
    changes += [f"remove {path}" for path in [*files, *directories, *leaving]]
    if tree.record and not changes:
        changes = ["forget the project"]
    if changes and not module.check_mode:
        if containers or networks:
            project.down()
        for image in images.values():
            # In use by another project: then it stays.
            docker("image", "rm", image, check=False)
        for path in files:
            remove_path(path)
        if os.path.isdir(project.directory):
            shutil.rmtree(project.directory)
        for path in tree.empty_directories():
            os.rmdir(path)
        for path in leaving:
            remove_path(path)
        tree.forget()
    if not module.check_mode:
        note(module.params, "project", {tree.name: {}})
    return {"changed": bool(changes), "changes": changes}


def main() -> None:
    module = TreeModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        act = present if module.params["state"] == "present" else absent
        if module.check_mode:
            result = act(module, Tree(module.params))
        else:
            with locked(module.params["name"]):
                result = act(module, Tree(module.params))
    except (TreeError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
