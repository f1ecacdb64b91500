"""The catalogue of roles: what its files may say, and that a new role needs nothing but its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible_collections.prime_spark.fleet.plugins.plugin_utils.catalogue import (
    catalogue,
    check,
    data_of,
    of_groups,
    read,
    removable,
)

ROOT = Path(__file__).resolve().parents[2]


def test_what_a_role_needs_is_played_before_it() -> None:
    order = list(catalogue())
    wrong = [
        f"{role} before {needed}"
        for role, entry in catalogue().items()
        for needed in (name.removesuffix("@host") for name in entry.needs)
        if order.index(needed) > order.index(role)
    ]
    assert wrong == []


def test_a_host_has_what_its_groups_say() -> None:
    assert of_groups(["exporters", "redis"], "units") == []
    assert of_groups(["exporters", "redis"], "projects") == ["redis", "exporters"]
    assert of_groups(["kafka", "exporters"], "units") == ["prime-spark-kafka-exporter.service"]
    assert of_groups(["telemetry", "wireguard", "edge"], "roles") == ["wireguard", "telemetry"]
    assert of_groups(["telemetry", "kafka"], "credentials") == ["kafka"]
    assert set(of_groups(["all"], "services")) > {"telemetry", "db"}
    assert data_of("redis", {"redis_data_directory": "/srv"}) == "/srv"
    assert data_of("airflow", {}).endswith("/airflow (its database stays in any case)")
    assert data_of("cli", {}) == ""


def test_the_documents_say_of_the_same_roles_that_they_keep_data() -> None:
    text = (ROOT / "docs" / "operations" / "removal.md").read_text()
    _, _, table = text.partition("| role | data that only a purge removes |")
    rows = [row.split("|")[1:3] for row in table.partition("\n\n")[0].splitlines()[2:]]
    written = {name for roles, data in rows if data.strip() for name in roles.strip().split(", ")}
    assert written == {role for role, entry in catalogue().items() if entry.data}


Change = Callable[[str, str, str], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Change:
    """A copy of the roles and playbooks; replaces a text in a file of it."""
    for name in ("roles", "playbooks"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)

    def change(file: str, old: str, new: str) -> Path:
        path = tmp_path / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return tmp_path

    return change


SITE = [{"hosts": "one:two", "roles": [{"role": "prime_spark.fleet.x", "tags": ["x"]}]}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"expected a mapping, \{\} where there is nothing to say"),
        ({"unit": ["a.service"]}, "unit is unknown, expected needs, single, "),
        ({"units": "a.service"}, "units is 'a.service', expected a list of names, or a mapping"),
        ({"projects": {"a": "one"}}, "projects is {'a': 'one'}, expected a list of names, or"),
        ({"single": "yes"}, "single is 'yes', expected true or false"),
        ({"services": "a"}, "services is 'a', expected a list of strings"),
        ({"needs": ["y@host"]}, "needs has y@host, which is no role of playbooks/site.yml"),
        ({"needs": ["x@host"]}, "needs has x@host, which is the role itself"),
        ({"units": {"a.service": ["two", "tow"]}}, "units has the group tow, which is no play's"),
        ({"projects": {"a": ["tow"]}}, "projects has the group tow, which is no play's"),
        (
            {"scrape": [{"job": "node", "endpoint": "x", "group": "tow"}]},
            "scrape has the group tow, which is no play's",
        ),
        (
            {"scrape": [{"job": "node", "endpoint": "x", "only_prometheus": "yes"}]},
            "scrape is .*, expected a list of mappings with .* and only_prometheus",
        ),
        ({"scrape": [{"job": "node"}]}, "scrape is .*, expected a list of mappings with job, end"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(content: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks" / "site.yml").write_text(yaml.safe_dump(SITE))
    meta = tmp_path / "roles" / "x" / "meta"
    meta.mkdir(parents=True)
    (meta / "fleet.yml").write_text("{units: [a.service]}")
    assert read(tmp_path)["x"].groups == ["one", "two"]
    (meta / "fleet.yml").write_text(yaml.safe_dump(content))
    with pytest.raises(AnsibleError, match=f"roles/x/meta/fleet.yml: {said}"):
        read(tmp_path)


def test_a_file_that_is_missing_or_no_yaml_is_named(changed: Change) -> None:
    root = changed("roles/cli/meta/fleet.yml", "needs: [", "needs: [[")
    path = root / "roles" / "cli" / "meta" / "fleet.yml"
    with pytest.raises(AnsibleError, match=f"{path}: this is no YAML: .* line 2, column"):
        read(root)
    path.unlink()
    with pytest.raises(AnsibleError, match=f"{path} is missing, .* write it, with {{}} where"):
        read(root)


@pytest.mark.parametrize("file", ["fleet.yml", "argument_specs.yml"])
def test_a_role_that_no_play_has_is_named(file: str, changed: Change) -> None:
    root = changed("roles/cli/meta/fleet.yml", "", "")
    meta = root / "roles" / "alone" / "meta"
    meta.mkdir(parents=True)
    options = {"alone_state": {"type": "str"}}
    specs = {"argument_specs": {"main": {"options": options}}}
    (meta / file).write_text(yaml.safe_dump(specs if "specs" in file else {}))
    with pytest.raises(AnsibleError, match=r"alone/meta/fleet\.yml: no play .*, add a play for it"):
        read(root)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "hosts: cli",
            "hosts: [cli]",
            r"hosts: \['cli'\], expected a group, or several as one:two",
        ),
        ("hosts: cli", "hosts: cli:!edge", "hosts: cli:!edge, expected a group, or several as"),
        *(
            (
                "[{role: prime_spark.fleet.cli, tags: [cli]}]",
                roles,
                r"the role .*cli.*, expected \{role: prime_spark.fleet.NAME, tags: \[NAME\]\}",
            )
            for roles in (
                "[prime_spark.fleet.cli]",
                "prime_spark.fleet.cli",
                "[{role: cli, tags: [cli]}]",
                "[{role: prime_spark.fleet.cli}]",
            )
        ),
    ],
)
def test_a_play_of_another_form_is_named(old: str, new: str, said: str, changed: Change) -> None:
    root = changed("playbooks/site.yml", old, new)
    with pytest.raises(AnsibleError, match=f"playbooks/site.yml: the play Command line has {said}"):
        read(root)


def checked(root: Path, role: str) -> None:
    directory = root / "roles" / role
    specs = yaml.safe_load((directory / "meta" / "argument_specs.yml").read_text())
    defaults = yaml.safe_load((directory / "defaults" / "main.yml").read_text())
    check(root, read(root)[role], specs["argument_specs"]["main"]["options"], defaults)


def test_every_role_has_what_its_entry_says_and_is_removable() -> None:
    assert [role for role in catalogue() if removable(role) != role] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("meta/argument_specs.yml", "redis_state:", "redis_status:", "the option redis_state with"),
        (
            "meta/argument_specs.yml",
            "[present, absent]",
            "[up, down]",
            "the option redis_state wit",
        ),
        ("meta/argument_specs.yml", "redis_purge:", "redis_purged:", "the option redis_purge, as"),
        ("tasks/main.yml", "redis_state", "redis_status", "no task looks at redis_state"),
        ("tasks/main.yml", "redis_purge", "redis_purged", "no task looks at redis_purge"),
    ],
)
def test_a_role_that_a_removal_would_install_is_refused(
    file: str, old: str, new: str, said: str, changed: Change
) -> None:
    checked(changed(f"roles/redis/{file}", "redis_", "redis_"), "redis")
    with pytest.raises(AnsibleError, match=f"roles/redis/{file.partition('/main')[0]}: .*{said}"):
        checked(changed(f"roles/redis/{file}", old, new), "redis")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "endpoint: deadman",
            "endpoint: deadmen",
            "scrape has the endpoint deadmen, but the role ",
        ),
        ("endpoint: deadman", "endpoint: redis", "scrape has the endpoint redis, but the role has"),
        ("data: [/var", "data: [var", "data has var/lib/private/prime-spark-deadman, which is nei"),
        ("[deadman]", "[dead]", "services has dead, which no task of the role installs"),
    ],
)
def test_an_entry_of_what_the_role_has_not_is_refused(
    old: str, new: str, said: str, changed: Change
) -> None:
    with pytest.raises(AnsibleError, match=f"roles/deadman/meta/fleet.yml: {said}"):
        checked(changed("roles/deadman/meta/fleet.yml", old, new), "deadman")


# --- a role that is new, in a copy of the repository ------------------------------------------


def example() -> dict[str, str]:
    """The files of the role toy, as the section of docs/architecture.md shows them."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.partition("\n## Adding a role\n")[2].partition("\n## ")[0]
    block = r"^`((?:roles|playbooks)/\S+)`[^\n]*(?:\n[^\n]+)*:\n\n((?:    .*\n|\n)+)"
    return {
        path: textwrap.dedent(content) for path, content in re.findall(block, section, re.MULTILINE)
    }


