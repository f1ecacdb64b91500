"""Files that belong together on a host: compare, stage and validate, write, record.

Shared by the modules ``config_tree`` and ``compose_project``. A *tree* is the full set of files
that one owner (a role, a compose project) has on a host. What the record says was written earlier
and is no longer wanted is removed, so a tree is authoritative even in a directory it shares.
"""

from __future__ import annotations

import dataclasses
import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import (
    OWNER_ARGUMENTS,
    note,
    unseal,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import finish, said

RECORD_DIR = "/var/lib/prime-spark/trees"
# Where drop-ins of a unit lie: an administrator's, `systemctl edit --runtime`, `set-property`.
UNIT_DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
)
UNIT_SUFFIXES = (".service", ".timer", ".mount", ".automount", ".socket", ".path")

FILE_OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0644"},
}
SECRET_FILE_OPTIONS: dict[str, dict[str, Any]] = {
    **FILE_OPTIONS,
    "content": {"type": "str", "required": True, "no_log": True},
    "mode": {"type": "str", "default": "0600"},
}
DIRECTORY_OPTIONS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "required": True},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str", "default": "0755"},
    "purge": {"type": "bool", "default": False},
}
WATCH_OPTIONS: dict[str, dict[str, Any]] = {
    kind: {"type": "list", "elements": "str", "default": []}
    for kind in ("paths", "users", "groups")
}
TREE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "files": {"type": "list", "elements": "dict", "default": [], "options": FILE_OPTIONS},
    "secret_files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": SECRET_FILE_OPTIONS,
        # The marker is on `content`; without False here the whole list would be hidden.
        "no_log": False,
    },
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": DIRECTORY_OPTIONS,
    },
    "validate": {"type": "list", "elements": "list", "default": []},
    **OWNER_ARGUMENTS,
    "watch": {"type": "dict", "default": {}, "options": WATCH_OPTIONS},
    "absent": {"type": "list", "elements": "path", "default": []},
}


class TreeModule(AnsibleModule):
    """A module that takes secret files, and says in the journal only for what it was called.

    Ansible writes every module's arguments to the host's journal. It takes out the values marked
    ``no_log`` from the list's printed form, in which a line break is written as two characters: a
    value of more than one line stays.
    """

    def _log_invocation(self) -> None:
        files = len(self.params.get("files") or []) + len(self.params.get("secret_files") or [])
        name = self.params.get("name") or "a command"
        self.log(f"Invoked for {name}, state {self.params.get('state')}, {files} files")


class TreeError(Exception):
    """A tree cannot be compared, validated or written; the message says which file and why."""


def uid_of(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise TreeError(f"no user {name!r} on this host") from None


def gid_of(name: str) -> int:
    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise TreeError(f"no group {name!r} on this host") from None


@dataclasses.dataclass(frozen=True)
class File:
    """One wanted file."""

    path: str
    content: bytes
    owner: str
    group: str
    mode: int
    secret: bool

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Directory:
    """One wanted directory; ``purge`` means that it holds nothing but this tree's files."""

    path: str
    owner: str
    group: str
    mode: int
    purge: bool


@dataclasses.dataclass
class Difference:
    """What separates the host from the wanted tree."""

    write: list[File] = dataclasses.field(default_factory=list)
    attributes: list[File] = dataclasses.field(default_factory=list)
    make: list[Directory] = dataclasses.field(default_factory=list)
    remove: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.write or self.attributes or self.make or self.remove)

    def disturbs(self) -> bool:
        """Whether the tree's consumers may have read something else than what is wanted."""
        return bool(self.write or self.remove)

    def sentences(self) -> list[str]:
        lines = [f"directory {d.path}" for d in self.make]
        lines += [f"write {f.path}" for f in self.write]
        lines += [f"owner or mode of {f.path}" for f in self.attributes]
        lines += [f"remove {path}" for path in self.remove]
        return lines


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise TreeError(f"{path} is a directory, but a file is wanted there") from None


def tree_files(params: dict[str, Any]) -> list[File]:
    """The files of a module's ``files`` and ``secret_files``."""
    return [
        File(
            path=os.path.normpath(item["path"]),
            content=item["content"].encode(),
            owner=item["owner"],
            group=item["group"],
            mode=int(item["mode"], 8),
            secret=secret,
        )
        for key, secret in (("files", False), ("secret_files", True))
        for item in params[key]
    ]


def stage_files(files: list[File], stage: str) -> None:
    """Lay the files out below ``stage``, each at its full path, for a program to validate."""
    for file in files:
        path = stage + file.path
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as stream:
            stream.write(file.content)
        os.chmod(path, file.mode)


def is_mount_point(path: str) -> bool:
    """Whether a directory is a mount point.

    Of a file the device number says nothing: on an overlay it may be another than its directory's.
    """
    return os.path.isdir(path) and os.path.ismount(path)


def is_there(path: str) -> bool:
    """Whether there is something to remove; an empty mount point cannot be removed."""
    return os.path.lexists(path) and not (is_mount_point(path) and not os.listdir(path))


