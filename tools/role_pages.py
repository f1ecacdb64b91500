"""Write docs/roles: a page for each role, from its specification, defaults, entry and tasks.

python -m tools.role_pages [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import (  # noqa: E402
    Entry,
    catalogue,
    load,
)

DOCS = ROOT / "docs" / "roles"
STACK = "/opt/prime-spark/stack"
SERVICES = "/opt/prime-spark/services"
# A default that is longer is named by its kind.
LONG = 60
MARK = re.compile(r"\b([VOCMI])\(([^()]*(?:\([^()]*\))?[^()]*)\)")


def tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Every task of a file, of blocks as well."""
    for task in content or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def tasks_of(role: str) -> list[dict[str, Any]]:
    """The tasks of a role, main.yml first."""
    paths = sorted((ROOT / "roles" / role / "tasks").glob("*.yml"))
    paths.sort(key=lambda path: path.name != "main.yml")
    return [task for path in paths for task in tasks(load(path))]


def text(description: Any) -> str:
    """Ansible's description as one paragraph of Markdown, for a cell of a table."""
    lines = description if isinstance(description, list) else [description]
    joined = " ".join(" ".join(str(line).split()) for line in lines)
    return MARK.sub(r"`\2`", joined).replace("|", "\\|")


def default(name: str, option: dict[str, Any], defaults: dict[str, Any]) -> str:
    """A default as it is written, or what stands in its place."""
    if option.get("required"):
        return "required"
    if name not in defaults:
        return ""
    value = defaults[name]
    if isinstance(value, (dict, list)) and value:
        return f"{len(value)} {'entry' if len(value) == 1 else 'entries'}, in `defaults/main.yml`"
    written = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    if len(written) > LONG:
        return "an expression, in `defaults/main.yml`"
    return f"`{written}`".replace("|", "\\|") if written else "empty"


def kind(option: dict[str, Any]) -> str:
    """A type with its elements and choices."""
    name = option.get("type", "str")
    if "elements" in option:
        name += f" of {option['elements']}"
    choices = [str(choice) for choice in option.get("choices", [])]
    return f"{name}: {', '.join(f'`{choice}`' for choice in choices)}" if choices else name


def table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table of Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in lines]


def listed(names: list[str]) -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


def running(parts: dict[str, list[str]], form: str = "{}") -> list[str]:
    """Units or projects, each with the groups that it is for."""
    return [
        f"`{form.format(name)}`" + (f" (hosts in {listed(groups)})" if groups else "")
        for name, groups in parts.items()
    ]


