"""pyinfra's deployment of what Prime Spark's roles keep on a host.

Written for speed: directories are managed once instead of once per file, packages are asked for in
one call, and containers are compared with the definition that is known to belong to the files.
"""

from __future__ import annotations

from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, StringCommand
from pyinfra.operations import apt, files, server, systemd
from pyinfra.operations.util import any_changed


class Containers(FactBase):
    """Service of a compose project to ``[state, hash of its definition]``."""

    default = dict

    def command(self, project: str) -> StringCommand:
        label = '{{.Label "com.docker.compose.%s"}}'
        form = " ".join([label % "service", "{{.State}}", label % "config-hash", "{{.Status}}"])
        return StringCommand(
            f"docker ps --all --filter label=com.docker.compose.project={project} --format '{form}'"
        )

    def process(self, output: list[str]) -> dict[str, list[str]]:
        rows = (line.split(" ", 3) for line in output)
        return {
            row[0]: [row[1], "unhealthy" if "(unhealthy)" in row[3] else row[2]] for row in rows
        }


Wanted = dict[str, Any]
wanted: Wanted = host.data.wanted
changes = {}  # path to the operation that manages it

for name, group in host.loop(wanted["groups"].items()):
    server.group(name=f"group {name}", group=name, gid=group["gid"], system=True)

for name, user in host.loop(wanted["users"].items()):
    server.user(name=f"user {name}", user=name, ensure_home=False, system=True, **user)

apt.packages(name="packages", packages=wanted["packages"], no_recommends=True)

for path, directory in host.loop(wanted["directories"].items()):
    files.directory(name=f"directory {path}", path=path, **directory)

for path, file in host.loop(wanted["files"].items()):
    changes[path] = files.put(
        name=f"file {path}",
        src=f"{host.data.contents}{path}",
        dest=path,
        create_remote_dir=False,
        **file,
    )

for path, link in host.loop(wanted["links"].items()):
    changes[path] = files.link(
        name=f"link {path}", path=path, target=link["target"], create_remote_dir=False
    )

unit_files = [done for path, done in changes.items() if path.startswith("/etc/systemd/system/")]
systemd.daemon_reload(name="daemon-reload", _if=any_changed(*unit_files))

for unit, state in host.loop(wanted["units"].items()):
    systemd.service(
        name=f"unit {unit}", service=unit, running=state["running"], enabled=state["enabled"]
    )
    if cause := [changes[path] for path in state["triggers"] if path in changes]:
        systemd.service(
            name=f"restart {unit}", service=unit, restarted=True, _if=any_changed(*cause)
        )

for name, project in host.loop(wanted["projects"].items()):
    compose = f"docker compose --project-name {name} --project-directory {project['directory']}"

    def differ(name: str = name, project: Wanted = project) -> bool:
        return bool(host.get_fact(Containers, project=name) != project["containers"])

    server.shell(
        name=f"project {name}",
        commands=f"{compose} up --detach --remove-orphans --wait",
        _if=differ,
    )
    if cause := [done for path, done in changes.items() if path.startswith(project["directory"])]:
        server.shell(name=f"restart {name}", commands=f"{compose} restart", _if=any_changed(*cause))

for key, value in host.loop(wanted["sysctls"].items()):
    server.sysctl(name=f"sysctl {key}", key=key, value=value)
