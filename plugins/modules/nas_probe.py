#!/usr/bin/python
"""Ansible module: which protocol a host can speak with the NAS, and the host's key for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nas_probe
short_description: Choose the NAS protocol that the kernel has, and make the SSH key it needs
description:
  - V(auto) takes NFSv4 where the kernel has it, else sshfs.
  - The SSH key is made on the host and stays there; only the public key is returned.
extends_documentation_fragment: [prime_spark.fleet.tree.role]
options:
  protocol:
    description: The protocol asked for.
    type: str
    choices: [auto, nfs4, cifs, sshfs]
    required: true
  side:
    description: Whether the host mounts the share or serves it.
    type: str
    choices: [client, server]
    default: client
  key_path:
    description: File of the private SSH key; only a client with sshfs gets one.
    type: path
    default: /etc/prime-spark/nas/id_ed25519
  key_comment:
    description: Comment in the public key.
    type: str
    default: nas
"""

EXAMPLES = r"""
- name: See what the kernel has
  nas_probe:
    protocol: auto
  register: nas
"""

RETURN = r"""
protocol:
  description: The protocol to use.
  type: str
  returned: always
reason:
  description: Why this one, in words.
  type: str
  returned: always
public_key:
  description: Public SSH key of the host, empty where there is none.
  type: str
  returned: always
penalizes_sources:
  description: Whether an SSH server here locks addresses out for a while after failed log-ins.
  type: bool
  returned: always
"""

import os
import re
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.kernel import kernel_has
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import OWNER_ARGUMENTS, note
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt, run
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import path_state

# By side: the name in /proc/filesystems and the module that brings it.
KERNEL = {"client": ("nfs4", "nfsv4"), "server": ("nfsd", "nfsd")}


def choose(wanted: str, side: str, available: bool) -> tuple[str, str]:
    """The protocol and the reason for it."""
    if wanted != "auto":
        return wanted, "nas_protocol asks for it"
    what = "an NFSv4 client" if side == "client" else "an NFS server"
    if available:
        return "nfs4", f"the kernel has {what}"
    return "sshfs", f"the kernel has no {what.removeprefix('an ')}"


def penalizes(version: str) -> bool:
    """Whether an OpenSSH of what `ssh -V` says has PerSourcePenalties, as 9.8 and later have."""
    found = re.match(r"OpenSSH_(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) >= (9, 8)


def make_key(path: str, comment: str) -> None:
    """Make the key pair beside its place; an interrupted run leaves no half of it."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    stage = tempfile.mkdtemp(dir=directory, prefix=".new-")
    try:
        new = os.path.join(stage, "key")
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", new]
        run(argv, OSError)
        os.rename(f"{new}.pub", f"{path}.pub")
        os.rename(new, path)
    finally:
        shutil.rmtree(stage)


def note_choice(params: dict[str, Any], available: bool, keys: list[str]) -> None:
    """Note what the choice stands on: the kernel, where that was asked, and the host's key pair."""
    if params["protocol"] == "auto":
        filesystem, driver = KERNEL[params["side"]]
        expected = {"filesystem": filesystem, "module": driver, "there": available}
        note(params, "kernel", {params["side"]: expected})
    note(params, "path", {path: path_state(path) for path in keys})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "protocol": {
                "type": "str",
                "choices": ["auto", "nfs4", "cifs", "sshfs"],
                "required": True,
            },
            "side": {"type": "str", "choices": ["client", "server"], "default": "client"},
            # The name of the file is no secret.
            "key_path": {
                "type": "path",
                "default": "/etc/prime-spark/nas/id_ed25519",
                "no_log": False,
            },
            "key_comment": {"type": "str", "default": "nas", "no_log": False},
            **OWNER_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    available = params["protocol"] == "auto" and kernel_has(
        *KERNEL[params["side"]], load=not module.check_mode
    )
    protocol, reason = choose(params["protocol"], params["side"], available)
    path = params["key_path"]
    changed = False
    public = ""
    version = ""
    if params["side"] == "server" and protocol == "sshfs":
        version = attempt(["ssh", "-V"]).stderr
    try:
        if protocol == "sshfs" and params["side"] == "client":
            if not (os.path.exists(path) and os.path.exists(f"{path}.pub")):
                changed = True
                if not module.check_mode:
                    make_key(path, params["key_comment"])
            if os.path.exists(f"{path}.pub"):
                with open(f"{path}.pub", encoding="utf-8") as handle:
                    public = handle.read().strip()
        if not module.check_mode:
            note_choice(params, available, [path, f"{path}.pub"] if public else [])
    except OSError as error:
        module.fail_json(msg=f"cannot make {path}: {error}")
    module.exit_json(
        changed=changed,
        protocol=protocol,
        reason=reason,
        public_key=public,
        penalizes_sources=penalizes(version),
    )


if __name__ == "__main__":
    main()
