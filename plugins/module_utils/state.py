"""Whether a host still is what its roles last brought up.

A role's *manifest* names every thing that the role manages, by kind, with what was there when the
run that brought it up had ended well. `differences` compares it with the host and changes nothing.
The manifest is sealed with a key that only the run knows, so that the controller notices a manifest
that was changed together with the thing it describes.
"""

from __future__ import annotations

import glob
import hashlib
import hmac
import json
import os
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.command import CommandError, execute
from ansible_collections.prime_spark.fleet.plugins.module_utils.kernel import kernel_has
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import (
    NOTES_DIR,
    ROLE_DIR,
    load,
    manifest_path,
    notes_path,
    unseal,
    write_private,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.ping import ping
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    RECORD_DIR,
    account,
    drop_ins,
    gid_of,
    path_state,
    uid_of,
    unit_files,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.units import printed, unit_states
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    WireGuardError,
    observed,
)

# Name of a thing to what is known of it, and to the sentences on what differs.
Things = dict[str, Any]
Found = dict[str, list[str]]

RUNNING = ("active", "reloading")
ENABLED = ("enabled", "static", "indirect")
# A sentence that starts so is a doubt: only a run can tell.
UNSURE = "unsure: "
PINGS = 3
MOUNT_SECONDS = 8.0
LOOK_SECONDS = 60


# --- files, directories and links -------------------------------------------------------------


