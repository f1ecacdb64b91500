#!/usr/bin/python
"""Ansible module: resolve what a host had before the fleet and what stands in the fleet's way."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_adopt
short_description: Take over what stands in the way of a host's roles, keeping what was before
description:
  - Does what M(host_precheck) refuses a host for and names the playbook adopt.yml as its remedy. No
    package is removed, no file deleted, no container removed.
  - Keeps a copy of every file that it or a role changes in C(/var/lib/prime-spark/adopted), and
    there the script C(undo), whose commands bring back what was before, the last step first.
  - What only the owner can decide is named in RV(left) and left as it is.
options:
  wanted:
    description: What the roles of this host want of it, as C(validate_inventory) returns it.
    type: dict
    required: true
  ports:
    description: TCP ports that services of ours will listen on, as M(host_precheck) takes them.
    type: list
    elements: dict
    default: []
  stop:
    description: Compose projects, containers and units to stop and keep from starting again. They
      are not removed.
    type: list
    elements: str
    default: []
"""

RETURN = r"""
steps:
  description: One sentence for each step that was done, or would be, with its name.
  type: list
  elements: str
  returned: always
left:
  description: One sentence for each thing that still stands in the way.
  type: list
  elements: str
  returned: always
"""

import os
import re
import shutil
import stat
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils import past
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.listeners import port_problems
from ansible_collections.prime_spark.fleet.plugins.module_utils.notes import write_private
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt, run
from ansible_collections.prime_spark.fleet.plugins.module_utils.state import recorded_roles

UNDO = f"{past.KEPT}/undo"
UNDO_HEAD = "#!/bin/sh -ex\n# Brings back what playbooks/adopt.yml found. Written by it.\n"
# A share whose server is dead holds up whoever unmounts it.
UNMOUNT_SECONDS = 30


class AdoptError(Exception):
    """A step cannot be done; the message says why and what helps."""