TOY = example()


def run(tree: Path, inventory: dict[str, Any], *arguments: str) -> tuple[int, str]:
    """Run playbooks of the copy on hosts that are this machine; exit status and output."""
    variables = {"ansible_connection": "local", "ansible_become": False}
    file = tree / f"{arguments[0].replace('/', '-')}.hosts.yml"
    file.write_text(json.dumps({"all": {"vars": variables, "children": inventory}}))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", file, *arguments],
        cwd=tree,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(tree / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[tuple[int, str]]]]:
    """A run on a wrong inventory, and one of what plays on hosts that have or had the role."""
    tree = tmp_path_factory.mktemp("repository")
    for name in ("collections", "meta", "roles", "plugins", "playbooks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    settings = (ROOT / "ansible.cfg").read_text().splitlines(keepends=True)
    (tree / "ansible.cfg").write_text("".join(s for s in settings if "vault" not in s))
    for name, content in TOY.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before, record, after = path.read_text().partition("- name: Record\n")
            content = before + content + record + after
        path.write_text(content)
    wrong = {
        "managed": {"hosts": {"one": {"toy_prot": 1, "toy_state": "gone"}}},
        "toy": {"hosts": {"one": {}}},
    }
    verify = yaml.safe_load((ROOT / "playbooks" / "verify.yml").read_text())[1]
    looked_at = verify["tasks"][0]["prime_spark.fleet.host_health"]["units"]
    targets = (
        "{{ (groups | prime_spark.fleet.monitoring_targets(hostvars) | first).values()"
        " | join(' ') }}"
    )
    look = {
        "hosts": "toy",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.debug": {"msg": f"looks at {looked_at}"}},
            {"ansible.builtin.debug": {"msg": f"scrapes {targets}"}},
        ],
    }
    (tree / "playbooks" / "look.yml").write_text(yaml.safe_dump([look]))
    hosts: dict[str, Any] = {
        "one": {"wireguard_address": "10.0.0.1", "vault_toy": "new", "vault_toy_previous": "old"},
        # It had the role and is in the group no more.
        "two": {"host_precheck": {"recorded": ["toy"]}},
    }
    right = {"managed": {"hosts": hosts}, "toy": {"hosts": {"one": {}}}}
    played = ["playbooks/look.yml", "playbooks/rotate.yml", "playbooks/leftovers.yml"]
    arguments = [
        *(*played, "playbooks/remove.yml"),
        # What begins each playbook: facts of this machine are asked for in other tests.
        *("--skip-tags", "always", "--limit", "one,two"),
        *("-e", "rotate_secret=vault_toy", "-e", "confirm_removal=toy", "-e", "role=toy"),
    ]
    with ThreadPoolExecutor(2) as pool:
        yield {
            "wrong": pool.submit(run, tree, wrong, "playbooks/validate.yml"),
            "right": pool.submit(run, tree, right, *arguments),
        }


