"""A stamp for each role on each host: a hash over everything that decides what the role does there.

Nothing is templated for it. A value that is a template is a function of the values that it refers
to, so the texts of all of them together stand for the result. What a role refers to is found by the
words of its files: a word too many costs a needless replay.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .catalogue import read
from .endpoints import inputs_of

WORD = re.compile(r"[A-Za-z_]\w*")
ENDPOINT = re.compile(r"\bendpoint(?:s|_on)?\('(\w+)', hostvars\)")
IMPORTED = re.compile(
    r"^from ansible_collections\.prime_spark\.fleet\.plugins\.plugin_utils\.(\w+) import",
    re.MULTILINE,
)
FILTER = re.compile(r'^ +"(\w+)": ', re.MULTILINE)
# A name that a filter puts together: f"{role}_state".
SUFFIX = re.compile(r'f"\{[^{}]*\}(_\w+)"')
FACT = re.compile(r"""ansible_facts\[['"](\w+)['"]\]""")
IMPORTED_TEMPLATE = re.compile(r"""\{%-? *(?:from|import|include) ['"]([\w./-]+)['"]""")
LOOKUP = re.compile(r"\b(lookup|query|q)\(")
# Lines around a mention of `hostvars` in which the names of other hosts' variables stand.
NEAR = 4
# Of what Ansible itself knows, only how a host is reached is an input of roles.
REACHED = ("ansible_host", "ansible_port", "ansible_user")
MAGIC = {
    "environment", "full", "group_names", "groups", "hostvars", "inventory_dir", "inventory_file",
    "inventory_hostname", "inventory_hostname_short", "omit", "play_hosts", "playbook_dir",
    "role_name", "role_names", "role_path", "role_uuid", "vars",
}  # fmt: skip
# What decides which wheels a host gets.
TARGET = ("architecture", "distribution", "distribution_major_version", "python_version")


def words(text: str) -> set[str]:
    return set(WORD.findall(text))


def is_input(name: str) -> bool:
    """Whether a variable can be an owner's; Ansible's own differ between runs."""
    return name in REACHED or not (name.startswith("ansible_") or name in MAGIC)


def files_below(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file, in order; what Python and editors leave is not looked at."""
    for root, names, leaves in os.walk(directory):
        names[:] = sorted(n for n in names if n != "__pycache__" and not n.endswith(".egg-info"))
        for leaf in sorted(leaves):
            if not leaf.endswith((".pyc", "~", ".swp")):
                path = Path(root, leaf)
                yield os.path.relpath(path, directory), path.read_bytes()


def digest_of(*directories: Path) -> str:
    """Hash over names and contents of the files of some directories."""
    digest = hashlib.sha256()
    for directory in directories:
        for name, content in files_below(directory):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


class Sources:
    """The files of a repository that decide about roles, each read once."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        # Callbacks decide what is shown, nothing else.
        plugins = sorted(p for p in (repository / "plugins").iterdir() if p.name != "callback")
        self.plugins = digest_of(*plugins, repository / "meta")
        roles = read(repository).values()
        self.scraped = [[entry.role, entry.scrape] for entry in roles if entry.scrape]
        services = repository / "files" / "python_services"
        self.services = digest_of(*(services / part for part in ("src", "locks", "dags")))
        self.project = (services / "pyproject.toml").read_text(encoding="utf-8")
        self.filters: dict[str, str] = {}
        for path in sorted((repository / "plugins" / "filter").glob("*.py")):
            text = path.read_text(encoding="utf-8")
            names = FILTER.findall(text)
            for module in IMPORTED.findall(text):
                text += Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
            self.filters.update(dict.fromkeys(names, text))
        self.role_files = cache(self._role_files)

    def _role_files(self, role: str) -> list[tuple[str, bytes]]:
        """The files of a role, the templates that these import, and the roles that it imports.

        Without the catalogue's.
        """
        found = [
            (f"{role}/{name}", content)
            for name, content in files_below(self.repository / "roles" / role)
            if name != "meta/fleet.yml"
        ]
        text = b"\n".join(content for _, content in found).decode(errors="replace")
        # Beside its own a role's templates find those of the role docker.
        shared = self.repository / "roles" / "docker" / "templates"
        for name in sorted(set(IMPORTED_TEMPLATE.findall(text))):
            if (shared / name).is_file():
                found.append((f"docker/{name}", (shared / name).read_bytes()))
        if re.search(r"\b(import|include)_role\b", text):
            names = words(text) - {role}
            for other in sorted(p.name for p in (self.repository / "roles").iterdir()):
                if other in names and re.search(rf"\bname: +prime_spark\.fleet\.{other}\b", text):
                    found += self.role_files(other)
        return found


class References:
    """What the roles of a repository refer to, by the words of their files."""

    def __init__(
        self,
        filters: Mapping[str, str],
        raw: Mapping[str, Mapping[str, Any]],
        defaults: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """``filters`` are the texts of filters by name, ``raw`` the inventory's values by host,
        ``defaults`` those of the roles.
        """
        self.filters = filters
        # Every text that a name may stand for, on any host.
        self.texts: dict[str, set[str]] = {}
        for values in [*raw.values(), *defaults.values()]:
            for name, value in values.items():
                if is_input(name):
                    self.texts.setdefault(name, set()).add(str(value))
        self.words = {name: set().union(*map(words, texts)) for name, texts in self.texts.items()}

    def close(self, names: Iterable[str]) -> set[str]:
        """The known ones of some names, and all that these refer to."""
        found: set[str] = set()
        waiting = set(names) & self.texts.keys()
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting |= (self.words[name] & self.texts.keys()) - found
        return found

    def foreign(self, texts: Iterable[str]) -> set[str]:
        """Names of variables that are read of other hosts."""
        found: set[str] = set()
        for text in texts:
            found.update(*map(inputs_of, ENDPOINT.findall(text)))
            lines = ENDPOINT.sub("", text).splitlines()
            for number, line in enumerate(lines):
                if "hostvars" not in line:
                    continue
                near = words("\n".join(lines[max(0, number - NEAR) : number + NEAR + 1]))
                found |= near
                for name in near & self.filters.keys():
                    found |= words(self.filters[name])
                    for suffix in SUFFIX.findall(self.filters[name]):
                        found |= {known for known in self.texts if known.endswith(suffix)}
        return self.close(found)


class Stamps:
    """Works out the stamps of one inventory."""

    def __init__(
        self,
        sources: Sources,
        raw: Mapping[str, Mapping[str, Any]],
        groups: Mapping[str, list[str]],
        defaults: Mapping[str, Mapping[str, Any]],
        version: str,
        resolve: Callable[[str, str], Any],
    ) -> None:
        """``version`` is Ansible's; ``resolve(host, name)`` works out a value that has a lookup."""
        self.sources = sources
        self.references = References(sources.filters, raw, defaults)
        self.raw = raw
        self.groups = groups
        self.version = version
        self.resolve = resolve

    def value(self, host: str, name: str) -> Any:
        """A variable as the inventory has it, and what its lookups find now."""
        if name not in self.raw[host]:
            return None
        value = self.raw[host][name]
        return [value, self.resolve(host, name)] if LOOKUP.search(str(value)) else [value]

    def of(self, role: str, hosts: list[str]) -> tuple[dict[str, str], list[str]]:
        """The role's stamps by host, and the facts that have to be added to them."""
        files = self.sources.role_files(role)
        texts = [content.decode(errors="replace") for _, content in files]
        named = set().union(*map(words, texts))
        names = self.references.close(named)
        values = [text for name in names for text in self.references.texts[name]]
        named = named.union(*(self.references.words[name] for name in names))
        foreign = self.references.foreign([*texts, *values])
        scraped = self.sources.scraped if "monitoring_targets" in named else []
        named |= words(str(scraped))
        facts = {fact for text in [*texts, *values] for fact in FACT.findall(text)}
        shared = [
            self.version,
            self.sources.plugins,
            [(name, hashlib.sha256(content).hexdigest()) for name, content in files],
            scraped,
            {group: members for group, members in self.groups.items() if group in named},
            # Filters know the defaults of other roles.
            {name: sorted(self.references.texts[name]) for name in foreign},
            {
                host: {name: self.value(host, name) for name in sorted(foreign)}
                for host in (self.raw if foreign else ())
            },
        ]
        if "python_release" in named:
            shared += [self.sources.services, self.sources.project]
            facts |= set(TARGET)
        base = fingerprint(shared)
        return {
            host: fingerprint([base, host, {n: self.value(host, n) for n in sorted(names)}])
            for host in hosts
        }, sorted(facts)


def plain(content: Any) -> Any:
    """Data of one form for each meaning; keys of a mapping may be of different types."""
    if isinstance(content, Mapping):
        return sorted([type(k).__name__, str(k), plain(v)] for k, v in content.items())
    if isinstance(content, (list, tuple)):
        return [plain(item) for item in content]
    return content


def fingerprint(content: Any) -> str:
    """Hash over data."""
    text = json.dumps(plain(content), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def with_facts(stamp: str, names: Iterable[str], facts: Mapping[str, Any]) -> str:
    """A stamp that stands for a host's facts, too."""
    return fingerprint([stamp, {name: facts.get(name) for name in names}])