def users_of(role: str, found: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The users that a role creates, with the names that its own variables give them."""
    values: dict[str, Any] = {}
    for part in ("defaults", "vars"):
        values |= load(ROOT / "roles" / role / part / "main.yml") or {}

    def filled(word: Any) -> str:
        return re.sub(
            r"\{\{ *(\w+) *\}\}", lambda name: str(values.get(name[1], name[0])), str(word)
        )

    return [
        {key: filled(user[key]) for key in ("name", "shell") if key in user}
        for task in found
        if (user := task.get("ansible.builtin.user")) and user.get("state", "present") == "present"
    ]


def changes(role: str, entry: Entry | None, found: list[dict[str, Any]]) -> list[str]:
    """What a host has afterwards that it had not before, a line each."""
    lines = []
    for task in found:
        packages = task.get("prime_spark.fleet.packages")
        if packages:
            names = packages["name"] if isinstance(packages["name"], list) else [packages["name"]]
            lines.append(f"packages: {listed([' '.join(str(name).split()) for name in names])}")
    for user in users_of(role, found):
        lines.append(f"user `{user['name']}`, shell `{user.get('shell', 'the default')}`")
    if entry:
        lines += [f"unit {unit}" for unit in running(entry.units)]
        for project in running(entry.projects, STACK + "/{}"):
            lines.append(f"containers of the compose project in {project}")
        lines += [f"releases in `{SERVICES}/{name}`" for name in entry.services]
        note = f" ({entry.data_note})" if entry.data_note else ""
        lines += [f"data in `{data}`{note}; only a purge removes it" for data in entry.data]
    trees = [task for task in found if "prime_spark.fleet.config_tree" in task]
    if trees:
        lines.append("configuration: files that the host records in `/var/lib/prime-spark/trees`")
    return list(dict.fromkeys(lines))


def logins(role: str, found: list[dict[str, Any]]) -> str:
    """Who may log in to the host because of the role."""
    users = [user for user in users_of(role, found) if "nologin" not in user.get("shell", "")]
    if not users:
        return "Nobody new: the role creates no user with a shell."
    names = listed([user["name"] for user in users])
    return f"In addition: {names}, as far as the role's SSH configuration allows."


def tags_of(role: str, found: list[dict[str, Any]]) -> list[str]:
    """The role's name, then the tags of its parts."""
    tags = {tag for task in found for tag in task.get("tags", [])}
    return [role, *sorted(tag for tag in tags if tag.startswith(f"{role}_"))]


def example(role: str, options: dict[str, Any], groups: list[str]) -> str:
    """A play, and what the inventory has to set."""
    play: dict[str, Any] = {"hosts": ":".join(groups), "become": True}
    play["roles"] = [f"prime_spark.fleet.{role}"]
    lines = yaml.safe_dump([play], sort_keys=False, width=100).splitlines()
    required = [name for name, option in options.items() if option.get("required")]
    block = [f"    {line}" for line in lines]
    if required:
        block += ["", f"The inventory has to set {listed(required)}."]
    return "\n".join(block)


def page(role: str) -> str:
    """The page of a role."""
    directory = ROOT / "roles" / role
    spec = load(directory / "meta/argument_specs.yml")["argument_specs"]["main"]
    options: dict[str, Any] = spec.get("options") or {}
    defaults: dict[str, Any] = load(directory / "defaults/main.yml") or {}
    entry = catalogue().get(role)
    found = tasks_of(role)
    description = spec.get("description") or []
    out = [f"# {role}", "", "<!-- Generated by `make role-pages`. -->", ""]
    out += [f"{spec['short_description'].rstrip('.')}.", ""]
    for paragraph in description if isinstance(description, list) else [description]:
        out += [text(paragraph).replace("\\|", "|"), ""]
    if entry:
        needs = [
            f"`{need.removesuffix('@host')}`" + (" on the same host" if "@host" in need else "")
            for need in entry.needs
        ]
        facts = [("hosts", f"in {listed(entry.groups)}")]
        facts += [("needs", ", ".join(needs))] if needs else []
        facts += [("hosts at most", "one")] if entry.single else []
        facts += [("played", "on all of its hosts or none")] if entry.together else []
        facts += [("tags", listed(tags_of(role, found)))]
        secrets = sorted(set(re.findall(r"\bvault_\w+", yaml.safe_dump(defaults))))
        facts += [("secrets", listed(secrets))] if secrets else []
        ports = [name for name in options if name.endswith("_port")]
        facts += [
            ("ports", ", ".join(f"`{n}` {defaults.get(n, '')}".strip() for n in ports))
        ] * bool(ports)
        scraped = [f"{item['endpoint']} (job {item['job']})" for item in entry.scrape]
        facts += [("scraped", ", ".join(scraped))] if scraped else []
        out += [*table(("", ""), facts), ""]
    else:
        out += ["Other roles import it. It has no play, group or tag of its own.", ""]
    changed = changes(role, entry, found)
    if changed:
        out += ["## What it changes on the host", "", *[f"- {line}" for line in changed], ""]
    out += ["## Who may log in afterwards", "", logins(role, found), ""]
    rows = [
        (f"`{name}`", kind(option), default(name, option, defaults), text(option["description"]))
        for name, option in options.items()
    ]
    out += ["## Inputs", "", *table(("input", "type", "default", "what it is"), rows), ""]
    if entry:
        out += ["## Example", "", example(role, options, entry.groups)]
    return "\n".join(out).rstrip() + "\n"


def pages() -> dict[str, str]:
    """Name to content of every file in docs/roles."""
    order = list(catalogue())
    others = sorted(path.name for path in (ROOT / "roles").iterdir() if path.name not in order)
    index = ["# Roles", "", "<!-- Generated by `make role-pages`. -->", ""]
    index += [
        "In the order in which `site.yml` plays them; those that others import come last.",
        "",
    ]
    rows = []
    found = {}
    for role in [*order, *others]:
        spec = load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]
        rows.append((f"[{role}]({role}.md)", text(spec["short_description"])))
        found[f"{role}.md"] = page(role)
    found["README.md"] = "\n".join([*index, *table(("role", "what it is"), rows)]) + "\n"
    return found


def stale() -> list[str]:
    """Files that differ from what is written now, or are there without a role."""
    written = pages()
    there = {path.name: path.read_text() for path in DOCS.glob("*.md")}
    return sorted(name for name in {*written, *there} if written.get(name) != there.get(name))


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    if parser.parse_args().check:
        for name in stale():
            print(f"docs/roles/{name} differs: make role-pages")
        return 1 if stale() else 0
    written = pages()
    DOCS.mkdir(exist_ok=True)
    for path in DOCS.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for name, content in written.items():
        (DOCS / name).write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
