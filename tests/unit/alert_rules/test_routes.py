"""Alerts reach those they are meant for, and nobody hears the same thing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from promtool import tool
from render import CONFIG, alerts, render, rules

RECEIVERS: list[dict[str, Any]] = [
    {
        "name": "mail",
        "type": "email",
        "to": "operator@example.org",
        "from": "fleet@example.org",
        "smarthost": "mail.example.org:587",
        "username": "fleet",
        "secret": "mail-canary",
    },
    {
        "name": "pager",
        "type": "ntfy",
        "url": "https://ntfy.example.org/fleet",
        "severities": ["critical"],
        "secret": "ntfy-canary",
    },
    {"name": "hook", "type": "webhook", "url": "http://127.0.0.1:1/x", "severities": ["warning"]},
    {"name": "chat", "type": "slack", "channel": "#fleet", "secret": "slack-canary"},
]
TEMPLATE = CONFIG / "alertmanager" / "alertmanager.yml.j2"


def configuration(directory: Path, **changes: Any) -> Path:
    path = directory / "alertmanager.yml"
    path.write_text(render(TEMPLATE, **{"monitoring_receivers": RECEIVERS, **changes}))
    return path


@pytest.mark.parametrize("receivers", [[], RECEIVERS], ids=["nobody", "all"])
@pytest.mark.parametrize("url", ["", "http://10.0.0.14:9105/heartbeat"], ids=["", "deadman"])
def test_amtool_accepts_it(tmp_path: Path, receivers: list[dict[str, Any]], url: str) -> None:
    path = configuration(tmp_path, monitoring_receivers=receivers, monitoring_deadman_url=url)
    done = tool("amtool", "check-config", path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (["alertname=DeadMansSwitch", "severity=none"], "deadman"),
        (["alertname=ServiceDown", "severity=critical"], "mail,pager,chat"),
        (["alertname=DiskSpaceLow", "severity=warning"], "mail,hook,chat"),
        (["alertname=Other", "severity=none"], "nobody"),
    ],
)
def test_routes(tmp_path: Path, labels: list[str], receivers: str) -> None:
    path = configuration(tmp_path)
    done = tool(
        *("amtool", "config", "routes", "test", f"--config.file={path}"),
        *(f"--verify.receivers={receivers}", *labels),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_heartbeat_is_sent_at_once_and_every_minute(tmp_path: Path) -> None:
    route = yaml.safe_load(configuration(tmp_path).read_text())["route"]["routes"][0]
    assert (route["group_wait"], route["repeat_interval"]) == ("0s", "1m")


def test_secrets_are_in_files_of_their_own(tmp_path: Path) -> None:
    text = configuration(tmp_path).read_text()
    assert "canary" not in text
    assert "/etc/alertmanager/secret/mail" in text


def test_a_bot_token_is_a_file_too() -> None:
    """Newer than the amtool of Debian 12, so not in the list above."""
    bot = {"name": "bot", "type": "telegram", "chat_id": -100, "secret": "bot-canary"}
    document = yaml.safe_load(render(TEMPLATE, monitoring_receivers=[bot]))
    (config,) = document["receivers"][-1]["telegram_configs"]
    assert config["bot_token_file"] == "/etc/alertmanager/secret/bot"


def test_inhibition_names_alerts_that_exist(tmp_path: Path) -> None:
    known = set(alerts(rules()))
    for rule in yaml.safe_load(configuration(tmp_path).read_text())["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, _, value = matcher.replace("!=", "=").replace("=~", "=").partition("=")
            if label == "alertname":
                assert set(value.strip('"').split("|")) <= known, matcher


@pytest.mark.parametrize(
    ("receiver", "message"),
    [
        ({"name": "Bad Name", "type": "email"}, "lower-case"),
        ({"name": "deadman", "type": "webhook", "url": "http://x"}, "not deadman"),
        ({"name": "a", "type": "pigeon"}, "expected one of"),
        ({"name": "a", "type": "webhook"}, "needs url"),
        ({"name": "a", "type": "webhook", "url": "http://x", "severities": ["bad"]}, "severity"),
    ],
)
def test_a_receiver_that_cannot_work_is_refused(receiver: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleError, match=message):
        render(TEMPLATE, monitoring_receivers=[receiver])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ServiceDwon": {"for": "1m"}}, "did you mean ServiceDown"),
        ({"ServiceDown": {"fro": "1m"}}, "did you mean for"),
        ({"ServiceDown": {"for": 60}}, "expected a duration"),
        ({"DiskSpaceLow": {"ratio": "20%"}}, "expected a number"),
    ],
)
def test_a_change_without_effect_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleError, match=message):
        rules(monitoring_alerts=changes)