class Adoption:
    """The steps on this host, each done at once, or said only in check mode."""

    def __init__(self, params: dict[str, Any], check: bool) -> None:
        self.wanted: dict[str, Any] = params["wanted"]
        self.ports: list[dict[str, Any]] = params["ports"]
        self.check = check
        self.steps: list[str] = []
        self.unknown: list[str] = []

    def step(self, name: str, sentence: str, undo: list[str]) -> bool:
        """Note a step, with the commands that take it back; whether it has to be done."""
        self.steps.append(f"{name}: {sentence}")
        if self.check:
            return False
        before = past.read(UNDO).removeprefix(UNDO_HEAD) or f"rm -rf {past.KEPT}\n"
        lines = "".join(f"{line}\n" for line in [f"# {name}: {sentence}", *undo])
        os.makedirs(past.KEPT, mode=0o700, exist_ok=True)
        # A step that failed and is tried again is taken back once.
        if lines not in before:
            replace_file(UNDO, UNDO_HEAD + lines + before)
        os.chmod(UNDO, 0o700)
        return True

    def keep(self, path: str) -> str:
        """The place of a file's copy, which is made unless there is one."""
        place = past.KEPT + path
        if not self.check and not os.path.exists(place):
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            shutil.copy2(path, place)
        return place

    def resolved(self, name: str, value: Any) -> None:
        """Record that a step is done, for host_precheck."""
        write_private(past.RECORD, {**past.adopted(), name: value})

    # --- the steps, by the name that a finding has

    def docker(self) -> None:
        version = past.installed(past.DOCKER_CE)["docker-ce"]
        answer = attempt(["docker", "version", "--format", "{{.Server.Version}}"], timeout=30)
        if answer.returncode != 0:
            raise AdoptError(
                f"docker-ce {version} does not work: {(answer.stderr or answer.stdout).strip()}; "
                "`systemctl start docker` and `journalctl -u docker` say why"
            )
        there = os.path.exists(past.DAEMON)
        place = self.keep(past.DAEMON) if there else ""
        undo = [f"cp -p {place} {past.DAEMON}" if there else f"rm -f {past.DAEMON}"]
        undo.append("systemctl restart docker.service")
        if self.step("docker", f"docker-ce {version} stays and the role docker uses it", undo):
            self.resolved("docker", version)

    def fstab(self) -> None:
        mount_point = self.wanted["nas"]["mount_point"]
        text = past.read_to_change(past.FSTAB)
        lines = past.fstab_lines(text, mount_point)
        source = lines[0].split()[0]
        place = self.keep(past.FSTAB)
        undo = [f"cp -p {place} {past.FSTAB}", "systemctl daemon-reload", f"mount {mount_point}"]
        sentence = f"comment out the line of {source} at {mount_point} and unmount it"
        if not self.step("fstab", f"{sentence}; the role nas mounts the NAS there", undo):
            return
        self.unmount(mount_point)
        marked = {line: f"# The role nas mounts it: {line}" for line in lines}
        kept = [marked.get(line, line) for line in text.splitlines()]
        mode = stat.S_IMODE(os.stat(past.FSTAB).st_mode)
        replace_file(past.FSTAB, "\n".join(kept) + "\n")
        os.chmod(past.FSTAB, mode)
        run(["systemctl", "daemon-reload"], AdoptError)

    def mount(self) -> None:
        mount_point = self.wanted["nas"]["mount_point"]
        source = past.mounted_at(past.read("/proc/self/mountinfo"), mount_point)
        units = past.units_of(mount_point)
        active = [attempt(["systemctl", "is-active", "--quiet", name]).returncode for name in units]
        undo = [f"mv {past.KEPT}{past.UNITS}/{name} {past.UNITS}/{name}" for name in units]
        undo += ["systemctl daemon-reload"] if units else [f"mount {source} {mount_point}"]
        undo += [
            f"systemctl start {name}" for name, off in zip(units, active, strict=True) if not off
        ]
        what = " and ".join(part for part in (source, *units) if part)
        if not self.step("mount", f"take {what} away from {mount_point}, for the role nas", undo):
            return
        self.unmount(mount_point)
        for name in units:
            run(["systemctl", "disable", "--quiet", name], AdoptError)
            self.keep(f"{past.UNITS}/{name}")
            os.unlink(f"{past.UNITS}/{name}")
        run(["systemctl", "daemon-reload"], AdoptError)

    def unmount(self, mount_point: str) -> None:
        """Unmount what lies there, one over the other, and the automount that would mount again."""
        name = attempt(["systemd-escape", "--path", mount_point]).stdout.strip()
        attempt(["systemctl", "stop", f"{name}.automount"], timeout=UNMOUNT_SECONDS)
        while past.mounted_at(past.read("/proc/self/mountinfo"), mount_point):
            done = attempt(["umount", mount_point], timeout=UNMOUNT_SECONDS)
            if done.returncode != 0:
                raise AdoptError(
                    f"{mount_point} cannot be unmounted: {done.stderr.strip()}; stop what uses it "
                    f"(`fuser -vm {mount_point}`), then run this again"
                )

    def wireguard(self) -> None:
        path = f"/etc/wireguard/{past.WIREGUARD}.conf"
        unit = f"wg-quick@{past.WIREGUARD}.service"
        place = self.keep(path)
        undo = [f"systemctl stop {unit}", f"cp -p {place} {path}", f"systemctl start {unit}"]
        sentence = (
            f"keep {path} as {place}; the role wireguard replaces it under a timer that brings it "
            "back, and takes over its private key"
        )
        if self.step("wireguard", sentence, undo):
            self.resolved("wireguard", past.digest(past.read(path)))

    def ufw(self) -> None:
        rules = past.read(past.UFW_RULES)
        for rule in past.rules(self.wanted):
            if rule.among(rules):
                continue
            words = " ".join(rule.argv)
            undo = f"ufw {words.replace('route allow', 'route delete allow')}"
            if not rule.forward:
                undo = f"ufw delete {words}"
            if self.step("ufw", words, [undo]):
                run(["ufw", *rule.argv], AdoptError)

    def memory(self) -> None:
        path = past.command_line()
        text = past.read_to_change(path) if path else ""
        if not path or "cgroup_enable=memory" in text.split():
            return  # `left` says what is left to do.
        undo = [f"cp {self.keep(path)} {path}"]
        if self.step("memory", f"add {past.MEMORY_WORDS} to {path}", undo):
            replace_file(path, f"{text.strip()} {past.MEMORY_WORDS}\n")

    # --- what the operator named

    def stop(self, name: str) -> None:
        shown = '{{.ID}}\t{{.Names}}\t{{.Label "com.docker.compose.project"}}\t{{.State}}'
        listed = attempt(["docker", "ps", "--all", "--format", shown], timeout=30).stdout
        rows = [line.split("\t") for line in listed.splitlines()]
        mine = [row for row in rows if len(row) == 4 and name in (row[1], row[2])]
        if mine:
            ids = [row[0] for row in mine if row[3] in ("running", "restarting", "paused")]
            if ids:
                self.stop_containers(name, ids)
            return
        unit = name if "." in name else f"{name}.service"
        shown_unit = attempt(["systemctl", "show", "--property=LoadState,ActiveState", unit]).stdout
        if "LoadState=loaded" not in shown_unit:
            self.unknown.append(f"{name} is no compose project, container or unit of this host")
            return
        enabled = attempt(["systemctl", "is-enabled", "--quiet", unit]).returncode == 0
        if "ActiveState=active" in shown_unit or enabled:
            undo = [f"systemctl {'enable --now' if enabled else 'start'} {unit}"]
            if self.step("stop", f"stop {unit} and keep it from starting again", undo):
                run(["systemctl", "disable", "--now", "--quiet", unit], AdoptError)

    def stop_containers(self, name: str, ids: list[str]) -> None:
        policy = (
            "{{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}"
        )
        undo = []
        for each in ids:
            kept = attempt(["docker", "inspect", "--format", policy, each]).stdout.strip()
            undo.append(f"docker update --restart={kept.removesuffix(':0')} {each}")
        undo.append(f"docker start {' '.join(ids)}")
        sentence = f"stop {len(ids)} containers of {name} and keep them from starting again"
        if self.step("stop", sentence, undo):
            run(["docker", "update", "--restart=no", *ids], AdoptError)
            run(["docker", "stop", *ids], AdoptError)

    # --- all of it

    def findings(self) -> list[past.Finding]:
        return past.findings(self.wanted, self.wanted["roles"], recorded_roles())

    def resolve(self, stop: list[str]) -> list[str]:
        """Do all steps; what is left to the owner."""
        for name in stop:
            self.stop(name)
        for finding in self.findings():
            if finding.step:
                getattr(self, finding.step)()
        resolved = {step.partition(":")[0] for step in self.steps} if self.check else set()
        left = [f.sentence for f in self.findings() if f.step not in resolved or not f.step]
        left = self.unknown + [self.after(sentence) for sentence in left]
        named = "|".join(map(re.escape, stop))
        problems = port_problems(self.ports)
        # In check mode they still listen.
        return left + [
            problem
            for problem in problems
            if not (self.check and named and re.search(rf"\b({named})\b", problem))
        ]

    @staticmethod
    def after(sentence: str) -> str:
        if not sentence.startswith("its kernel accounts no memory"):
            return sentence
        path = past.command_line()
        if not path:
            return f"{sentence}: boot it with {past.MEMORY_WORDS}"
        return f"{sentence}: reboot, {path} has what it needs"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "wanted": {"type": "dict", "required": True},
            "ports": {"type": "list", "elements": "dict", "default": []},
            "stop": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    # Debian keeps these out of the PATH of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    adoption = Adoption(module.params, module.check_mode)
    try:
        left = adoption.resolve(module.params["stop"])
    except (AdoptError, OSError) as error:
        module.fail_json(msg=str(error), steps=adoption.steps)
    module.exit_json(changed=bool(adoption.steps), steps=adoption.steps, left=left)


if __name__ == "__main__":
    main()
