"""Filters that turn the variables of the role ``nas`` into units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

KEY_TYPES = ("ssh-", "ecdsa-", "sk-")

# What every network mount gets: it may fail, it waits for the network, and it brings no programs
# that run with more rights than their caller.
COMMON = ["_netdev", "nofail", "noatime", "nosuid", "nodev"]


def nas_unit(mount_point: str) -> str:
    """The name of the units for a mount point, as `systemd-escape --path` makes it."""
    parts = [part for part in mount_point.split("/") if part]
    if not mount_point.startswith("/") or not parts or ".." in parts:
        raise AnsibleFilterError(
            f"nas_mount_point is {mount_point!r}, expected an absolute path below /"
        )
    escaped = []
    for number, character in enumerate("/".join(parts)):
        if character == "/":
            escaped.append("-")
        elif character.isascii() and (character.isalnum() or character in ":_" or character == "."):
            first = number == 0 and character == "."
            escaped.append("\\x2e" if first else character)
        else:
            escaped += [f"\\x{byte:02x}" for byte in character.encode()]
    return "".join(escaped)


def nas_mount_settings(
    protocol: str,
    server: str,
    share: str,
    user: str,
    gid: int,
    directory: str,
    timeout: int,
) -> dict[str, Any]:
    """Source, type, options and TCP port of the mount, and a command that says why it fails.

    ``timeout`` bounds one request, seconds.
    """
    if not share.startswith("/"):
        raise AnsibleFilterError(f"nas_share is {share!r}, expected a path like /share")
    if protocol == "nfs4":
        # Soft: a dead server has to give an error, not a process that nothing can end.
        options = ["vers=4", "proto=tcp", "soft", f"timeo={timeout * 10}", "retrans=2"]
        return _settings(f"{server}:{share}", "nfs4", options, 2049)
    if protocol == "cifs":
        options = [f"credentials={directory}/cifs.credentials", "uid=0", f"gid={gid}"]
        options += ["file_mode=0660", "dir_mode=0770", "soft", f"echo_interval={timeout}"]
        return _settings(f"//{server}{share}", "cifs", options, 445)
    if protocol == "sshfs":
        # Without `reconnect`: sshfs ends with its connection, and the next use mounts again.
        options = ["allow_other", "default_permissions", "uid=0", f"gid={gid}", "umask=0007"]
        # Past the page cache: it mixes parts of a file that was replaced with parts of the new one.
        options += ["direct_io", "dir_cache=no"]
        options += [f"IdentityFile={directory}/id_ed25519", "IdentitiesOnly=yes"]
        options += [f"UserKnownHostsFile={directory}/known_hosts", "GlobalKnownHostsFile=/dev/null"]
        options += ["StrictHostKeyChecking=yes", "BatchMode=yes", "PasswordAuthentication=no"]
        options += [f"ConnectTimeout={timeout}", f"ServerAliveInterval={timeout}"]
        options += ["ServerAliveCountMax=2"]
        made = _settings(f"{user}@{server}:{share}", "fuse.sshfs", options, 22)
        # Those of ssh itself; sshfs tells nobody why ssh could not log in.
        words = [word for option in options if option[0].isupper() for word in ("-o", option)]
        return made | {"diagnose": ["ssh", *words, "-s", f"{user}@{server}", "sftp"]}
    raise AnsibleFilterError(f"nas_protocol {protocol!r} is none of nfs4, cifs, sshfs")


def _settings(what: str, fstype: str, options: list[str], port: int) -> dict[str, Any]:
    return {
        "what": what,
        "type": fstype,
        "options": ",".join(COMMON + options),
        "port": port,
        "diagnose": [],
    }


def nas_known_hosts(lines: list[str], server: str) -> str:
    """The pinned keys as known_hosts lines for the address that the mount uses.

    A line is `TYPE KEY` or a whole known_hosts line, whose names are replaced.
    """
    result = []
    for line in lines:
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if not fields[0].startswith(KEY_TYPES):
            fields = fields[1:]
        if len(fields) < 2 or not fields[0].startswith(KEY_TYPES):
            raise AnsibleFilterError(
                f"nas_host_keys: {line!r} is neither `TYPE KEY` nor a line of known_hosts"
            )
        result.append(f"{server} {fields[0]} {fields[1]}\n")
    return "".join(result)


def nas_client_keys(hosts: list[str], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """The public key by host, of those hosts of this run that mount by SSH.

    An empty key is one that check mode did not make.
    """
    found = {}
    for host in hosts:
        probe = hostvars[host].get("__nas_probe") or {}
        if probe.get("protocol") == "sshfs":
            found[host] = str(probe.get("public_key") or "")
    return found


class FilterModule:
    """The filters of the role ``nas``."""

    def filters(self) -> dict[str, Any]:
        return {
            "nas_client_keys": nas_client_keys,
            "nas_known_hosts": nas_known_hosts,
            "nas_mount_settings": nas_mount_settings,
            "nas_unit": nas_unit,
        }
