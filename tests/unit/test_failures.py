"""What a failed run says last: which hosts ended where and why, once more after the recap."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from ansible_collections.prime_spark.fleet.plugins.callback import failures as FAILURES

ROOT = Path(__file__).resolve().parents[2]
HOSTS = """
all:
  vars: {ansible_connection: local, ansible_python_interpreter: "{{ ansible_playbook_python }}"}
  hosts: {one: {}, two: {}, three: {}}
"""
PLAYS = """
- hosts: all
  gather_facts: false
  tasks:
%s
"""


def said_last(tmp_path: Path, tasks: str) -> str:
    """What stands below the recap of a run of these tasks on three hosts."""
    (tmp_path / "hosts.yml").write_text(HOSTS)
    indented = "".join(f"    {line}\n" for line in tasks.strip("\n").splitlines())
    (tmp_path / "play.yml").write_text(PLAYS % indented)
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", tmp_path / "hosts.yml"),
            tmp_path / "play.yml",
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "PLAY RECAP" in done.stdout, done.stderr
    recap = done.stdout.partition("PLAY RECAP")[2]
    return re.sub(r"^ \*+\n(\w+ +: ok=.*\n)+\s*", "", recap).rstrip()


def test_hosts_that_ended_alike_share_an_entry(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Mount the disk
  ansible.builtin.fail:
    msg: "no such disk: {{ 'sdb' if inventory_hostname == 'three' else 'sda' }}"
- name: Never reached
  ansible.builtin.debug:
""",
    )

    where = os.path.relpath(tmp_path / "play.yml", ROOT)
    assert said == (
        "FAILED   one, two: Mount the disk\n"
        "         no such disk: sda\n"
        f"         in {where}:5\n"
        "FAILED   three: Mount the disk\n"
        "         no such disk: sdb\n"
        f"         in {where}:5"
    )


def test_a_run_that_went_well_says_nothing_more(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Ignored
  ansible.builtin.fail: {msg: ignored}
  ignore_errors: true
- block:
    - name: Rescued
      ansible.builtin.fail: {msg: it can be repaired}
  rescue:
    - ansible.builtin.debug: {msg: repaired}
""",
    )

    assert said == ""


def test_a_rescued_failure_does_not_stand_for_the_one_that_ended_the_host(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- block:
    - name: Rescued
      ansible.builtin.fail: {msg: it can be repaired}
  rescue:
    - name: What ended it
      ansible.builtin.fail: {msg: the real reason}
""",
    )

    assert "the real reason" in said
    assert "FAILED   one, three, two: What ended it" in said
    assert "it can be repaired" not in said


def test_what_a_program_wrote_and_what_items_said_is_shown(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Run it
  ansible.builtin.command: sh -c 'echo sda is full >&2; exit {{ item }}'
  loop: [0, 3]
""",
    )

    assert "non-zero return code" in said
    assert "sda is full" in said
    assert "All items completed" not in said and "One or more items failed" not in said


def test_secrets_stay_hidden(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Set the password
  ansible.builtin.command: sh -c 'echo {{ item }} >&2; exit 3'
  loop: [hunter2]
  no_log: true
""",
    )

    assert said.startswith("FAILED   one, three, two: Set the password\n")
    assert "hunter2" not in said


def test_a_long_message_is_cut_in_its_middle(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Talk
  ansible.builtin.fail: {msg: "{{ range(100) | map('string') | join('\\n') }}"}
""",
    )

    lines = [line.strip() for line in said.splitlines()]
    assert lines[1:-1] == [*"012345", "[88 more lines, see above]", *map(str, range(94, 100))]


def test_an_unreachable_host_is_named(tmp_path: Path) -> None:
    said = said_last(
        tmp_path,
        """
- name: Look
  ansible.builtin.command: "true"
  vars: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}
""",
    )

    assert said.startswith("FAILED   one, three, two: Look\n")
    assert "Connection refused" in said


def test_what_items_said_is_shown_where_a_loop_does_not_tell_which_failed() -> None:
    """As with core 2.21, whose results say in no item whether it failed."""
    shown: list[str] = []
    callback = FAILURES.CallbackModule()
    callback._display = SimpleNamespace(display=lambda text, color: shown.append(text))
    callback.get_option = lambda _: None
    task = SimpleNamespace(_uuid="1", get_name=lambda: "Run it", get_path=lambda: "")
    host = SimpleNamespace(get_name=lambda: "one")
    item = {"msg": "non-zero return code", "rc": 3, "stderr": "sda is full"}
    loop = {"changed": True, "msg": "One or more items failed", "results": [{"rc": 0}, item]}
    callback.v2_runner_item_on_failed(SimpleNamespace(task=task, host=host, result=item))
    callback.v2_runner_on_failed(SimpleNamespace(task=task, host=host, result=loop))
    callback.v2_playbook_on_stats(SimpleNamespace(failures={"one": 1}, dark={}))
    (said,) = shown
    lines = [line.strip() for line in said.splitlines()]
    assert lines == ["FAILED   one: Run it", "non-zero return code", "sda is full"]
