"""config_tree, run by Ansible on this machine in a directory of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils.tree import Tree, TreeError

ROOT = Path(__file__).resolve().parents[2]
USER = str(os.getuid())
GROUP = str(os.getgid())


def params(tmp: Path, contents: dict[str, str], **more: Any) -> dict[str, Any]:
    owned = {"owner": USER, "group": GROUP}
    return {
        "name": "example",
        "files": [
            {"path": str(tmp / name), "content": text, "mode": "0644", **owned}
            for name, text in contents.items()
        ],
        "secret_files": [],
        "directories": [
            {"path": str(tmp / "etc"), "mode": "0755", "purge": True, **owned},
        ],
        "validate": [],
        **more,
    }


def tree(tmp: Path, contents: dict[str, str], **more: Any) -> Tree:
    return Tree(params(tmp, contents, **more), record_dir=str(tmp / "records"))


def write(wanted: Tree) -> None:
    wanted.apply(wanted.difference())
    wanted.save(files=sorted(file.path for file in wanted.files))


@pytest.fixture(autouse=True)
def records_belong_to_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside root, a file cannot be given to root."""
    if os.getuid() != 0:
        monkeypatch.setattr("os.fchown", lambda *_: None)


def test_a_written_tree_has_no_difference(tmp_path: Path) -> None:
    write(tree(tmp_path, {"etc/a": "1\n"}))
    assert not tree(tmp_path, {"etc/a": "1\n"}).difference()
    assert (tmp_path / "etc/a").read_text() == "1\n"


def test_content_mode_and_stray_files_are_differences(tmp_path: Path) -> None:
    write(tree(tmp_path, {"etc/a": "1\n", "etc/b": "2\n"}))
    (tmp_path / "etc/a").write_text("edited")
    (tmp_path / "etc/b").chmod(0o600)
    (tmp_path / "etc/stray").write_text("")
    found = tree(tmp_path, {"etc/a": "1\n", "etc/b": "2\n"}).difference()
    assert [file.path for file in found.write] == [str(tmp_path / "etc/a")]
    assert [file.path for file in found.attributes] == [str(tmp_path / "etc/b")]
    assert found.remove == [str(tmp_path / "etc/stray")]


def test_only_what_left_the_tree_is_removed_from_a_shared_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/foreign").write_text("not ours")
    write(tree(tmp_path, {"shared/a": "1", "shared/b": "2"}))
    write(tree(tmp_path, {"shared/a": "1"}))
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == ["a", "foreign"]


def test_an_interrupted_write_is_still_owned(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    first = tree(tmp_path, {"shared/a": "1", "shared/b": "2"})
    first.apply(first.difference())  # no save: the run died here
    write(tree(tmp_path, {"shared/a": "1"}))
    assert [p.name for p in (tmp_path / "shared").iterdir()] == ["a"]


def test_a_refused_configuration_changes_nothing(tmp_path: Path) -> None:
    write(tree(tmp_path, {"etc/a": "good\n"}))
    check = ["grep", "-q", "good", "{stage}" + str(tmp_path / "etc/a")]
    tree(tmp_path, {"etc/a": "good too\n"}, validate=[check]).validate()
    bad = tree(tmp_path, {"etc/a": "evil\n"}, validate=[check])
    with pytest.raises(TreeError, match="nothing was changed"):
        bad.validate()
    assert (tmp_path / "etc/a").read_text() == "good\n"


def test_the_diff_of_a_secret_shows_no_content(tmp_path: Path) -> None:
    secret = {"path": str(tmp_path / "etc/s"), "content": "hunter2", "mode": "0600"}
    wanted = tree(tmp_path, {}, secret_files=[{**secret, "owner": USER, "group": GROUP}])
    shown = json.dumps(wanted.diff(wanted.difference()))
    assert "hunter2" not in shown
    assert str(tmp_path / "etc/s") in shown


def test_the_fingerprint_covers_content_mode_and_path(tmp_path: Path) -> None:
    base = tree(tmp_path, {"etc/a": "1"}).fingerprint()
    assert tree(tmp_path, {"etc/a": "2"}).fingerprint() != base
    assert tree(tmp_path, {"etc/b": "1"}).fingerprint() != base
    assert tree(tmp_path, {"etc/a": "1"}).fingerprint("release 2") != base
    closed = params(tmp_path, {"etc/a": "1"})
    closed["files"][0]["mode"] = "0600"
    assert Tree(closed, record_dir=str(tmp_path / "records")).fingerprint() != base
    assert tree(tmp_path, {"etc/a": "1"}).fingerprint() == base


PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {{greeting: {greeting}, where: {where}}}
  tasks:
    - prime_spark.fleet.config_tree:
        name: "{name}"
        trees:
          - {{src: tree, dest: "{{{{ where }}}}", owner: "{user}", group: "{group}", purge: true}}
          - src: secret
            dest: "{{{{ where }}}}/secret"
            owner: "{user}"
            group: "{group}"
            secret: true
"""


@pytest.mark.skipif(os.getuid() != 0, reason="the record of a tree lies in root's directory")
def test_the_action_renders_a_directory_and_hides_secrets(tmp_path: Path) -> None:
    (tmp_path / "templates/tree/below").mkdir(parents=True)
    (tmp_path / "templates/secret").mkdir()
    (tmp_path / "templates/tree/below/hello.conf.j2").write_text("{{ greeting }} {{ 1 + 1 }}\n")
    (tmp_path / "templates/tree/plain").write_text("{{ not rendered }}\n")
    (tmp_path / "templates/secret/key.j2").write_text("{{ greeting }}-secret\n")
    name = f"test-{os.getpid()}"
    out = ""

    def play(greeting: str, *flags: str) -> str:
        where = tmp_path / "out"
        text = PLAY.format(greeting=greeting, where=where, name=name, user=USER, group=GROUP)
        (tmp_path / "play.yml").write_text(text)
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                "-i",
                "localhost,",
                "--diff",
                *flags,
            ]
            + ["-e", f"ansible_python_interpreter={sys.executable}", str(tmp_path / "play.yml")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        out = play("hello", "--check")
        assert "changed=1" in out and not (tmp_path / "out").exists()
        out = play("hello")
        assert "+hello 2" in out and "hello-secret" not in out
        assert (tmp_path / "out/below/hello.conf").read_text() == "hello 2\n"
        assert (tmp_path / "out/plain").read_text() == "{{ not rendered }}\n"
        assert (tmp_path / "out/secret/key").stat().st_mode & 0o777 == 0o600
        assert "changed=0" in play("hello")
        assert "changed=0" not in play("goodbye", "--check")
        assert "hello-secret" not in play("goodbye", "-vvv")
    finally:
        Path(f"/var/lib/prime-spark/trees/{name}.json").unlink(missing_ok=True)
