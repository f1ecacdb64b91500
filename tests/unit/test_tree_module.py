"""What the modules that write files leave in a host's journal about the call."""

from __future__ import annotations

from importlib import import_module

import pytest
from ansible_collections.prime_spark.fleet.plugins.module_utils import tree

SECRET = "a-secret-of-one-line"


@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f'user "x"\n  password "{SECRET}";\n'])
def test_the_journal_gets_no_content_of_a_secret_file(content: str) -> None:
    module = tree.TreeModule.__new__(tree.TreeModule)
    module.params = {
        "name": "kafka",
        "state": "present",
        "files": [{"path": "/etc/x", "content": "x"}],
        "secret_files": [{"path": "/etc/y", "content": content}],
    }
    said: list[str] = []
    module.log = lambda message, **_: said.append(message)
    module._log_invocation()
    assert said == ["Invoked for kafka, state present, 2 files"]


@pytest.mark.parametrize("name", ["config_tree", "compose_project", "converge_command"])
def test_every_module_that_takes_secret_files_is_such_a_module(name: str) -> None:
    module = import_module(f"ansible_collections.prime_spark.fleet.plugins.modules.{name}")
    assert module.TreeModule is tree.TreeModule
    assert hasattr(tree.TreeModule.__mro__[1], "_log_invocation"), (
        "Ansible calls it differently now"
    )
