#!/usr/bin/python
"""Ansible module: make a host fresh from its maker's image manageable."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_bootstrap
short_description: Login user, key, sudo, host name, time, journal, swap and memory accounting
description:
  - Changes what is not as wanted and nothing else, so that a second run changes nothing.
  - Refuses a user land of 32 bits under a kernel of 64, before any change.
  - Packages are not installed here. RV(packages) names those that are needed and missing; what
    needs one of them is reported as deferred until it is there.
options:
  user:
    description: Login user of later runs, who may use sudo without a password.
    type: str
    required: true
  keys:
    description: Public keys with which that user may log in; other keys stay.
    type: list
    elements: str
    default: []
  hostname:
    description: Name of the host.
    type: str
    required: true
  timezone:
    description: Time zone, C(Europe/Berlin) say.
    type: str
    required: true
  journal_mb:
    description: Most that the journal may take.
    type: int
    required: true
  zram_percent:
    description: Share of the memory to swap to compressed memory, where no swap is active; 0 for
      none. Left out in a container, which has the swap of its machine.
    type: int
    default: 50
"""

RETURN = r"""
packages:
  description: Packages that are needed and missing.
  type: list
  elements: str
  returned: always
changes:
  description: One sentence for each change.
  type: list
  elements: str
  returned: always
reboot:
  description: Whether a change takes effect at the next boot only.
  type: bool
  returned: always
"""

