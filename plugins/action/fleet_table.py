"""Action ``fleet_table``: print what every host was found to be, fail when something is wrong."""

from __future__ import annotations

import shutil
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import of_groups

COLUMNS = ("host", "roles", "vpn", "mounts", "containers", "units", "telemetry")


def table(rows: list[dict[str, str]], width: int) -> list[str]:
    """Lines of a table; the column of roles is cut to what the terminal's width leaves."""
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in COLUMNS}
    surplus = sum(widths.values()) + 2 * (len(COLUMNS) - 1) - max(width, 80)
    if surplus > 0:
        widths["roles"] = max(12, widths["roles"] - surplus)
    lines = []
    for row in [{c: c.upper() for c in COLUMNS}, *rows]:
        cells = []
        for column in COLUMNS:
            text = row[column]
            if len(text) > widths[column]:
                text = text[: widths[column] - 1] + "…"
            cells.append(text.ljust(widths[column]))
        lines.append("  ".join(cells).rstrip())
    return lines


class ActionModule(ActionBase):
    """Arguments stand in the documentation of the module."""

    TRANSFERS_FILES = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        rows, problems = [], []
        left_out: dict[str, list[str]] = {}
        deferred: list[str] = []
        waits_for = ", ".join(args["telemetry_waits_for"])
        for host in args["hosts"]:
            health = args["health"].get(host)
            roles = ", ".join(of_groups(args["groups"][host], "roles"))
            if host in args["deferred"]:
                rows.append({**dict.fromkeys(COLUMNS, "?"), "host": host, "roles": roles})
                deferred.append(f"{host}: it was unreachable, the next run catches it up")
                continue
            if not isinstance(health, dict) or "seen" not in health:
                problems.append(f"{host}: failed earlier in this run, nothing more is known of it")
                rows.append({**dict.fromkeys(COLUMNS, "?"), "host": host, "roles": roles})
                continue
            seen = health["seen"]
            trouble = list(health["problems"])
            telemetry = "-"
            if host in args["devices"] and waits_for:
                telemetry = f"waits for {waits_for}"
            elif host in args["devices"]:
                age = args["telemetry"].get(args["devices"][host])
                telemetry = "none" if age is None else f"{float(age):.0f} s ago"
                if age is None or float(age) > float(args["fresh"]):
                    trouble.append(
                        f"newest telemetry row: {telemetry}, expected within {args['fresh']} s"
                    )
            ages = seen["handshakes"].values()
            rows.append(
                {
                    "host": host,
                    "roles": roles,
                    "vpn": f"{max(ages)} s" if ages else "-",
                    "mounts": ", ".join(seen["mounts"]) or "-",
                    "containers": f"{seen['containers']} ok" if seen["containers"] else "-",
                    "units": f"{seen['units']} ok" if seen["units"] else "-",
                    "telemetry": telemetry,
                }
            )
            problems += [f"{host}: {sentence}" for sentence in trouble]
            deferred += [f"{host}: {sentence}" for sentence in health.get("deferred", [])]
            for sentence in health["left_out"]:
                left_out.setdefault(sentence, []).append(host)
        lines = ["", *table(rows, shutil.get_terminal_size((160, 24)).columns)]
        lines += [f"left out {what} [{', '.join(hosts)}]" for what, hosts in left_out.items()]
        lines += [f"deferred {sentence}" for sentence in deferred]
        lines += [f"WRONG    {sentence}" for sentence in problems]
        if not problems:
            lines.append("all others well" if deferred else "all well")
        self._display.display("\n".join(lines) + "\n")
        result.update(changed=False)
        if problems:
            things = "1 thing is" if len(problems) == 1 else f"{len(problems)} things are"
            # Again: what a run ends with shows the message, the table may be far above.
            result.update(failed=True, msg="\n".join([f"{things} wrong:", *problems]))
        return result