def remove_path(path: str) -> None:
    """Remove a file, a link or a whole directory; of a mount point, what is in it."""
    if is_mount_point(path):
        for name in os.listdir(path):
            remove_path(os.path.join(path, name))
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def account(name: str) -> str:
    """What makes a user or a group, ``user:NAME`` or ``group:NAME``; empty where there is none."""
    kind, _, who = name.partition(":")
    try:
        if kind == "group":
            return f"{grp.getgrnam(who).gr_gid}"
        entry = pwd.getpwnam(who)
    except KeyError:
        return ""
    return f"{entry.pw_uid}:{entry.pw_gid}:{entry.pw_dir}:{entry.pw_shell}"


def path_state(path: str) -> str:
    """Kind, mode and owner of a path, of a file its digest as well; empty where nothing is."""
    try:
        status = os.lstat(path)
        state = f"{status.st_mode:o} {status.st_uid} {status.st_gid}"
        if not stat.S_ISREG(status.st_mode):
            return state
        return f"{state} {hashlib.sha256(read(path) or b'').hexdigest()}"
    except OSError:
        return ""


def unit_files(paths: list[str]) -> list[str]:
    """Names of the units whose files are among some paths; templates are none."""
    found = (os.path.split(path) for path in paths)
    return [
        name
        for directory, name in found
        if directory == UNIT_DIRECTORIES[0] and name.endswith(UNIT_SUFFIXES) and "@" not in name
    ]


def drop_ins(path: str) -> list[str]:
    """Files that change a unit of ours from outside its file; empty where ``path`` is no unit.

    What the owner adds to a unit of a distribution's package stays: its file is not ours.
    """
    directory, name = os.path.split(path)
    if directory != UNIT_DIRECTORIES[0] or not name.endswith(UNIT_SUFFIXES):
        return []
    found = []
    for place in UNIT_DIRECTORIES:
        folder = os.path.join(place, f"{name}.d")
        if os.path.isdir(folder):
            found += [os.path.join(folder, leaf) for leaf in sorted(os.listdir(folder))]
    return found


