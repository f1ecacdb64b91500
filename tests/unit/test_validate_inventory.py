"""Wrong inventories are refused before any host is contacted, with a sentence that says what to do.

Each case is the lab's inventory with one mistake, run through the real playbooks/validate.yml; two
of them run through site.yml. Its ssh only notes that it was called.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import yaml

from tests.unit.warm import playbook, processes
from tools.vault import References

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
SECRETS = References(ROOT / "inventories" / "lab").required
DIGEST = "sha256:" + "0" * 64

Inventory: TypeAlias = dict[str, Any]


class Run(NamedTuple):
    """What a run of site.yml printed, how it ended, its processor time, the hosts it contacted."""

    output: str
    status: int
    seconds: float
    contacted: str


class Case(NamedTuple):
    """A mistake, and the pattern of the line that refuses it."""

    name: str
    change: Callable[[Inventory], None]
    refusal: str
    arguments: tuple[str, ...] = ()


def inventory() -> Inventory:
    """The lab's inventory as data, with stand-ins for what the lab makes."""
    lab = ROOT / "inventories" / "lab"
    return {
        "hosts": yaml.safe_load((lab / "hosts.yml").read_text()),
        "main": yaml.safe_load((lab / "group_vars" / "all" / "main.yml").read_text()),
        "vault": {name: f"{name}-{'x' * 24}" for name in SECRETS},
        "images": {
            "images": {
                name: f"registry.invalid/{name}:1@{DIGEST}"
                for name in (
                    *(
                        "airflow",
                        "kafka",
                        "llama",
                        "redis",
                        "timescale",
                        "prometheus",
                        "alertmanager",
                    ),
                    *("postgres-exporter", "redis-exporter"),
                )
            }
        },
    }


def groups(data: Inventory) -> dict[str, Any]:
    return dict(data["hosts"]["all"]["children"])


def host(data: Inventory, name: str) -> dict[str, Any]:
    """The variables of a host, to be changed."""
    for group in groups(data).values():
        if isinstance(found := (group.get("hosts") or {}).get(name), dict) and found:
            return found
    raise KeyError(name)


def on(name: str, **variables: Any) -> Callable[[Inventory], None]:
    """Set variables of one host."""
    return lambda data: host(data, name).update(variables)


def everywhere(**variables: Any) -> Callable[[Inventory], None]:
    """Set variables of all hosts."""
    return lambda data: data["main"].update(variables)


def client(name: str, address: str) -> Callable[[Inventory], None]:
    """A device that no playbook manages."""
    return everywhere(wireguard_clients=[{"name": name, "address": address, "public_key": "key"}])


def without(part: str, name: str) -> Callable[[Inventory], None]:
    def change(data: Inventory) -> None:
        del data[part][name]

    return change


def second_hub(data: Inventory) -> None:
    host(data, "primecore1")["wireguard_role"] = "hub"


def no_hub(data: Inventory) -> None:
    del host(data, "control-pc-1")["wireguard_role"]


def idle_host(data: Inventory) -> None:
    data["hosts"]["all"]["hosts"] = {"printer-1": {"ansible_host": "10.90.1.99"}}


def unprepared_host(data: Inventory) -> None:
    children = data["hosts"]["all"]["children"]
    children["telemetry"]["hosts"] = {"pi-2": {"ansible_host": "10.90.1.99"}}
    children["wireguard"]["hosts"] = {"pi-2": {"wireguard_address": "10.90.8.9"}}


def misspelt_group(data: Inventory) -> None:
    children = data["hosts"]["all"]["children"]
    children["kafak"] = {"hosts": {"spark-agent-1": {}}}


def two_databases(data: Inventory) -> None:
    children = data["hosts"]["all"]["children"]
    children["timescale"]["hosts"]["primecore4"] = {}


def no_kafka(data: Inventory) -> None:
    data["hosts"]["all"]["children"]["kafka"] = {"hosts": {}}


def outside_the_vpn(data: Inventory) -> None:
    children = data["hosts"]["all"]["children"]
    children["wireguard"] = {"hosts": {"control-pc-1": {}, "spark-agent-1": {}, "primecore4": {}}}


