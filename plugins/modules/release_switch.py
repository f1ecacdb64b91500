#!/usr/bin/python
"""Ansible module: point a service at another of the releases that its host still has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_switch
short_description: Go back to an earlier release of a Python service
description:
  - Lists the releases of a service on a host, the newest first, and switches the C(current) link to
    one of them, restarts the unit and waits until it is healthy. When it is not, everything goes
    back to the release that ran before and the task fails with the reason.
  - The release validates the present configuration before anything is switched. One that is too old
    for it is refused; deploy the commit that it came from instead.
  - The next run of the service's role goes forward again, with a restart.
  - A host without the service is not touched.
options:
  service:
    description: Name of the service, as the directory below C(root)/services.
    type: str
    required: true
  release:
    description: Hash of the release, or its beginning. Empty means the one before C(current).
    type: str
    default: ""
  root:
    description: Directory of the services.
    type: path
    default: /opt/prime-spark
  config_root:
    description: Directory of the services' configuration.
    type: path
    default: /etc/prime-spark
  health_timeout:
    description: Seconds until the service has to be healthy.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: Go back to the release before
  release_switch:
    service: telemetry
"""

RETURN = r"""
releases:
  description: Releases on the host, the newest first; each C(release), C(installed), C(current).
  type: list
  elements: dict
  returned: always
summary:
  description: What was done, or would be, in one sentence.
  type: str
  returned: always
there:
  description: Whether the host has the service.
  type: bool
  returned: always
"""

import contextlib
import json
import os
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import (
    replace_file,
    replace_link,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt, finish, said
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import (
    RECORD_DIR,
    TreeError,
    read,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.undo import locked
from ansible_collections.prime_spark.fleet.plugins.module_utils.units import (
    journal,
    run,
    unit_states,
    wait_healthy,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "service": {"type": "str", "required": True},
    "release": {"type": "str", "default": ""},
    "root": {"type": "path", "default": "/opt/prime-spark"},
    "config_root": {"type": "path", "default": "/etc/prime-spark"},
    "health_timeout": {"type": "int", "default": 60},
}
MARKER = ".complete"


def known_releases(home: str) -> list[dict[str, Any]]:
    """The complete releases below ``home``, the newest first."""
    directory = os.path.join(home, "releases")
    current = os.path.basename(os.path.realpath(os.path.join(home, "current")))
    found = []
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        # A release that is being removed or is not finished is none.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.append((os.stat(os.path.join(directory, name, MARKER)).st_mtime_ns, name))
    return [
        {
            "release": name,
            "installed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment / 1e9)),
            "current": name == current,
        }
        for moment, name in sorted(found, reverse=True)
    ]


def choose(releases: list[dict[str, Any]], wanted: str, service: str) -> str:
    """The release to switch to; raises TreeError where there is none or more than one."""
    names = [entry["release"] for entry in releases]
    present = ", ".join(
        f"{entry['release']}{' (current)' if entry['current'] else ''}" for entry in releases
    )
    if wanted:
        matching = [name for name in names if name.startswith(wanted)]
        if len(matching) != 1:
            said = "more than one release begins" if matching else "no release begins"
            raise TreeError(f"{said} with {wanted!r}; of {service} there are {present}")
        return str(matching[0])
    current = [number for number, entry in enumerate(releases) if entry["current"]]
    older = names[current[0] + 1 :] if current else names
    if not older:
        raise TreeError(
            f"{service} has no release before the current one; there are {present or 'none'}"
        )
    return str(older[0])


def validate_configuration(path: str, service: str, config: str) -> None:
    """Have the release check the present configuration; raises TreeError when it refuses it."""
    argv = [f"{path}/bin/prime-spark-{service}", "--config", config, "--check-config"]
    done = finish(argv)
    if done.returncode != 0:
        raise TreeError(
            f"release {os.path.basename(path)} does not understand the present configuration, so "
            f"nothing was switched: {said(done)}. Choose another, "
            "or check out the commit it came from and run site.yml"
        )


def gate(config: str, timeout: int) -> dict[str, Any] | None:
    """Where the service answers when it is healthy, by its own configuration."""
    http = json.loads(read(config) or b"{}").get("http")
    if not http:
        return None
    return {"url": f"http://{http['host']}:{http['port']}/health", "timeout": timeout}


def start(units: list[str], health: dict[str, Any] | None) -> None:
    """Restart the units and wait for the gate."""
    if not units:
        return
    attempt(["systemctl", "reset-failed", "--", *units])
    try:
        run(["systemctl", "restart", "--", *units])
    except TreeError as error:
        raise TreeError(f"{error}\nlast lines of {units[0]}:\n{journal(units[0])}") from None
    if health:
        wait_healthy(health, units)


def owe_restart(service: str, release: str, record_dir: str = RECORD_DIR) -> None:
    """Have the next run of the role see that something else runs than what it recorded."""
    path = os.path.join(record_dir, f"service-{service}.json")
    record = json.loads(read(path) or b"{}")
    if record:
        record["applied"] = f"rolled back to {release}"
        replace_file(path, json.dumps(record, indent=1, sort_keys=True))


def switch(params: dict[str, Any], releases: list[dict[str, Any]], check: bool) -> tuple[bool, str]:
    """Switch to the release that is wanted; returns whether anything changed, and the summary."""
    service, home = params["service"], os.path.join(params["root"], "services", params["service"])
    wanted = choose(releases, params["release"], service)
    current = next((entry["release"] for entry in releases if entry["current"]), "")
    if wanted == current:
        return False, f"{service} runs release {wanted} already"
    path, link = os.path.join(home, "releases", wanted), os.path.join(home, "current")
    config = os.path.join(params["config_root"], service, "config.json")
    validate_configuration(path, service, config)
    if check:
        return True, f"{service} would go from release {current or 'none'} to {wanted}"
    unit = f"prime-spark-{service}.service"
    units = [unit] if unit_states([unit])[unit].get("LoadState") == "loaded" else []
    before = os.readlink(link) if os.path.islink(link) else None
    health = gate(config, params["health_timeout"])
    owe_restart(service, wanted)
    replace_link(link, path)
    try:
        start(units, health)
    except (TreeError, OSError) as error:
        if before is None:
            raise
        replace_link(link, before)
        try:
            start(units, health)
        except (TreeError, OSError) as second:
            raise TreeError(
                f"{error}\nWent back to {current}, which does not work either: {second}"
            ) from None
        raise TreeError(f"{error}\nWent back to {current}, which is healthy.") from None
    healthy = ", which is healthy" if units and health else ""
    return True, f"{service} went from release {current or 'none'} to {wanted}{healthy}"


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    service = params["service"]
    home = os.path.join(params["root"], "services", service)
    releases = known_releases(home)
    if not os.path.isdir(home):
        summary = f"{service} is not on this host"
        module.exit_json(changed=False, there=False, releases=[], summary=summary)
    try:
        with contextlib.nullcontext() if module.check_mode else locked(f"service-{service}"):
            changed, summary = switch(params, known_releases(home), module.check_mode)
    except (TreeError, OSError, ValueError) as error:
        module.fail_json(msg=f"release of {service}: {error}", releases=releases, there=True)
    releases = known_releases(home)
    module.exit_json(changed=changed, there=True, releases=releases, summary=summary)


if __name__ == "__main__":
    main()