class Tree:
    """The wanted files of one owner, and the record of what was written for it before."""

    def __init__(self, params: dict[str, Any], record_dir: str = RECORD_DIR) -> None:
        self.name: str = params["name"]
        self.role: str = params.get("role") or ""
        self.run: str = params.get("run") or ""
        self.watch: dict[str, list[str]] = {
            kind: names for kind, names in (params.get("watch") or {}).items() if names
        }
        self.files = tree_files(params)
        self.directories = [
            Directory(
                path=os.path.normpath(item["path"]),
                owner=item["owner"],
                group=item["group"],
                mode=int(item["mode"], 8),
                purge=item["purge"],
            )
            for item in params["directories"]
        ]
        self.validators: list[list[str]] = params["validate"]
        self.record_path = os.path.join(record_dir, f"{self.name}.json")
        raw = read(self.record_path)
        try:
            self.record: dict[str, Any] = json.loads(raw) if raw else {}
        except ValueError:
            self.record = {}

    def fingerprint(self, extra: str = "") -> str:
        """One hash over everything that the tree's consumers can see."""
        digest = hashlib.sha256(extra.encode())
        for file in sorted(self.files, key=lambda f: f.path):
            line = f"\0{file.path}\0{file.owner}\0{file.group}\0{file.mode:o}\0{file.digest}"
            digest.update(line.encode())
        return digest.hexdigest()

    def difference(self) -> Difference:
        found = Difference()
        for directory in self.directories:
            try:
                status = os.stat(directory.path)
            except FileNotFoundError:
                found.make.append(directory)
                continue
            if (status.st_mode & 0o7777, status.st_uid, status.st_gid) != (
                directory.mode,
                uid_of(directory.owner),
                gid_of(directory.group),
            ):
                found.make.append(directory)
        for file in self.files:
            if read(file.path) != file.content or os.path.islink(file.path):
                found.write.append(file)
                continue
            status = os.stat(file.path)
            if (status.st_mode & 0o7777, status.st_uid, status.st_gid) != (
                file.mode,
                uid_of(file.owner),
                gid_of(file.group),
            ):
                found.attributes.append(file)
        found.remove = self._unwanted()
        return found

    def _unwanted(self) -> list[str]:
        wanted = {file.path for file in self.files}
        kept = {directory.path for directory in self.directories}
        unwanted = {path for path in self.record.get("files", []) if path not in wanted}
        for directory in self.directories:
            if not directory.purge:
                continue
            for root, names, leaves in os.walk(directory.path):
                unwanted.update(
                    path
                    for path in (os.path.join(root, leaf) for leaf in leaves)
                    if path not in wanted
                )
                unwanted.update(
                    path
                    for path in (os.path.join(root, name) for name in names)
                    if path not in kept
                    and not any(want.startswith(path + os.sep) for want in wanted | kept)
                )
        for file in self.files:
            unwanted.update(path for path in drop_ins(file.path) if path not in wanted)
        return sorted(path for path in unwanted if os.path.lexists(path))

    def diff(self, found: Difference) -> list[dict[str, str]]:
        """Ansible's diff structure; of a secret only that it differs."""
        shown = []
        for file in found.write:
            if file.secret:
                shown.append({"header": file.path, "prepared": "(secret: content not shown)\n"})
                continue
            before = (read(file.path) or b"").decode(errors="replace")
            shown.append(
                {
                    "before_header": file.path,
                    "after_header": file.path,
                    "before": before,
                    "after": file.content.decode(errors="replace"),
                }
            )
        others = [s for s in found.sentences() if not s.startswith("write ")]
        if others:
            shown.append({"header": self.name, "prepared": "\n".join(others) + "\n"})
        return shown

    def validate(self) -> None:
        """Run the validators over the complete new tree, before anything on the host changes.

        ``{stage}`` in a validator is a directory under which every file lies at its full path.
        A validator whose program is not installed yet is left out: the run that installs it comes
        back here.
        """
        if not self.validators:
            return
        with tempfile.TemporaryDirectory(prefix="prime-spark-stage-") as stage:
            stage_files(self.files, stage)
            for validator in self.validators:
                argv = [str(word).replace("{stage}", stage) for word in validator]
                if shutil.which(argv[0]) is None:
                    continue
                done = finish(argv)
                if done.returncode != 0:
                    raise TreeError(
                        f"the new configuration of {self.name} is not valid; nothing was changed. "
                        f"`{' '.join(str(w) for w in validator)}` said: "
                        f"{said(done).replace(stage, '')}"
                    )

    def apply(self, found: Difference) -> None:
        if found:
            # Until the role has been played to its end nothing vouches for it: what a run that ends
            # here leaves may be more than the manifest of before knows of.
            unseal(self.role)
        for directory in found.make:
            os.makedirs(directory.path, exist_ok=True)
            os.chown(directory.path, uid_of(directory.owner), gid_of(directory.group))
            os.chmod(directory.path, directory.mode)
        # What is written is recorded first: after a crash in between the files are still ours.
        known = set(self.record.get("files", []))
        if known != {file.path for file in self.files}:
            self.save(files=sorted(known | {file.path for file in self.files}))
        for file in found.write:
            os.makedirs(os.path.dirname(file.path), exist_ok=True)
            owner = uid_of(file.owner), gid_of(file.group)
            replace_file(file.path, file.content, file.mode, owner)
        for file in found.attributes:
            os.chown(file.path, uid_of(file.owner), gid_of(file.group))
            os.chmod(file.path, file.mode)
        for path in sorted(found.remove, reverse=True):
            if os.path.isdir(path) and not os.path.islink(path):
                os.rmdir(path)
            else:
                os.unlink(path)

    def empty_directories(self) -> list[str]:
        """Recorded directories that no other tree has and that would be empty without our files."""
        ours = list(self.record.get("directories") or [])
        others: set[str] = set()
        folder = os.path.dirname(self.record_path)
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if not name.endswith(".json") or path == self.record_path:
                continue
            try:
                others.update(json.loads(read(path) or b"{}").get("directories") or [])
            except ValueError:
                continue
        files = set(self.record.get("files") or []) | set(self.record.get("links") or [])
        going: list[str] = []
        for path in sorted(set(ours) - others, reverse=True):
            if not os.path.isdir(path) or os.path.islink(path) or os.path.ismount(path):
                continue
            left = {os.path.join(path, name) for name in os.listdir(path)} - files - set(going)
            if not left:
                going.append(path)
        return going

    def save(self, **entries: Any) -> None:
        """Merge entries into the record on the host; an entry of None is dropped."""
        record = {**self.record, **entries}
        if self.role:
            record["role"] = self.role
            record["run"] = self.run or None
        record = {key: value for key, value in record.items() if value is not None}
        note({"role": self.role, "run": self.run}, "record", {self.name: None})
        if record == self.record:
            return
        os.makedirs(os.path.dirname(self.record_path), mode=0o755, exist_ok=True)
        replace_file(self.record_path, json.dumps(record, indent=1, sort_keys=True))
        self.record = record

    @property
    def rollback_path(self) -> str:
        """Where module_utils.undo notes what was there before."""
        return self.record_path.removesuffix(".json") + ".before"

    def managed(self) -> dict[str, Any]:
        """What the tree has on the host, as the drift probe compares it (module_utils.state)."""
        kept = {file.path for file in self.files} | {d.path for d in self.directories}
        return {
            "files": {
                file.path: [file.digest, f"{file.mode:04o}", file.owner, file.group]
                for file in self.files
            },
            "directories": {
                entry.path: [
                    f"{entry.mode:04o}",
                    entry.owner,
                    entry.group,
                    sorted(path for path in kept if path.startswith(entry.path + os.sep))
                    if entry.purge
                    else None,
                ]
                for entry in self.directories
            },
            "paths": {path: path_state(path) for path in self.watch.get("paths", [])},
            "accounts": {
                who: account(who)
                for kind in ("user", "group")
                for who in (f"{kind}:{name}" for name in self.watch.get(f"{kind}s", []))
            },
        }

    def forget(self) -> None:
        unseal(self.role)
        for path in (self.record_path, self.rollback_path):
            if os.path.exists(path):
                os.unlink(path)