CASES = [
    Case(
        "a misspelt variable",
        on("spark-agent-1", telemetry_intervall_seconds=5),
        "spark-agent-1: telemetry_intervall_seconds is not a variable of role telemetry; "
        "did you mean telemetry_interval_seconds?",
    ),
    Case(
        "a misspelt prefix",
        on("primecore1", wireguad_address="10.90.8.77"),
        "primecore1: wireguad_address is no variable of any role; did you mean wireguard_address?",
    ),
    Case(
        "a role's internal variable",
        everywhere(__wireguard_interface="wg1"),
        "primecore4: __wireguard_interface is internal to its role, an inventory cannot set it",
    ),
    Case(
        "no CIDR",
        everywhere(wireguard_network="10.90.8.0/33"),
        "primecore1: wireguard_network is '10.90.8.0/33', expected a network in CIDR notation",
    ),
    Case(
        "host bits in a network",
        everywhere(wireguard_network="10.90.8.1/24"),
        "primecore1: wireguard_network is '10.90.8.1/24', expected a network in CIDR notation",
    ),
    Case(
        "an address twice in the VPN",
        on("primecore4", wireguard_address="10.90.8.11"),
        "primecore1, primecore4: wireguard_address is 10.90.8.11 on each, expected one of its own",
    ),
    Case(
        "an address outside the VPN",
        on("primecore4", wireguard_address="10.90.9.14"),
        "primecore4: wireguard_address is 10.90.9.14, expected one within wireguard_network "
        "10.90.8.0/24",
    ),
    Case(
        "an address with a length",
        on("primecore4", wireguard_address="10.90.8.14/24"),
        "primecore4: wireguard_address is '10.90.8.14/24', expected an address like 10.8.0.3 "
        "without a length",
    ),
    Case(
        "an address that the network keeps",
        on("primecore4", wireguard_address="10.90.8.255"),
        "primecore4: wireguard_address is 10.90.8.255, which wireguard_network 10.90.8.0/24 keeps "
        "for itself",
    ),
    Case(
        "a phone outside the VPN",
        client("phone", "10.90.9.40"),
        "control-pc-1: wireguard_clients: the address of phone is 10.90.9.40, expected one within",
    ),
    Case(
        "a phone with a host's address",
        client("phone", "10.90.8.14"),
        "control-pc-1: wireguard_clients: the address of phone is 10.90.8.14, which primecore4 has",
    ),
    Case(
        "a VPN over a LAN",
        everywhere(wireguard_network="10.90.0.0/16"),
        "spark-agent-1: ansible_host is 10.90.1.11, which lies in the VPN's range "
        "wireguard_network 10.90.0.0/16",
    ),
    Case(
        "container networks over the VPN",
        everywhere(docker_address_pools=[{"base": "10.90.8.0/22", "size": 24}]),
        "control-pc-1: docker_address_pools has 10.90.8.0/22, which overlaps the VPN's "
        "10.90.8.0/24",
    ),
    Case(
        "no hub",
        no_hub,
        "wireguard: the hubs (wireguard_role: hub) are none, expected exactly one",
    ),
    Case(
        "two hubs",
        second_hub,
        "wireguard: the hubs (wireguard_role: hub) are control-pc-1, primecore1, expected "
        "exactly one",
    ),
    Case(
        "a hub that nobody can reach",
        on("control-pc-1", wireguard_endpoint=""),
        "control-pc-1: wireguard_endpoint is empty, expected the address and port by which the "
        "other hosts reach this hub",
    ),
    Case(
        "an endpoint without port",
        on("control-pc-1", wireguard_endpoint="198.51.100.2"),
        "control-pc-1: wireguard_endpoint is '198.51.100.2', expected ADDRESS:PORT",
    ),
    Case(
        "a host without a role",
        idle_host,
        "printer-1: is in no group that is a role, expected at least one of airflow, api, cli, ",
    ),
    Case(
        "a host with roles that no run prepares",
        unprepared_host,
        "pi-2: is in none of the groups managed, nas_server, whose hosts a run prepares and "
        "verifies; put it into a group below managed",
    ),
    Case(
        "a misspelt group",
        misspelt_group,
        "kafak: no role is called like this group; did you mean kafka?",
    ),
    Case(
        "two databases",
        two_databases,
        "timescale: the group has 2 hosts (primecore1, primecore4), expected at most one",
    ),
    Case(
        "telemetry without Kafka",
        no_kafka,
        "kafka: the group is empty, but control-pc-1, primecore1, primecore4, spark-agent-1 of "
        "telemetry need it",
    ),
    Case(
        "a database outside the VPN",
        outside_the_vpn,
        "primecore1: is in the group timescale, but not in wireguard, which that needs",
    ),
    Case(
        "a missing secret",
        without("vault", "vault_kafka_ingest_password"),
        "vault: vault_kafka_ingest_password is missing, expected a secret for ",
    ),
    Case(
        "no vault",
        lambda data: data["vault"].clear(),
        "vault: 34 secrets are missing, expected in the inventory's group_vars/all/vault.yml: "
        "vault_agent_token, ",
    ),
    Case(
        "a short secret",
        lambda data: data["vault"].update(vault_redis_telemetry_password="hunter2"),
        "control-pc-1: vault_redis_telemetry_password has 7 characters, expected at least 16",
    ),
    Case(
        "a wrong choice",
        everywhere(nas_protocol="nfs3"),
        "spark-agent-1: nas_protocol is 'nfs3', expected one of auto, nfs4, cifs, sshfs",
    ),
    Case(
        "a word for a number",
        everywhere(telemetry_interval_seconds="five"),
        "primecore1: telemetry_interval_seconds is 'five', expected a whole number",
    ),
    Case(
        "a text for a list",
        everywhere(nas_server_networks="10.90.1.0/24"),
        "nas-1: nas_server_networks is '10.90.1.0/24', expected a list of texts",
    ),
    Case(
        "an interval of nothing",
        everywhere(telemetry_interval_seconds=0),
        "primecore1: telemetry_interval_seconds is 0, expected at least 1",
    ),
    Case(
        "a negative number",
        on("control-pc-1", docker_log_max_file=-1),
        "control-pc-1: docker_log_max_file is -1, expected no negative number",
    ),
    Case(
        "a variable of a play",
        everywhere(verify_fresh=60),
        "primecore1: verify_fresh belongs to playbooks/verify.yml, where the inventory's value has "
        "no effect",
    ),
    Case(
        "a suboption of the wrong type",
        everywhere(wireguard_clients=[{"name": "phone", "address": "10.90.8.40"}]),
        "control-pc-1: wireguard_clients is [{'address': '10.90.8.40', 'name': 'phone'}], expected "
        "a list of mappings (missing required arguments: public_key",
    ),
    Case(
        "a word for a boolean on the command line",
        everywhere(),
        "control-pc-1: kafka_purge_topics is 'false', expected true or false; "
        "on the command line: -e '{\"kafka_purge_topics\": true}'",
        ("-e", "kafka_purge_topics=false"),
    ),
    Case(
        "a number on the command line that is a text",
        everywhere(),
        "control-pc-1: telemetry_interval_seconds is the text '7', expected a number; "
        "on the command line: -e '{\"telemetry_interval_seconds\": 7}'",
        ("-e", "telemetry_interval_seconds=7"),
    ),
    Case(
        "a number in quotes",
        everywhere(telemetry_interval_seconds="7"),
        "primecore1: telemetry_interval_seconds is the text '7', expected a number: no quotes",
    ),
    Case(
        "a number for a text, within a list",
        everywhere(wireguard_clients=[{"name": 5, "address": "10.90.8.40", "public_key": "k"}]),
        "control-pc-1: wireguard_clients: name is the number 5, expected a text: in quotes",
    ),
    Case(
        "a number for a text",
        everywhere(monitoring_scrape_interval=5),
        "primecore1: monitoring_scrape_interval is the number 5, expected a text: in quotes",
    ),
    Case(
        "a port that is none",
        on("control-pc-1", api_port=80800),
        "control-pc-1: api_port is 80800, expected a port between 1 and 65535",
    ),
    Case(
        "a port twice",
        on("control-pc-1", api_port=16379),
        "control-pc-1: api_port and redis_port are both 16379, expected two ports",
    ),
    Case(
        "less memory than quotas",
        on("control-pc-1", redis_max_memory="64mb"),
        "control-pc-1: api_memory_quotas: all_bytes of redis is 50331648, expected at most "
        "33554432, half of redis_max_memory 64mb of control-pc-1; lower it, or raise ",
    ),
    Case(
        "a missing image",
        lambda data: data["images"]["images"].pop("redis"),
        "control-pc-1: redis_image cannot be worked out: ",
    ),
    Case(
        "an image reference that is none",
        lambda data: data["images"]["images"].update(redis="redis 8"),
        "control-pc-1: redis_image is 'redis 8', expected NAME:TAG@sha256:DIGEST",
    ),
    Case(
        "a mount point that is the system's",
        everywhere(nas_mount_point="/mnt"),
        "control-pc-1: nas_mount_point is '/mnt', expected a directory such as /mnt/nas",
    ),
    Case(
        "data in a system directory",
        on("control-pc-1", kafka_data_directory="/var/"),
        "control-pc-1: kafka_data_directory is '/var/', expected a directory such as "
        "/var/lib/prime-spark/",
    ),
    Case(
        "a required variable left out",
        without("main", "nas_server"),
        "control-pc-1: nas_server is not set, expected a text",
    ),
    Case(
        "a host twice",
        on("primecore4", ansible_host="198.51.100.11"),
        "primecore1, primecore4: ansible_host is 198.51.100.11 on each, expected one of its own",
    ),
    Case(
        "a mistake outside the limit",
        on("primecore4", wireguard_address="10.90.8.11"),
        "primecore1, primecore4: wireguard_address is 10.90.8.11 on each",
        ("--limit", "spark-agent-1", "--tags", "api"),
    ),
]