def test_the_example_has_what_every_role_has() -> None:
    options = yaml.safe_load(TOY["roles/toy/meta/argument_specs.yml"])["argument_specs"]["main"]
    assert set(options["options"]) == set(yaml.safe_load(TOY["roles/toy/defaults/main.yml"]))
    assert all({"type", "description"} <= option.keys() for option in options["options"].values())
    real = {path for entry in ("cli", "redis") for path in (ROOT / "roles" / entry).glob("*/*.yml")}
    parts = {str(path.relative_to(ROOT / "roles")).partition("/")[2] for path in real}
    ours = {path.removeprefix("roles/toy/") for path in TOY}
    assert ours - parts == {"playbooks/site.yml"}


def test_a_new_role_is_validated(runs: dict[str, Future[tuple[int, str]]]) -> None:
    status, said = runs["wrong"].result()
    assert status == 2, said
    assert [" ".join(line.split()) for line in said.splitlines() if line.startswith("REFUSED")] == [
        "REFUSED one: is in the group toy, but not in wireguard, which that needs",
        "REFUSED one: toy_prot is not a variable of role toy; did you mean toy_port?",
        "REFUSED one: toy_state is 'gone', expected one of present, absent",
        "REFUSED vault: vault_toy is missing, expected a secret for toy_password of one; "
        "`make secrets INVENTORY=.` makes it",
    ], said


def test_a_new_role_is_verified_scraped_rotated_and_removed(
    runs: dict[str, Future[tuple[int, str]]],
) -> None:
    status, said = runs["right"].result()
    assert status == 0, said
    text = " ".join(said.split())
    assert "looks at ['toy.service']" in text, said
    assert "scrapes prime_spark one 10.0.0.1:9999 toy" in text, said
    assert "ok: [one] => msg: new was tried" in text, said
    removed = text.partition("PLAY [Remove roles from hosts that left their group]")[2].partition(
        "PLAY [Guard]"
    )
    assert "ok: [two] => msg: toy is absent" in removed[0], said
    assert "ok: [one] => msg: toy is absent" not in removed[0], said
    assert "ok: [one] => msg: toy is absent" in removed[2], said
    assert "toy left one; its data stays: /srv/toy; installed packages stay" in text, said
