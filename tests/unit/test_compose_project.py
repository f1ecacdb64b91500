"""compose_project: the hash of its configuration tells exactly which service has to restart."""

from __future__ import annotations

import base64
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.prime_spark.fleet.plugins.action.compose_project import (
    ActionModule as action,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils import tree as tree_module
from ansible_collections.prime_spark.fleet.plugins.modules import compose_project as module

DIRECTORY = "/opt/prime-spark/stack/example"


def hashes(
    files: dict[str, str],
    secrets: dict[str, str] | None = None,
    live: dict[str, list[str]] | None = None,
) -> dict[str, str]:
    def listed(contents: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"path": f"{DIRECTORY}/{path}", "content": text, "mode": "0644"}
            for path, text in contents.items()
        ]

    arguments = {"files": listed(files), "secret_files": listed(secrets or {})}
    return dict(action.config_hashes(arguments, DIRECTORY, live))


TEMPLATE = """
{% from "compose_baseline.j2" import baseline with context %}
services:
  web:
{{ baseline("web-server", uid="71", memory="1g", pids=9, check=["true"], start_period="5s") }}
    image: web
"""


@pytest.mark.parametrize(("given", "size"), [({}, "10m"), ({"docker_log_max_size": "9m"}, "9m")])
def test_a_template_finds_what_the_role_docker_has(
    tmp_path: Path, given: dict[str, Any], size: str
) -> None:
    source = tmp_path / "compose.yml.j2"
    source.write_text(TEMPLATE)
    plugin = action.__new__(action)
    plugin._loader = DataLoader()
    plugin._templar = Templar(loader=plugin._loader)
    text = plugin.render(str(source), "/x", {"ansible_facts": {"distribution": "Ubuntu"}, **given})
    service = yaml.safe_load(text)["services"]["web"]
    assert service["logging"]["options"] == {"max-size": size, "max-file": "3"}
    assert service["labels"] == {"prime-spark.config": "${CONFIG_HASH_WEB_SERVER}"}
    assert (service["user"], service["image"]) == ("71:71", "web")


FILES = {"compose.yml": "services: {}", "config/a/x.conf": "1", "config/b/x.conf": "1"}


def test_a_changed_file_changes_its_own_service_only() -> None:
    before = hashes(FILES)
    after = hashes({**FILES, "config/a/x.conf": "2"})
    assert set(before) == {"a", "b"}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_a_changed_secret_counts_too() -> None:
    secret = {"config/a/secret/key": "1"}
    assert hashes(FILES, secret)["a"] != hashes(FILES)["a"]
    assert hashes(FILES, secret)["a"] != hashes(FILES, {"config/a/secret/key": "2"})["a"]


def test_paths_of_a_task_are_below_the_projects_directory(tmp_path: Path) -> None:
    for name in ("stack/config/web", "secret"):
        (tmp_path / "templates" / name).mkdir(parents=True)
        (tmp_path / "templates" / name / "key").write_text("x")
    file = {"path": "config/web/targets/a.json", "content": "[]"}
    plugin = action.__new__(action)
    plugin._loader = DataLoader()
    plugin._templar = None
    plugin._find_needle = lambda kind, name: str(tmp_path / kind / name)
    plugin._task = SimpleNamespace(
        args={
            "name": "example",
            "trees": [{"src": "secret", "dest": "config/web/secret", "secret": True}],
            "files": [file],
            "secret_files": [{**file, "path": "config/web/token"}],
        },
        delegate_to=None,
    )
    arguments = plugin.module_arguments({})
    assert arguments["directory"] == DIRECTORY
    paths = [file["path"].removeprefix(DIRECTORY) for file in arguments["files"]]
    assert paths == ["/config/web/targets/a.json", "/config/web/key"]
    secret = [file["path"].removeprefix(DIRECTORY) for file in arguments["secret_files"]]
    assert secret == ["/config/web/token", "/config/web/secret/key", "/.env"]


def test_files_outside_config_change_no_hash() -> None:
    assert hashes({**FILES, "compose.yml": "other"}) == hashes(FILES)