# With each, site.yml ends at the play that refuses it: these show that, one with tags and limit.
WHOLE = [CASES[0], CASES[-1]]


def written(directory: Path, data: Inventory) -> tuple[list[str], dict[str, str], Path]:
    """Write an inventory; returns its arguments, a run's environment, and who was contacted."""
    lab = directory / "lab"
    group_vars = directory / "inventory" / "group_vars" / "all"
    for path in (group_vars, lab / "ssh", lab / "secrets"):
        path.mkdir(parents=True)
    nas = data["main"].get("nas_server", "10.90.1.12")
    (lab / "ssh" / "known_hosts").write_text(f"{nas} ssh-ed25519 AAAA\n")
    (lab / "ssh" / "id_ed25519").write_text("a key\n")
    (lab / "secrets" / "vault-password").write_text("a password of the vault\n")
    (directory / "inventory" / "hosts.yml").write_text(yaml.safe_dump(data["hosts"]))
    for part in ("main", "vault", "images"):
        (group_vars / f"{part}.yml").write_text(yaml.safe_dump(data[part]))
    contacted = directory / "contacted"
    ssh = directory / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {contacted}\nexit 255\n')
    ssh.chmod(0o755)
    environment = {
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_SSH_EXECUTABLE": str(ssh),
        "PRIME_SPARK_LAB_DIR": str(lab),
        "COLUMNS": "400",
    }
    return ["--inventory", str(directory / "inventory")], environment, contacted