def file_digest(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_difference(path: str, digest: str, mode: str, owner: str, group: str) -> str:
    """What about a file differs; empty for nothing."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no regular file"
        if file_digest(path) != digest:
            return f"content of {path}"
        wanted = (int(mode, 8), uid_of(owner), gid_of(group))
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    except Exception as error:
        return f"{path}: {error}"
    if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != wanted:
        return f"owner or mode of {path}"
    return ""


def directory_differences(
    path: str, mode: str, owner: str, group: str, kept: list[str] | None
) -> list[str]:
    """A directory's owner and mode and, where only ours may lie in it, what else does."""
    try:
        status = os.stat(path)
        wanted = (int(mode, 8), uid_of(owner), gid_of(group))
    except (FileNotFoundError, NotADirectoryError):
        return [f"{path} is missing"]
    except Exception as error:
        return [f"{path}: {error}"]
    found = []
    if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != wanted:
        found.append(f"owner or mode of {path}")
    if kept is not None:
        ours = set(kept)
        for root, names, leaves in os.walk(path):
            for name in [*names, *leaves]:
                inside = os.path.join(root, name)
                if inside not in ours and not any(k.startswith(inside + os.sep) for k in ours):
                    found.append(f"{inside} is not ours")
    return found


def look_at_trees(trees: Things) -> Found:
    """Files (digest, mode, owner, group), directories and links of each tree."""
    found: Found = {}
    for name, tree in trees.items():
        sentences = [
            sentence
            for path, expected in tree.get("files", {}).items()
            if (sentence := file_difference(path, *expected))
        ]
        for path, expected in tree.get("directories", {}).items():
            sentences += directory_differences(path, *expected)
        for path, target in tree.get("links", {}).items():
            if not os.path.islink(path) or os.readlink(path) != target:
                sentences.append(f"link {path}")
        for path in tree.get("files", {}):
            ours = tree["files"]
            sentences += [f"drop-in {extra}" for extra in drop_ins(path) if extra not in ours]
        found[name] = sentences
    return found


# --- units ------------------------------------------------------------------------------------


def look_at_units(units: Things) -> Found:
    """Loaded from what is on the disk; of those that run, running and started at a boot."""
    states = unit_states(sorted(units))
    found: Found = {}
    for name, expected in units.items():
        seen = states.get(name, {})
        active, enabled = seen.get("ActiveState", ""), seen.get("UnitFileState", "")
        sentences = []
        if expected["runs"] and active not in RUNNING:
            sentences.append(f"{name} is {active or 'unknown'}")
        if expected["runs"] and enabled not in ENABLED:
            sentences.append(f"{name} is {enabled or 'not there'}, expected enabled")
        if seen.get("NeedDaemonReload") == "yes":
            sentences.append(f"{name} was changed since systemd read it")
        found[name] = sentences
    return found


# --- packages, accounts, paths, releases --------------------------------------------------------


def look_at_packages(packages: Things) -> Found:
    """Installed; which version is none of a role's business."""
    names = sorted(packages)
    argv = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n", "--", *names]
    said = attempt(argv, timeout=LOOK_SECONDS).stdout
    installed = {line.split()[0] for line in said.splitlines() if line.endswith(" ok installed")}
    return {n: [] if n in installed else [f"package {n} is not installed"] for n in names}


def look_at_masks(units: Things) -> Found:
    return {
        name: []
        if os.path.realpath(f"/etc/systemd/system/{name}") == "/dev/null"
        else [f"{name} is not masked"]
        for name in units
    }


def look_at_accounts(accounts: Things) -> Found:
    found: Found = {}
    for name, expected in accounts.items():
        seen = account(name)
        word = name.replace(":", " ")
        found[name] = [] if seen == expected else [f"{word} is {'changed' if seen else 'missing'}"]
    return found


def look_at_gone(paths: Things) -> Found:
    return {path: [f"{path} is there again"] if os.path.lexists(path) else [] for path in paths}


def look_at_paths(paths: Things) -> Found:
    found: Found = {}
    for path, expected in paths.items():
        seen = path_state(path)
        found[path] = [] if seen == expected else [f"{path} is {'changed' if seen else 'missing'}"]
    return found


# --- containers ---------------------------------------------------------------------------------


def running_projects() -> dict[str, dict[str, str]] | None:
    """Project and service to the hash and state of its container; None without Docker."""
    done = attempt(
        ["docker", "ps", "--all", "--no-trunc", "--format", "{{json .}}", "--filter",
         "label=com.docker.compose.project"],
        timeout=LOOK_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        entry = json.loads(line)
        labels = dict(item.partition("=")[::2] for item in entry["Labels"].split(","))
        state = "unhealthy" if "(unhealthy)" in entry["Status"] else entry["State"]
        service = labels.get("com.docker.compose.service", entry["Names"])
        digest = labels.get("com.docker.compose.config-hash", "")
        services = found.setdefault(labels["com.docker.compose.project"], {})
        # Two containers of one service: one of them is not ours.
        services[service] = "twice" if service in services else f"{digest} {state}"
    return found


def look_at_projects(projects: Things) -> Found:
    """Every service's container, of the definition that was brought up, running and healthy."""
    running = running_projects()
    found: Found = {}
    for name, services in projects.items():
        if running is None:
            # Where nothing is expected, nothing need answer.
            found[name] = ["Docker does not answer"] if services else []
            continue
        seen, sentences = running.get(name, {}), []
        for service in sorted({*services, *seen}):
            if service not in seen:
                sentences.append(f"container {service} is missing")
            elif service not in services:
                sentences.append(f"container {service} is not ours")
            elif seen[service].split()[-1] != "running":
                sentences.append(f"container {service} is {seen[service].split()[-1]}")
            elif seen[service] != services[service]:
                sentences.append(f"container {service} has another definition")
        found[name] = sentences
    return found


# --- commands and what they print ---------------------------------------------------------------


def look_at_commands(commands: Things) -> Found:
    """What a command that makes something match would change, asked as in check mode."""

    def ask(params: dict[str, Any]) -> list[str]:
        try:
            changes: list[str] = execute(params, "", check_mode=True)
            return changes
        except (CommandError, OSError) as error:
            return [f"cannot be asked: {str(error).splitlines()[0][:300]}"]

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(commands, pool.map(ask, commands.values()), strict=True))


def look_at_loaded(loaded: Things) -> Found:
    """What the kernel has loaded, as a command prints it."""
    return {
        name: [] if printed(entry["argv"]) == entry["printed"] else [f"`{name}` prints otherwise"]
        for name, entry in loaded.items()
    }


# --- VPN and NAS --------------------------------------------------------------------------------


def look_at_interfaces(interfaces: Things) -> Found:
    """The running interface: its key, port, addresses, routes, and each peer."""
    found: Found = {}
    for name, expected in interfaces.items():
        try:
            seen = observed(name, expected["forward_rule"])
        except (WireGuardError, OSError) as error:
            found[name] = [f"{name}: {error}"]
            continue
        wanted = expected["seen"]
        unsure = silent(name, expected["calls"])
        found[name] = [
            f"{key} of {name}"
            for key in sorted({*wanted, *seen})
            if wanted.get(key) != seen.get(key)
        ] + [f"{UNSURE}{peer} does not answer through {name}" for peer in unsure]
    return found


def silent(name: str, calls: dict[str, str]) -> list[str]:
    """Of the peers that this host calls, by name with their addresses, those that do not answer.

    A peer that has another key since is one of them, and that only the run can tell.
    """
    return [
        peer
        for peer, address in calls.items()
        # The first packet after a while may wait for a handshake.
        if all(ping(address, interface=name) is None for _ in range(PINGS))
    ]


def look_at_mounts(mounts: Things) -> Found:
    """Whether the share can be used; mounts it where that happens on demand."""
    found: Found = {}
    for point, expected in mounts.items():
        # A process that touches a dead share can hang beyond the reach of any signal; it is left.
        look = subprocess.Popen(
            ["stat", os.path.join(point, expected["sentinel"])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            usable = look.wait(min(expected["timeout"], MOUNT_SECONDS)) == 0
        except subprocess.TimeoutExpired:
            look.kill()
            usable = False
        found[point] = [] if usable else [f"{UNSURE}{point} cannot be used now"]
    return found


def look_at_kernel(things: Things) -> Found:
    """Whether the kernel still has, or lacks, what a choice depended on."""
    found: Found = {}
    for name, expected in things.items():
        there = kernel_has(expected["filesystem"], expected["module"])
        state = "has" if there else "lacks"
        same = there == expected["there"]
        found[name] = [] if same else [f"the kernel {state} {expected['filesystem']} now"]
    return found


# --- the manifest -------------------------------------------------------------------------------


# Kind to what compares things of that kind with the host.
KINDS: dict[str, Callable[[Things], Found]] = {
    "tree": look_at_trees,
    "unit": look_at_units,
    "package": look_at_packages,
    "mask": look_at_masks,
    "account": look_at_accounts,
    "path": look_at_paths,
    "gone": look_at_gone,
    "project": look_at_projects,
    "command": look_at_commands,
    "loaded": look_at_loaded,
    "interface": look_at_interfaces,
    "kernel": look_at_kernel,
    "mount": look_at_mounts,
}


def of_record(name: str, managed: dict[str, Any]) -> dict[str, Things]:
    """Things of a tree or project, from what its record says of it."""
    links = managed.get("links", {})
    tree = {"files": managed["files"], "directories": managed["directories"], "links": links}
    units = {unit: {"runs": False} for unit in unit_files(list(managed["files"]))}
    units.update({unit: {"runs": True} for unit in managed.get("units", [])})
    complete = {
        f"{target}/.complete": path_state(f"{target}/.complete")
        for target in links.values()
        if "/releases/" in target
    }
    return {
        "tree": {name: tree},
        "unit": units,
        "path": {**managed["paths"], **complete},
        "account": managed["accounts"],
        "project": managed.get("project", {}),
        "loaded": managed.get("loaded", {}),
    }


class NotSealedError(Exception):
    """A role cannot be sealed; the message says why."""


def gather(role: str, run: str, records: str, notes: str) -> dict[str, Things]:
    """Everything that a run brought up for a role, as its modules noted it."""
    noted = load(notes_path(role, notes))
    if noted.get("run") != run:
        raise NotSealedError("another run has worked on it since")
    things: dict[str, Things] = {}
    for name in noted["things"].get("record", {}):
        record = load(os.path.join(records, f"{name}.json"))
        if record.get("run") != run or not record.get("managed"):
            raise NotSealedError(f"another run has worked on {name} since")
        for kind, found in of_record(name, record["managed"]).items():
            things.setdefault(kind, {}).update(found)
    for kind, more in noted["things"].items():
        if kind != "record":
            things.setdefault(kind, {}).update(more)
    return {kind: found for kind, found in things.items() if found}


def compare(manifests: dict[str, dict[str, Things]], skip: tuple[str, ...] = ()) -> Found:
    """Role to the sentences on what differs from its things; one look per kind for all roles."""
    kinds = [kind for kind in KINDS if kind not in skip]
    merged = {
        kind: {
            (role, name): value
            for role, things in manifests.items()
            for name, value in things.get(kind, {}).items()
        }
        for kind in kinds
    }

    def look(kind: str) -> list[tuple[str, str]]:
        wanted = merged[kind]
        try:
            # By name within one look: two roles may want the same package.
            seen = KINDS[kind]({name: value for (_, name), value in wanted.items()})
        except Exception as error:
            # A manifest that somebody wrote anything into must not end the run.
            seen = {name: [f"{kind} {name} cannot be compared: {error!r}"] for _, name in wanted}
        return [(role, sentence) for role, name in wanted for sentence in seen.get(name, [])]

    found: Found = {role: [] for role in manifests}
    with ThreadPoolExecutor(max_workers=len(kinds)) as pool:
        for pairs in pool.map(look, [kind for kind in kinds if merged[kind]]):
            for role, sentence in pairs:
                found[role].append(sentence)
    return {role: list(dict.fromkeys(sentences)) for role, sentences in found.items()}


def canonical(role: str, stamp: str, things: dict[str, Things]) -> str:
    """Digest of a manifest."""
    text = json.dumps([role, stamp, things], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(key: str, digest: str) -> str:
    """The seal of a digest under the key of one run, role and host."""
    return hmac.new(key.encode(), digest.encode(), hashlib.sha256).hexdigest()


def examine(roles: list[str], directory: str = ROLE_DIR) -> dict[str, dict[str, Any]]:
    """Role to stamp, nonce, seal and digest of its manifest, and what differs from it.

    A role without a manifest is left out.
    """
    manifests = {}
    for role in roles:
        manifest = load(manifest_path(role, directory))
        things = manifest.get("things")
        if isinstance(things, dict) and all(
            kind in KINDS and isinstance(found, dict) for kind, found in things.items()
        ):
            manifests[role] = manifest
    found = compare({role: manifest["things"] for role, manifest in manifests.items()})
    return {
        role: {
            **{word: str(manifest.get(word, "")) for word in ("stamp", "nonce", "seal")},
            "digest": canonical(role, str(manifest.get("stamp", "")), manifest["things"]),
            "differences": found[role],
        }
        for role, manifest in manifests.items()
    }


def seal(
    role: str,
    run: str,
    stamp: str,
    nonce: str,
    key: str,
    directory: str = ROLE_DIR,
    records: str = RECORD_DIR,
    notes: str = NOTES_DIR,
) -> list[str]:
    """Write the manifest of a role that was played to its end; returns what keeps it from that.

    A thing that is not as the role brought it up leaves the role without a manifest: the next run
    plays it again.
    """
    unseal(role, directory)
    try:
        things = gather(role, run, records, notes)
    except NotSealedError as error:
        return [str(error)]
    # What commands would change was just asked by the run itself.
    says = compare({role: things}, ("command",))[role]
    found = [sentence for sentence in says if not sentence.startswith(UNSURE)]
    if found:
        return found
    digest = canonical(role, stamp, things)
    manifest = {"stamp": stamp, "nonce": nonce, "seal": sealed(key, digest), "things": things}
    write_private(manifest_path(role, directory), manifest)
    os.unlink(notes_path(role, notes))
    return []


def recorded_roles(directory: str = RECORD_DIR) -> list[str]:
    """The roles that wrote trees or projects here; a record that cannot be read names none."""
    records = (load(path) for path in glob.glob(f"{directory}/*.json"))
    return sorted({str(record["role"]) for record in records if record.get("role")})