def test_the_order_of_files_does_not_matter() -> None:
    assert hashes(dict(reversed(FILES.items()))) == hashes(FILES)


def test_what_a_service_reads_again_by_itself_restarts_nothing() -> None:
    live = {"a": ["x.conf", "rules"]}
    files = {**FILES, "config/a/rules/one.yml": "1", "config/a/rules.conf": "1"}
    before = hashes(files, live=live)
    assert hashes({**files, "config/a/x.conf": "2"}, live=live) == before
    assert hashes({**files, "config/a/rules/two.yml": "1"}, live=live) == before
    assert hashes({**files, "config/a/rules.conf": "2"}, live=live)["a"] != before["a"]
    assert hashes({**files, "config/b/x.conf": "2"}, live=live)["b"] != before["b"]


def test_a_service_without_other_files_has_a_hash_too() -> None:
    assert set(hashes(FILES, live={"a": ["x.conf"]})) == {"a", "b"}


class Listener(HTTPServer):
    """Notes what was posted, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.posted: list[tuple[str, str]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.posted.append((self.path, self.headers["Authorization"] or ""))
                self.send_response(listener.status)
                self.end_headers()
                self.wfile.write(b"because")

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/-/reload"
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    server.shutdown()
    server.server_close()


def reloads(tmp_path: Path, url: str, content: str) -> tuple[Any, Any]:
    """The tree and what its services have to be told, with this content of rules/x.yml."""
    file = {"content": content, "owner": "root", "group": "root", "mode": "0644"}
    file["path"] = f"{DIRECTORY}/config/prometheus/rules/x.yml"
    flags = {**file, "path": f"{DIRECTORY}/config/prometheus/flags", "content": "same"}
    params = {
        "name": "example",
        "files": [file, flags],
        "secret_files": [],
        "directories": [],
        "validate": [],
        "directory": DIRECTORY,
        "reload": [
            {"service": "prometheus", "paths": ["rules"], "url": url}
            | {"username": "reload", "password": "secret"},
            {"service": "grafana", "paths": ["dashboards"], "url": ""},
        ],
    }
    tree = tree_module.Tree(params, str(tmp_path))
    return tree, module.Reloads(tree, params)


def test_a_reload_is_owed_until_it_was_done(tmp_path: Path, listener: Listener) -> None:
    tree, wanted = reloads(tmp_path, listener.url, "1")
    assert wanted.pending(["start prometheus"]) == [], "what starts reads its files"
    assert wanted.pending(["recreate prometheus: its definition differs"]) == []
    tree.save(loaded=wanted.wanted)
    _, same = reloads(tmp_path, listener.url, "1")
    assert same.pending([]) == []
    _, other = reloads(tmp_path, listener.url, "2")
    assert other.pending([]) == ["prometheus"]
    other.tell(other.pending([]))
    assert listener.posted == [
        ("/-/reload", "Basic " + base64.b64encode(b"reload:secret").decode())
    ]


def test_a_refused_reload_fails_with_the_reason(tmp_path: Path, listener: Listener) -> None:
    _, wanted = reloads(tmp_path, listener.url, "1")
    listener.status = 500
    with pytest.raises(tree_module.TreeError, match=r"refuses to reload \(500\): because"):
        wanted.tell(["prometheus"])
    listener.shutdown()
    listener.server_close()
    with pytest.raises(tree_module.TreeError, match="cannot be told to reload"):
        wanted.tell(["prometheus"])


def test_only_what_may_have_read_a_changed_file_is_restarted_or_told() -> None:
    def file(below: str) -> Any:
        return tree_module.File(f"{DIRECTORY}/{below}", b"", "root", "root", 0o644, False)

    found = tree_module.Difference(
        write=[file("compose.yml"), file("config/redis/redis.conf"), file("config/web/rules/a")],
        remove=[f"{DIRECTORY}/config/web/rules/b", f"{DIRECTORY}/config/kafka/extra"],
        attributes=[file("config/timescale/pg_hba.conf")],
    )
    live = {"web": ["rules"]}
    assert module.disturbed(found, DIRECTORY, live) == [["kafka", "redis"], ["web"]]


def ownership(tmp_path: Path, uid: int) -> Any:
    """What a project finds that runs as `uid` and has its data in tmp_path/data."""
    data = {"path": str(tmp_path / "data"), "owner": str(uid), "group": str(uid)}
    params = {"name": "example", "files": [], "secret_files": [], "validate": []}
    directories = [{**data, "mode": "0700", "purge": False}]
    return module.Ownership(tree_module.Tree({**params, "directories": directories}, str(tmp_path)))


def owners(directory: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_uid for path in directory.rglob("*")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_data_goes_to_the_user_of_the_new_definition_and_back(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    segments = tmp_path / "data" / "topic"
    segments.mkdir(parents=True)
    (segments / "segment").touch()
    (tmp_path / "data" / "link").symlink_to(elsewhere)
    (tmp_path / "data" / "lost+found").mkdir()
    for path in (tmp_path / "data", segments, segments / "segment", tmp_path / "data" / "link"):
        os.lchown(path, 1000, 1000)
    assert not ownership(tmp_path, 1000)
    found = ownership(tmp_path, 71001)
    assert found.sentences() == [f"give all of {tmp_path}/data to user 71001"]
    found.change()
    assert owners(tmp_path / "data") == {
        **dict.fromkeys(["topic", "segment", "link"], 71001),
        "lost+found": 0,
    }
    assert elsewhere.stat().st_uid == 0, "a link is no way out"
    assert not ownership(tmp_path, 71001)
    found.change_back()
    assert not ownership(tmp_path, 1000)
    assert (tmp_path / "data").stat().st_uid == 1000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_data_that_a_killed_run_gave_away_in_part_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = tmp_path / "data" / "topic"
    segments.mkdir(parents=True)
    for path in (segments, segments / "one", segments / "two"):
        path.touch()
        os.chown(path, 1000, 1000)
    left = iter(range(1))
    change = os.chown

    def killed(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        change(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "chown", killed)
        ownership(tmp_path, 71001).change()
    found = ownership(tmp_path, 71001)
    found.change()
    assert set(owners(tmp_path / "data").values()) == {71001}


class Swap:
    """Does something right before the next change of an owner, which was decided on already."""

    act: Callable[[], None] | None = None

    def __call__(self, event: str, _: Any) -> None:
        if event == "os.chown" and self.act:
            act, self.act = self.act, None
            act()


@pytest.fixture(scope="module")
def swap() -> Swap:
    """The one of this module: Python has no way to remove it."""
    found = Swap()
    sys.addaudithook(found)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("swapped", ["directory for a link", "file for a link", "file for another"])
def test_who_swaps_entries_meanwhile_gets_nothing_of_others(
    tmp_path: Path, swap: Swap, swapped: str
) -> None:
    others = tmp_path / "others"
    segments = tmp_path / "data" / "topic"
    for directory in (others, segments):
        directory.mkdir(parents=True)
        (directory / "segment").touch()
    for path in (tmp_path / "data", segments, segments / "segment"):
        os.chown(path, 1000, 1000)

    def act() -> None:
        segments.rename(tmp_path / "data" / "moved")
        if swapped == "directory for a link":
            segments.symlink_to(others)
            return
        segments.mkdir()
        if swapped == "file for a link":
            (segments / "segment").symlink_to(others / "segment")
        else:
            (segments / "segment").hardlink_to(others / "segment")

    found = ownership(tmp_path, 71001)
    swap.act = act
    found.change()
    assert swap.act is None, "nothing was given away"
    assert {path.stat().st_uid for path in (others, others / "segment")} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_others_that_is_linked_into_the_data_stays_theirs(tmp_path: Path) -> None:
    (tmp_path / "others").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "segment").touch()
    os.chown(tmp_path / "data" / "segment", 1000, 1000)
    (tmp_path / "data" / "link").hardlink_to(tmp_path / "others")
    ownership(tmp_path, 71001).change()
    assert owners(tmp_path / "data") == {"segment": 71001, "link": 0}