def play(directory: Path, data: Inventory, *arguments: str, playbook: str = "site.yml") -> Run:
    """Run a playbook on an inventory written from data."""
    inventory, environment, contacted = written(directory, data)
    with (directory / "output").open("w+") as output:
        process = subprocess.Popen(
            [
                Path(sys.executable).parent / "ansible-playbook",
                *(*inventory, playbook, *arguments),
            ],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # Its processor time, not the clock's: other work on the machine is none of its business.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return Run(
            output.read(),
            process.returncode,
            used.ru_utime + used.ru_stime,
            contacted.read_text() if contacted.exists() else "",
        )


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Run]]]:
    """All cases that were asked for, two at a time."""
    asked = {
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and "case" in getattr(item, "callspec", item).__dict__.get("params", {})
    }
    pool, warm = ThreadPoolExecutor(2), processes(2)

    def start(case: Case) -> Run:
        data, directory = inventory(), tmp_path_factory.mktemp("inventory")
        case.change(data)
        if case in WHOLE:
            return play(directory, data, *case.arguments)
        # The first of the plays that site.yml imports, where every mistake is refused.
        arguments, environment, contacted = written(directory, data)
        arguments += ["playbooks/validate.yml", *case.arguments]
        output = directory / "output"
        status, seconds = warm.submit(playbook, arguments, environment, output).result()
        return Run(
            output.read_text(),
            status,
            seconds,
            contacted.read_text() if contacted.exists() else "",
        )

    with warm:
        futures = {case.name: pool.submit(start, case) for case in CASES if case in asked}
        pool.shutdown(wait=False)
        yield futures
        pool.shutdown()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_inventory_is_refused(case: Case, runs: dict[str, Future[Run]]) -> None:
    run = runs[case.name].result()
    refusals = [
        re.sub(r":\s+", ": ", line.removeprefix("REFUSED").strip(), count=1)
        for line in run.output.splitlines()
        if line.startswith("REFUSED")
    ]
    assert any(line.startswith(case.refusal) for line in refusals), run.output[-3000:]
    assert run.status == 2
    assert run.contacted == "", "a host was contacted"
    assert run.seconds < SECONDS
    assert "see the lines above; no host was contacted" in run.output


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the right inventory, whose hosts cannot be reached."""
    return play(tmp_path_factory.mktemp("right"), inventory(), "--tags", "api")


def test_the_lab_inventory_is_accepted(unreachable: Run) -> None:
    assert "REFUSED" not in unreachable.output, unreachable.output[-3000:]
    # The run went on to the hosts, so the other tests would have noticed a contact.
    assert "10.90.1.10" in unreachable.contacted


def test_hosts_that_cannot_be_reached_are_deferred(unreachable: Run) -> None:
    assert unreachable.status == 4, unreachable.output[-3000:]
    for name in ("control-pc-1", "spark-agent-1", "primecore1", "primecore4", "nas-1"):
        said = re.findall(rf"^{name} is unreachable \(.*", unreachable.output, re.MULTILINE)
        assert len(said) == 1, said
        assert said[0].endswith(": deferred, the next run catches it up")
    assert "failed=1" not in unreachable.output


def test_a_connection_decides_that_no_other_run_uses(unreachable: Run) -> None:
    """Another run's connection may hang since its host went away, and is not ours to close."""
    calls = unreachable.contacted.splitlines()
    assert len(calls) == 5, calls
    for call in calls:
        # What ssh is told first counts.
        assert re.findall(r"Control(?:Master|Path)=\S+", call)[:2] == [
            "ControlMaster=no",
            "ControlPath=none",
        ]
        assert " -O " not in call


