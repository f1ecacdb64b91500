"""The hook's rules: what they take, what they refuse and in which words, what they start."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hook_deliveries import FOLDER, body_of, lowered, recorded
from prime_spark.hook.cli import main
from prime_spark.hook.rules import (
    Condition,
    Job,
    Rules,
    RulesError,
    ValueRefusedError,
    load_rules,
    read_rules,
)

DOCUMENT: dict[str, Any] = {
    "sources": [
        {"name": "github", "kind": "github", "secrets": ["hook_github", "hook_github_next"]},
        {"name": "alertmanager", "kind": "alertmanager", "secrets": ["hook_alerts"]},
        {"name": "standard_webhooks", "kind": "standard_webhooks", "secrets": ["hook_releases"]},
    ],
    "playbooks": ["site.yml", "playbooks/verify.yml"],
    "rules": [
        {
            "name": "deploy-api",
            "source": "github",
            "match": {
                "headers": {"X-GitHub-Event": {"equals": "push"}},
                "body": {
                    "ref": {"glob": "refs/heads/*"},
                    "repository.full_name": {"in": ["example/fleet"]},
                    "deleted": {"equals": False},
                    "commits.0.id": {"pattern": "[0-9a-f]{40}"},
                },
            },
            "run": {"playbook": "site.yml", "tags": ["api"], "limit": "control-pc-1"},
        },
        {
            "name": "mend",
            "source": "alertmanager",
            "match": {"body": {"labels.alertname": {"equals": "ServiceDown"}}},
            "run": {
                "playbook": "playbooks/verify.yml",
                "priority": "high",
                "limit": {"field": "labels.host", "enum": ["control-pc-1", "spark-agent-1"]},
            },
            "remediation": {"cooldown_seconds": 600},
        },
        {
            "name": "release",
            "source": "standard_webhooks",
            "run": {
                "playbook": "site.yml",
                "check": True,
                "variables": {"origin": "release"},
                "from_body": {
                    "version": {"field": "data.version", "pattern": r"\d+\.\d+\.\d+"},
                    "replicas": {"field": "data.replicas", "integer": {"min": 1, "max": 4}},
                    "channel": {"field": "data.channel", "enum": ["stable", "beta"]},
                },
            },
        },
    ],
}


def rules(document: Any = DOCUMENT) -> Rules:
    return read_rules(yaml.safe_dump(document), "rules.yml")


RULES = rules()


def decide(kind: str, body: Any = None, **headers: str) -> Job | None:
    given_headers = lowered(recorded(kind)["headers"]) | headers
    return RULES.job(kind, given_headers, body_of(kind) if body is None else body)


def test_a_delivery_becomes_what_its_rule_says_and_nothing_else() -> None:
    job = decide("github")
    assert job is not None
    assert job.arguments() == ["--tags", "api", "--limit", "control-pc-1", "site.yml"]
    assert (job.rule, job.variables, job.priority, job.check) == ("deploy-api", {}, "normal", False)
    alert = decide("alertmanager", body_of("alertmanager")["alerts"][0])
    assert alert is not None
    assert (alert.limit, alert.priority) == ("control-pc-1", "high")
    release = decide("standard_webhooks")
    assert release is not None
    assert release.arguments() == ["--check", "--diff", "site.yml"]
    assert release.variables == {
        "origin": "release",
        "version": "1.4.2",
        "replicas": 3,
        "channel": "stable",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"ref": "refs/tags/v1"},
        {"ref": ["refs/heads/main"]},
        {"ref": None},
        {"ref": "refs/heads/" + "x" * 190},
        {"repository": {"full_name": "example/fleet2"}},
        {"repository": "example/fleet"},
        {"deleted": True},
        {"deleted": 0},
        {"deleted": "false"},
        {"commits": []},
        {"commits": [{"id": "9d2f1c7e5a3b48d0c6e7f8091a2b3c4d5e6f7081\n"}]},
        {"commits": [{"id": "x9d2f1c7e5a3b48d0c6e7f8091a2b3c4d5e6f7081"}]},
    ],
)
def test_a_field_that_is_not_as_wanted_starts_nothing(change: dict[str, Any]) -> None:
    assert decide("github", body_of("github") | change) is None


def test_a_header_that_is_not_as_wanted_starts_nothing() -> None:
    assert decide("github", **{"x-github-event": "ping"}) is None


def test_a_rule_is_for_its_source_and_the_first_that_matches_counts() -> None:
    document = deepcopy(DOCUMENT)
    second = deepcopy(document["rules"][0]) | {"name": "second"}
    document["rules"].append(second)
    headers = lowered(recorded("github")["headers"])
    job = rules(document).job("github", headers, body_of("github"))
    assert job is not None
    assert job.rule == "deploy-api"
    # Of another source, it is the only rule of that source which looks at it.
    with pytest.raises(ValueRefusedError, match="rule release"):
        rules().job("standard_webhooks", headers, body_of("github"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", "1.4.2; reboot"),
        ("version", "1.4.2\n"),
        ("version", "1" * 101),
        ("version", 1),
        ("version", None),
        ("replicas", 0),
        ("replicas", 5),
        ("replicas", True),
        ("replicas", "3"),
        ("replicas", 3.0),
        ("replicas", 10**40),
        ("channel", "stable "),
        ("channel", {"stable": 1}),
        ("channel", ["stable"]),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused(field: str, value: Any) -> None:
    body = body_of("standard_webhooks")
    body["data"][field] = value
    with pytest.raises(ValueRefusedError, match=f"field data.{field} is not what rule release"):
        decide("standard_webhooks", body)


def test_a_host_that_the_rule_does_not_name_is_refused() -> None:
    alert = body_of("alertmanager")["alerts"][0]
    alert["labels"]["host"] = "all"
    with pytest.raises(ValueRefusedError):
        decide("alertmanager", alert)


@pytest.mark.parametrize("opening", ["{{ 1 }}", "{% raw %}", "{# x #}"])
def test_no_template_comes_out_of_a_body(opening: str) -> None:
    document = deepcopy(DOCUMENT)
    document["rules"][2]["run"]["from_body"] = {"version": {"field": "version", "pattern": ".*"}}
    with pytest.raises(ValueRefusedError):
        rules(document).job("standard_webhooks", {}, {"version": f"a{opening}"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(body=st.dictionaries(st.sampled_from(["data", "ref", "labels"]), JSON), value=JSON)
def test_whatever_the_body_only_values_of_the_stated_types_come_out(body: Any, value: Any) -> None:
    body = {**body, "data": {"version": value, "replicas": value, "channel": value}}
    with pytest.raises(ValueRefusedError):
        decide("standard_webhooks", body)
    assert decide("github", body) is None


# --- what is refused --------------------------------------------------------------------------


def broken(path: str, value: Any) -> str:
    """Return the error for the document with `value` at `path`; ... takes the key away."""
    document: Any = deepcopy(DOCUMENT)
    *parents, last = path.split("/")
    target = document
    for key in parents:
        target = target[int(key)] if key.isdigit() else target[key]
    key = int(last) if last.isdigit() else last
    if value is ...:
        del target[key]
    else:
        target[key] = value
    with pytest.raises(RulesError) as error:
        rules(document)
    return str(error.value)


BROKEN = {
    "rules/0/run/playbok": ("site.yml", "unknown field `playbok` (did you mean `playbook`?)"),
    "rules/0/run/playbook": ("sit.yml", "run.playbook: 'sit.yml' is none of site.yml, playbooks"),
    "rules/0/source": ("githb", "source: 'githb' is none of github, "),
    "rules/0/match/body/ref": ({"glb": "x"}, "match.body.ref: Object contains unknown field `glb`"),
    "rules/0/match/headers/X": ({}, "match.headers.X: expected exactly one of equals, in, glob"),
    "rules/0/match/body/deleted": ({"pattern": "("}, "deleted: pattern '(' is no regular expressi"),
    "rules/0/run/timeout_seconds": (0, "run.timeout_seconds: Expected `float` > 0"),
    "rules/0/run/priority": ("hgh", "expected one of high, normal, low (did you mean 'high'?)"),
    "rules/0/run/limit": ("@hosts", "run.limit: Expected `str` matching"),
    "rules/0/run": (
        {"playbook": "site.yml", "limit": {"field": "a", "enum": ["h1", "@hosts"]}},
        "limit: enum: '@hosts' is no host pattern",
    ),
    "rules/0/run/tags": (["--become"], "run.tags[0]: Expected `str` matching"),
    "rules/0/run/from_body": (
        {"ansible_connection": {"field": "a", "enum": ["b"]}},
        "ansible_connection would change how Ansible works",
    ),
}


@pytest.mark.parametrize("path", BROKEN)
def test_an_error_names_file_rule_key_and_what_is_expected(path: str) -> None:
    value, said = BROKEN[path]
    message = broken(path, value)
    assert message.startswith("rules.yml: rule 'deploy-api', ")
    assert said in message


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("rules/1/run/limit", {"field": "a", "pattern": ".*"}, "only as enum"),
        ("rules/2/run/from_body/origin", {"field": "a", "enum": ["b"]}, "is one of variables, too"),
        ("rules/2/run/from_body/replicas/integer/max", 0, "min is greater than max"),
        ("rules/2/run/from_body/limit", {"field": "a", "enum": ["b"]}, "expected run.limit"),
        ("rules/2/run/from_body/channel/pattern", "x", "exactly one of enum, pattern, integer"),
        ("rules/1/name", "release", "two with the name 'release'"),
        ("sources/0/secrets", ["a", "b", "c"], "source 'github', secrets: Expected `array` of"),
        ("sources/1/secrets", ["hook_github"], "'hook_github' is of source 'github', too"),
        ("sources/0/kind", "githb", "(did you mean 'github'?)"),
        ("playbooks", ..., "the file: Object missing required field `playbooks`"),
        ("playbooks/0", "../site.yml", "playbooks[0]: Expected `str` matching"),
        ("rules/0/run/approval", "require", "expected one of required (did you mean 'required'?)"),
        ("rules/0/run/approval_seconds", 60, "there is no approval: required"),
        ("rules/0/run", {"playbook": "site.yml", "commit": "a", "ref": "refs/heads/b"}, "one of"),
        (
            "rules/0/run",
            {"playbook": "site.yml", "approval": "required", "check": True},
            "a run with check or report changes nothing",
        ),
        ("schedules", [{"name": "x", "run": {"playbook": "site.yml"}}], "one of every_seconds, at"),
        (
            "schedules",
            [{"name": "x", "at": "24:00", "run": {"playbook": "site.yml"}}],
            "schedule 'x', at: Expected `str` matching",
        ),
        (
            "schedules",
            [{"name": "mend", "at": "03:30", "run": {"playbook": "site.yml"}}],
            "two with the name 'mend'",
        ),
        (
            "schedules",
            [{"name": "x", "at": "03:30", "run": {"playbook": "site.yml", "commit": "after"}}],
            "schedule 'x', run: there is no body",
        ),
        (
            "schedules",
            [{"name": "x", "at": "03:30", "run": {"playbook": "sit.yml"}}],
            "schedule 'x', run.playbook: 'sit.yml' is none of",
        ),
        ("mend", {"playbook": "site.yml"}, "mend: expected approval: required"),
        (
            "mend",
            {"playbook": "site.yml", "approval": "required", "tags": ["api"]},
            "limit and tags are the host and its role",
        ),
    ],
)
def test_what_cannot_work_is_refused(path: str, value: Any, said: str) -> None:
    assert said in broken(path, value)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a*)*b",
        "(a|aa)+b",
        "(a?){60}a{60}",
        "a?" * 30 + "a{30}",
        "(?:(?:x+y?)+z?)+",
        ".*.*.*.*b",
        r"\d+(\.\d+)*",
        r"(.+)x\1",
        "(?P<a>.*)(?P=a)",
        "(a)?(?(1)b|c)",
        "(?=(a+)+b).*",
        "(?>(a+)+)b",
        "((a{1,100}){1,100}){1,100}",
    ],
)
def test_patterns_that_can_take_very_long_are_refused(pattern: str) -> None:
    assert "deleted: pattern" in (
        said := broken("rules/0/match/body/deleted", {"pattern": pattern})
    )
    assert "too many ways" in said
    value = {"field": "data.version", "pattern": pattern}
    assert "too many ways" in broken("rules/2/run/from_body/version", value)


@pytest.mark.parametrize(
    "pattern",
    ["[a-z0-9-]+", r"v?\d+\.\d+\.\d+", "(main|release/.*)", "(ab)*", "[0-9a-f]{40}", "(?i)x.*"],
)
def test_patterns_that_people_write_are_taken(pattern: str) -> None:
    Condition(pattern=pattern)


def test_the_slowest_pattern_that_is_taken_is_fast() -> None:
    condition = Condition(pattern=".*.*.*b")
    started = time.process_time()
    assert not condition.holds("a" * 200)
    assert time.process_time() - started < 2.0
    assert not condition.holds("a" * 200 + "b")


@pytest.mark.parametrize("text", ["{{ lookup('file', '/etc/shadow') }}", "{% if x %}", "{#"])
@pytest.mark.parametrize("path", ["rules/2/run/variables/origin", "rules/0/match/body/{{x}}"])
def test_templates_are_refused_anywhere(path: str, text: str) -> None:
    value = text if "variables" in path else {"equals": "plain"}
    assert "is not allowed: expected plain text" in broken(path, value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: [", "no valid YAML"),
        ("sources: []\nsources: []", "a second key 'sources'"),
        ("sources: &a []\nrules: *a", "aliases are not allowed"),
        ("[" * 500, "no valid YAML"),
        ("!!python/object/apply:os.system [true]", "no valid YAML"),
    ],
)
def test_yaml_has_no_surprises(text: str, said: str) -> None:
    with pytest.raises(RulesError, match=said):
        read_rules(text, "rules.yml")


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(DOCUMENT))
    return path


def test_check_rules(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-rules", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok, 3 rules\n"
    assert load_rules(file) == rules()
    file.write_text("rules: []")
    with pytest.raises(SystemExit, match="2"):
        main(["check-rules", str(file)])
    assert capsys.readouterr().err.startswith(f"error: {file}: ")


def test_test_rule_shows_what_a_delivery_would_start(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def test_rule(delivery: Path) -> tuple[int, dict[str, Any]]:
        status = main(["test-rule", str(file), "--delivery", str(delivery)])
        return status, json.loads(capsys.readouterr().out)

    status, shown = test_rule(FOLDER / "github.json")
    assert (status, shown["starts"]) == (0, "deploy-api")
    assert shown["command"][:3] == ["ansible-playbook", "--tags", "api"]
    status, shown = test_rule(FOLDER / "alertmanager.json")
    assert (shown["starts"], shown["priority"], shown["timeout_seconds"]) == ("mend", "high", 3600)
    assert (shown["commit"], shown["remediation"]["cooldown_seconds"]) == (None, 600)
    assert test_rule(FOLDER / "standard_webhooks.json")[1]["variables"]["replicas"] == 3
    other = recorded("github")
    other["body"]["ref"] = "refs/tags/v1"
    (tmp_path / "other.json").write_text(json.dumps(other))
    status, shown = test_rule(tmp_path / "other.json")
    assert (status, shown["starts"]) == (1, None)
    assert shown["because"]["deploy-api"] == "field ref does not match"
    assert shown["because"]["mend"] == "is for source alertmanager"


def test_check_config_looks_at_rules_and_secrets(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {
        "http": {"host": "127.0.0.1", "port": 9118},
        "rules": str(file),
        "ansible": {"checkout": "/c", "inventory": "inventories/lab", "programs": "/usr/bin"},
    }
    path = tmp_path / "config.json"

    def check(status: int, said: str, **change: Any) -> None:
        path.write_text(json.dumps(config | change))
        with pytest.raises(SystemExit) as ended:
            main(["--config", str(path), "--check-config"])
        assert ended.value.code == status
        assert said in "".join(capsys.readouterr())

    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    check(0, "config.json: ok")
    check(2, "unknown field `stat` (did you mean `state`?)", stat="/var")
    check(2, "unknown field `runner`", runner="systemd")
    check(2, "cannot read the rules", rules=str(tmp_path / "none.yml"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    check(2, "credential 'hook_github': cannot read")
    for name in ("hook_github", "hook_github_next", "hook_alerts", "hook_releases"):
        (tmp_path / name).write_text(f"a secret of {name}")
    check(2, "source standard_webhooks, credential 'hook_releases': a signing secret is base64")
    (tmp_path / "hook_releases").write_text("whsec_" + "A" * 32)
    (tmp_path / "hook_alerts").write_text("a secret of hook_github")
    check(2, "source alertmanager, credential 'hook_alerts': another has it, too")
    (tmp_path / "hook_alerts").write_text("a secret of hook_alerts")
    check(0, "config.json: ok")
    commit = file.read_text().replace(
        "playbook: playbooks", "commit: after\n    playbook: playbooks"
    )
    file.write_text(commit)
    check(2, "rule 'mend', run.commit: there is no repository configured")
