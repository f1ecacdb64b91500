"""Action side of ``host_precheck``: one clear line for a host that is away or cannot be used."""

from __future__ import annotations

import re
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.plan import Selection

# A host that has not answered by then is away; what comes later has the patience of ansible.cfg.
CONNECT_SECONDS = 10
NOT_SHARED = "-o ControlMaster=no -o ControlPath=none"


def clock_problem(host: float, before: float, after: float, tolerance: float) -> str:
    """A sentence when the host's clock was outside the span in which it was read."""
    offset = host - after if host > after else host - before if host < before else 0.0
    if abs(offset) <= tolerance:
        return ""
    direction = "ahead of" if offset > 0 else "behind"
    return (
        f"its clock is {abs(offset):.0f} s {direction} the controller's, expected at most "
        f"{tolerance:.0f} s; let both keep time (systemd-timesyncd or chrony)"
    )


def reason(error: Exception) -> str:
    """The last thing that ssh said, without what Ansible and ssh put around it."""
    lines = [line.strip() for line in str(error).replace("\r", "").splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Connection closed by UNKNOWN")]
    last = (said or lines or ["no reason given"])[-1].rsplit("over ssh: ", 1)[-1].rstrip(".")
    # Behind a ProxyCommand ssh knows neither address nor port.
    return last.replace("Connection to UNKNOWN port 65535", "connection")


def refusal(said: str, host: str, user: str, address: str) -> str:
    """What to do about a host that answers and does not let this run in; empty where it is away."""
    login = f"{user}@{address}" if user else address
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            f"{host} has another host key than the one that is known here: somebody else may be "
            f"answering. If it was installed again: `ssh-keygen -R {address}`, then `ssh {login}` "
            "and compare the fingerprint with the one on its console"
        )
    if "Host key verification failed" in said:
        return (
            f"the host key of {host} is not known here: `ssh {login}` once, and compare the "
            "fingerprint with the one on its console"
        )
    if "Permission denied (" in said or "Too many authentication failures" in said:
        return (
            f"{host} refuses the key of {user or 'this user'}: let it in there "
            f"(`ssh-copy-id {login}`), or set ansible_user and ansible_ssh_private_key_file"
        )
    if "a password is required" in said or re.search(r"Missing \w+ password", said):
        return (
            f"{user or 'this user'} needs a password for sudo on {host}: run with "
            "--ask-become-pass, or let it do without one (NOPASSWD in /etc/sudoers.d)"
        )
    if re.search(r"Incorrect \w+ password|incorrect password attempt", said):
        return f"sudo on {host} does not take the password that was given for {user}"
    if re.search(r"not in the sudoers file|may not run sudo|is not allowed to execute", said):
        return f"{user or 'this user'} may not use sudo on {host}: allow it in /etc/sudoers.d"
    return ""


class ActionModule(ActionBase):
    """Takes the module's options and ``clock_seconds``, the difference of clocks to allow."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = (task_vars or {})["inventory_hostname"]
        arguments = dict(self._task.args)
        tolerance = float(arguments.pop("clock_seconds", 5))
        arguments["roles"] = self.roles(host, task_vars or {})
        self.connect_alone()
        before = time.time()
        try:
            if list((task_vars or {})["ansible_run_tags"]) == ["verify"]:
                # Whether the host is there: all that a run which only looks has to know.
                self._low_level_execute_command("true")
                return {**result, "changed": False}
            seen = self._execute_module(module_args=arguments, task_vars=task_vars)
        except AnsibleError as error:
            return {**result, **self.kept_out(host, error)}
        if seen.get("unreachable"):
            return {**result, **self.deferred(host, seen.get("msg", ""))}
        if seen.get("failed"):
            said = "".join(str(seen.get(k, "")) for k in ("msg", "module_stderr", "module_stdout"))
            return {**result, **seen, **self.refused(host, said)}
        problems = list(seen["problems"])
        if problem := clock_problem(seen["time"], before, time.time(), tolerance):
            problems.append(problem)
        elif seen["synchronized"] is False:
            self._display.warning(f"{host}: nothing keeps its clock in sync, which was right now")
        result["changed"] = False
        if problems:
            result.update(
                failed=True, msg=f"{self.summary(host, problems)} Nothing on it was changed."
            )
        else:
            result.update({key: seen[key] for key in ("ansible_facts", "drift", "recorded")})
        return result

    def summary(self, host: str, problems: list[str]) -> str:
        """The message for some problems: one in it, several on a line of their own before it."""
        if len(problems) == 1:
            return f"{host}: {problems[0]}."
        self._display.display("\n".join(f"REFUSED  {host}: {each}" for each in problems), "red")
        return f"{host} has {len(problems)} problems, see the lines above."

    def kept_out(self, host: str, error: AnsibleError) -> dict[str, Any]:
        """The result for a host that let nobody in: only who cannot be reached is away."""
        if found := self.refused(host, str(error)):
            return found
        if isinstance(error, AnsibleConnectionFailure):
            return self.deferred(host, reason(error))
        raise error

    def refused(self, host: str, said: str) -> dict[str, Any]:
        """The failure of a host that answers and lets nobody in; empty for any other."""
        context = self._play_context
        why = refusal(said, host, context.remote_user or "", context.remote_addr or host)
        return {"failed": True, "msg": f"{why}. Nothing on it was changed."} if why else {}

    @staticmethod
    def roles(host: str, task_vars: dict[str, Any]) -> list[str]:
        """The roles of the host that this run may play."""
        stamps = (task_vars.get("inventory_validation") or {}).get("stamps") or {}
        tags, skipped = task_vars["ansible_run_tags"], task_vars["ansible_skip_tags"]
        asked = Selection(list(tags), list(skipped), full=False, whole=True)
        return [r for r, wanted in stamps.items() if host in wanted["hosts"] and asked.plays(r)[0]]

    def connect_alone(self) -> None:
        """Let one attempt decide, on a connection that is shared with nobody.

        One that an earlier run left open to a host that went away since hangs until its keepalives
        have failed; closing it would take it from another run that is under way.
        """
        if getattr(self._connection, "transport", "") == "ssh":
            self._connection.set_option("timeout", CONNECT_SECONDS)
            self._connection.set_option("reconnection_retries", 0)
            # What ssh is told first counts.
            others = self._connection.get_option("ssh_args") or ""
            self._connection.set_option("ssh_args", f"{NOT_SHARED} {others}")

    def deferred(self, host: str, why: str) -> dict[str, Any]:
        """The result that takes the host out of the run, after a line that says so.

        Ansible folds a long message and repeats what the host was asked, so it gets a short one.
        """
        self._display.display(
            f"{host} is unreachable ({why}): deferred, the next run catches it up", "bright purple"
        )
        return {"unreachable": True, "msg": "deferred"}
