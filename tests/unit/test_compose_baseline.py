"""Every container has the baseline of roles/docker, or a reason for each deviation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(ROOT.glob("roles/*/templates/stack/compose.yml.j2"))
LOG = {"max-size": "7m", "max-file": "4"}
DEVIATION = re.compile(r"^ +# Deviates in (\w+): (\S.*)$", re.MULTILINE)
# Rights that no container of ours has; one that wants them has to say why, too.
UNUSED = {"cap_add", "cgroup_parent", "devices", "ipc", "network_mode", "pid", "privileged",
          "userns_mode"}  # fmt: skip


class Given(jinja2.Undefined):
    """A variable of no interest here: true, and its own name as text."""

    def __str__(self) -> str:
        return str(self._undefined_name)

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def rendered(template: Path, distribution: str = "Debian", version: str = "13") -> str:
    """The compose.yml of a role, every optional service in it."""
    role = template.parents[2]
    loader = jinja2.FileSystemLoader([template.parent, ROOT / "roles/docker/templates"])
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=Given
    )
    environment.filters |= {
        "to_json": environment.filters["tojson"],
        "prime_spark.fleet.endpoint_on": lambda host, *_: host,
        "prime_spark.fleet.memory_share": lambda memory, _: memory,
    }
    facts = {"distribution": distribution, "distribution_major_version": version}
    variables = {
        **yaml.safe_load((role / "vars/main.yml").read_text()),
        "ansible_facts": facts,
        "docker_log_max_size": LOG["max-size"],
        "docker_log_max_file": int(LOG["max-file"]),
    }
    return environment.get_template(template.name).render(variables)


def services(text: str) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """Every service of a compose.yml by name: its definition, its deviations with their reasons."""
    blocks = re.split(r"^  (?=[\w-]+:$)", text.partition("\nservices:\n")[2], flags=re.MULTILINE)
    declared = {block.partition(":")[0]: dict(DEVIATION.findall(block)) for block in blocks[1:]}
    found = yaml.safe_load(text)["services"]
    assert declared.keys() == found.keys()
    return {name: (definition, declared[name]) for name, definition in found.items()}


def mounted(service: dict[str, Any]) -> set[str]:
    """The directories below config/ that the service sees."""
    return {m[1] for v in service["volumes"] if (m := re.match(r"\./config/([\w-]+):.+:ro$", v))}


def is_hashed(service: dict[str, Any]) -> bool:
    names = {name.upper().replace("-", "_") for name in mounted(service)}
    return service.get("labels") in [
        {"prime-spark.config": f"${{CONFIG_HASH_{name}}}"} for name in names
    ]


def is_own_user(service: dict[str, Any]) -> bool:
    match = re.fullmatch(r"([1-9]\d*):(\d+)", str(service.get("user")))
    return bool(match and match[1] == match[2])


BASELINE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "user": is_own_user,
    "restart": lambda s: s.get("restart") == "unless-stopped",
    "read_only": lambda s: s.get("read_only") is True,
    "security_opt": lambda s: s.get("security_opt") == ["no-new-privileges:true"],
    "cap_drop": lambda s: s.get("cap_drop") == ["ALL"],
    "mem_limit": lambda s: bool(s.get("mem_limit")),
    "pids_limit": lambda s: 0 < s.get("pids_limit", 0) <= 512,
    "logging": lambda s: s.get("logging") == {"options": LOG},
    "labels": is_hashed,
    "tmpfs": lambda s: not any(re.search(r"[:,]exec\b", entry) for entry in s.get("tmpfs", [])),
    **{name: lambda s, name=name: name not in s for name in UNUSED},
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parents[2].name)
def test_every_container_has_the_baseline_or_says_why_not(template: Path) -> None:
    for name, (service, declared) in services(rendered(template)).items():
        deviating = {key for key, holds in BASELINE.items() if not holds(service)}
        assert deviating == declared.keys(), name


def test_every_role_with_a_stack_is_held_to_it() -> None:
    roles = {template.parents[2].name for template in TEMPLATES}
    assert roles == {"airflow", "exporters", "kafka", "monitoring", "redis", "timescale"}
    assert sum(len(services(rendered(template))) for template in TEMPLATES) == 11


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("restart: unless-stopped", "restart: 'no'", "restart"),
        ("read_only: true", "read_only: false", "read_only"),
        ("cap_drop: [ALL]", "cap_add: [SYS_ADMIN]", "cap_drop cap_add"),
        ("no-new-privileges:true", "seccomp:unconfined", "security_opt"),
        ('user: "70:70"', 'user: "0:0"', "user"),
        ("pids_limit: 256", "privileged: true", "pids_limit privileged"),
        ("max-size: 7m", "max-size: 10m", "logging"),
        ("CONFIG_HASH_TIMESCALE", "CONFIG_HASH_OTHER", "labels"),
        (",size=16m", ",exec", "tmpfs"),
    ],
)
def test_a_deviation_without_a_reason_is_seen(old: str, new: str, key: str) -> None:
    text = rendered(ROOT / "roles/timescale/templates/stack/compose.yml.j2")
    assert old in text
    service, declared = services(text.replace(old, new))["timescale"]
    assert {name for name, holds in BASELINE.items() if not holds(service)} == set(key.split())
    assert declared == {}


# --- health checks: rare once healthy, and in words that the host's Docker knows ------------


def checks(template: Path, *system: str) -> list[dict[str, Any]]:
    """What the checks of a project have beside their command and the time to start."""
    text = rendered(template, *system)
    found = [service["healthcheck"] for service, _ in services(text).values()]
    own = ("test", "start_period")
    assert all(check[key] for check in found for key in own)
    return [{key: value for key, value in check.items() if key not in own} for check in found]


TIMING = checks(TEMPLATES[0], "Debian", "13")[0]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parents[2].name)
def test_all_checks_are_paced_alike(template: Path) -> None:
    assert all(check == TIMING for check in checks(template, "Debian", "13"))


@pytest.mark.parametrize("system", [("Debian", "12"), ("Ubuntu", "24")])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parents[2].name)
def test_docker_before_25_is_asked_for_nothing_it_refuses(
    template: Path, system: tuple[str, str]
) -> None:
    for check in checks(template, *system):
        assert "start_interval" not in check
        # A start is waited for as long as the interval is.
        assert int(check["interval"].removesuffix("s")) <= 10


def test_a_container_is_found_ill_before_its_alert_may_be_late() -> None:
    """docs/decisions.md: ContainerDown fires about five minutes after."""
    interval = int(TIMING["interval"].removesuffix("s"))
    assert interval * TIMING["retries"] <= 120
    assert int(TIMING["start_interval"].removesuffix("s")) <= 5