import os
import pwd
import re
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.prime_spark.fleet.plugins.module_utils import past
from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import (
    replace_file,
    replace_link,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt, run

# Each keeps the clock; which one is the owner's choice.
TIME_SYNC = ("systemd-timesyncd", "chrony", "ntpsec", "openntpd")
ZRAM = "systemd-zram-generator"
ZRAM_CONF = "/etc/systemd/zram-generator.conf.d/prime-spark.conf"
JOURNAL_CONF = "/etc/systemd/journald.conf.d/prime-spark.conf"
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class BootstrapError(Exception):
    """The host cannot be prepared; the message says why and what helps."""


class Bootstrap:
    """The steps, each done at once where something differs, or said only in check mode."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.check = bool(module.check_mode)
        self.changes: list[str] = []
        self.reboot = False

    def change(self, sentence: str) -> bool:
        """Note a change; whether it has to be made."""
        self.changes.append(sentence)
        return not self.check

    def write(self, path: str, text: str, mode: int) -> bool:
        """Have a file of root's with this text; whether it was written."""
        if past.read(path) == text and os.stat(path).st_mode & 0o777 == mode:
            return False
        if not self.change(f"write {path}"):
            return False
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace_file(path, text)
        os.chmod(path, mode)
        return True

    # --- the login user

    def user(self) -> None:
        name = self.params["user"]
        if name == "root":
            return
        try:
            home = pwd.getpwnam(name).pw_dir
        except KeyError:
            home = f"/home/{name}"
            if self.change(f"add the user {name}"):
                argv = ["useradd", "--create-home", "--shell", "/bin/bash", name]
                run(argv, BootstrapError)
        self.authorize(name, home)
        self.sudoers(name)

    def authorize(self, name: str, home: str) -> None:
        path = f"{home}/.ssh/authorized_keys"
        there = past.read_to_change(path)
        # A key behind options may log in for one command only, one behind a # not at all.
        known = {key_of(line) for line in there.splitlines()}
        missing = [key for key in self.params["keys"] if key_of(key) not in known]
        if not missing or not self.change(f"authorize {len(missing)} keys of {name}"):
            return
        owner = pwd.getpwnam(name)
        if not os.path.isdir(os.path.dirname(path)):
            os.mkdir(os.path.dirname(path), 0o700)
            os.chown(os.path.dirname(path), owner.pw_uid, owner.pw_gid)
        text = there if there.endswith("\n") or not there else f"{there}\n"
        replace_file(path, text + "".join(f"{key.strip()}\n" for key in missing))
        os.chmod(path, 0o600)
        os.chown(path, owner.pw_uid, owner.pw_gid)

    def sudoers(self, name: str) -> None:
        path, text = f"/etc/sudoers.d/{name}", f"{name} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        if past.read(path) == text:
            return
        if not self.change(f"let {name} use sudo without a password"):
            return
        # A file that sudo cannot read would lock everybody out of it.
        with tempfile.NamedTemporaryFile("w", prefix="prime-spark-sudoers-") as draft:
            draft.write(text)
            draft.flush()
            run(["visudo", "--check", f"--file={draft.name}"], BootstrapError)
        replace_file(path, text)
        os.chmod(path, 0o440)

    # --- the host

    def hostname(self) -> None:
        name = self.params["hostname"]
        before = past.read("/etc/hostname").strip()
        right = before == name == os.uname().nodename
        if not right and self.change(f"name the host {name}"):
            replace_file("/etc/hostname", f"{name}\n")
            os.chmod("/etc/hostname", 0o644)
            run(["hostname", name], BootstrapError)
        hosts = past.read_to_change("/etc/hosts")
        # sudo asks for the address of the host's own name.
        if name not in hosts.split():
            kept = [
                line for line in hosts.splitlines() if line.split()[:2] != ["127.0.1.1", before]
            ]
            if self.change(f"give {name} an address in /etc/hosts"):
                replace_file("/etc/hosts", "\n".join([*kept, f"127.0.1.1 {name}"]) + "\n")
                os.chmod("/etc/hosts", 0o644)

    def timezone(self) -> None:
        zone = f"/usr/share/zoneinfo/{self.params['timezone']}"
        if not os.path.isfile(zone) and "tzdata" not in missing_packages(self.params):
            raise BootstrapError(f"{self.params['timezone']} is no time zone: see {zone}")
        right = os.path.realpath("/etc/localtime") == os.path.realpath(zone)
        if not right and self.change(f"set the time zone {self.params['timezone']}"):
            replace_link("/etc/localtime", zone)

    def time_sync(self) -> None:
        name = next(iter(past.installed(TIME_SYNC)), "")
        unit = f"{name}.service"
        # It was masked by somebody who knows why: a container has its machine's clock.
        state = attempt(["systemctl", "is-enabled", unit]).stdout.strip()
        if name and state == "disabled" and self.change(f"run {unit}"):
            run(["systemctl", "enable", "--now", "--quiet", unit], BootstrapError)

    def journal(self) -> None:
        text = f"[Journal]\nSystemMaxUse={self.params['journal_mb']}M\n"
        if self.write(JOURNAL_CONF, text, 0o644):
            run(["systemctl", "restart", "systemd-journald.service"], BootstrapError)

    def swap(self) -> None:
        if not wants_zram(self.params):
            return
        text = f"[zram0]\nzram-size = ram * {self.params['zram_percent']} / 100\n"
        if self.write(ZRAM_CONF, text, 0o644):
            run(["systemctl", "daemon-reload"], BootstrapError)
            run(["systemctl", "start", "systemd-zram-setup@zram0.service"], BootstrapError)

    def memory(self) -> None:
        if not past.kernel_findings(past.read("/proc/cmdline")):
            return
        self.reboot = True
        path = past.command_line()
        text = past.read_to_change(path) if path else ""
        lacks = path and "cgroup_enable=memory" not in text.split()
        if lacks and self.change(f"add {past.MEMORY_WORDS} to {path}"):
            replace_file(path, f"{text.strip()} {past.MEMORY_WORDS}\n")

    def all(self) -> None:
        for finding in past.userland_findings(sys.maxsize.bit_length() + 1, os.uname().machine):
            raise BootstrapError(finding.sentence)
        if not USER.fullmatch(self.params["user"]):
            raise BootstrapError(f"{self.params['user']!r} is no name of a user")
        if not HOSTNAME.fullmatch(self.params["hostname"]):
            raise BootstrapError(f"{self.params['hostname']!r} is no name of a host")
        if self.params["user"] != "root" and not self.params["keys"]:
            raise BootstrapError(
                "no public key to authorize: expected one of bootstrap_public_key on the controller"
            )
        for step in (
            *(self.user, self.hostname, self.timezone, self.time_sync),
            *(self.journal, self.swap, self.memory),
        ):
            step()


def key_of(line: str) -> str:
    """Type and key of a line of authorized_keys, without its comment."""
    return " ".join(line.split()[:2])


def in_container() -> bool:
    return attempt(["systemd-detect-virt", "--container", "--quiet"]).returncode == 0


def wants_zram(params: dict[str, object]) -> bool:
    """Whether the host swaps nowhere, or to what was set up here."""
    ours = os.path.exists(ZRAM_CONF)
    idle = len(past.read("/proc/swaps").splitlines()) < 2
    return bool(params["zram_percent"]) and (ours or idle) and not in_container()


def missing_packages(params: dict[str, object]) -> list[str]:
    """What the steps need and the host has not."""
    there = past.installed(["sudo", "tzdata", ZRAM, *TIME_SYNC])
    wanted = ["sudo", "tzdata"] + [ZRAM] * wants_zram(params)
    if not set(TIME_SYNC) & there.keys():
        wanted.append(TIME_SYNC[0])
    return [name for name in wanted if name not in there]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "user": {"type": "str", "required": True},
            # Public ones.
            "keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "hostname": {"type": "str", "required": True},
            "timezone": {"type": "str", "required": True},
            "journal_mb": {"type": "int", "required": True},
            "zram_percent": {"type": "int", "default": 50},
        },
        supports_check_mode=True,
    )
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    bootstrap = Bootstrap(module)
    try:
        bootstrap.all()
    except (BootstrapError, OSError) as error:
        module.fail_json(msg=str(error), changes=bootstrap.changes)
    module.exit_json(
        changed=bool(bootstrap.changes),
        changes=bootstrap.changes,
        packages=missing_packages(module.params),
        reboot=bootstrap.reboot,
    )


if __name__ == "__main__":
    main()