def test_an_image_without_digest_is_a_warning(tmp_path: Path) -> None:
    data = inventory()
    data["images"]["images"]["kafka"] = "apache/kafka:4.2.0"
    run = play(tmp_path, data, playbook="playbooks/validate.yml")
    assert "REFUSED" not in run.output
    assert "kafka_image apache/kafka:4.2.0; `make pin-images` writes the digests" in run.output


def test_no_secret_is_shown(tmp_path: Path) -> None:
    data = inventory()
    data["main"]["kafka_users"] = ["vault-canary-value"]
    data["main"]["kafka_admin_password"] = {"text": "vault-canary-value"}
    run = play(tmp_path, data, playbook="playbooks/validate.yml")
    assert "kafka_users is a value that is not shown, expected a mapping" in run.output
    assert "kafka_admin_password is a value that is not shown, expected a text" in run.output
    assert "vault-canary-value" not in run.output


def test_the_production_inventory_lacks_only_what_its_owner_has_to_set(tmp_path: Path) -> None:
    copy = tmp_path / "production"
    shutil.copytree(ROOT / "inventories" / "production", copy)
    vault = {name: f"{name}-{'x' * 24}" for name in SECRETS}
    (copy / "group_vars" / "all" / "vault.yml").write_text(yaml.safe_dump(vault))
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            "--inventory",
            copy,
            "playbooks/validate.yml",
        ],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    refusals = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(refusals) == 1 and "control-pc-1: wireguard_endpoint is empty" in refusals[0]


def test_a_vault_without_its_password_is_named_with_a_remedy(tmp_path: Path) -> None:
    copy = tmp_path / "production"
    shutil.copytree(ROOT / "inventories" / "production", copy)
    (tmp_path / "password").write_text("another")
    vault = copy / "group_vars" / "all" / "vault.yml"
    vault.write_text("vault_wireguard_psk_seed: unimportant\n")
    tools = Path(sys.executable).parent
    identity = f"other@{tmp_path / 'password'}"
    encrypt = [tools / "ansible-vault", "encrypt", "--encrypt-vault-id", "other"]
    subprocess.run([*encrypt, "--vault-id", identity, vault], check=True, capture_output=True)
    done = subprocess.run(
        [tools / "ansible-playbook", "--inventory", copy, "playbooks/validate.yml"],
        cwd=ROOT,
        env={**os.environ, "PRIME_SPARK_VAULT_PASSWORD_FILE": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert f"The password of the production vault is not in {tmp_path / 'nowhere'}" in done.stderr
    assert "Decryption failed" in done.stderr


def test_validating_an_inventory_alone_contacts_nobody(tmp_path: Path) -> None:
    run = play(tmp_path, inventory(), "--tags", "validate")
    assert run.status == 0 and run.contacted == "", run.output[-3000:]
