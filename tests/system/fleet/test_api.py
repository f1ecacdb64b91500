"""S7 to S10 as a user meets them: the command `prime-spark` on a cloud host, all over the VPN."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from testinfra.host import Host

from tests.system.fleet import fleet
from tests.system.fleet.fleet import (
    connect,
    members,
    on,
    other_address,
    probe,
    query,
    setting,
    shell,
    variables,
    vpn_address,
)

SELF_TEST_MODEL = "prime-spark-self-test"
COMMAND_WORDS = "forward"
OTHER_WORDS = ["backward", "seven", "window"]
USERS = ("admin", "operator", "viewer")

(API,) = members("api")
(AGENT,) = members("spark_agent")
EDGE = next(name for name in members("llm_server") if name in members("edge"))
CLOUD = next(name for name in members("llm_server") if name in members("cloud"))
# Where a user sits: not on the API's host, nor on its LAN.
SEAT = next(name for name in members("cli") if name in members("cloud"))
LLM_UNIT = "prime-spark-llm-server.service"

Run: TypeAlias = Callable[..., Any]


def url(name: str, role: str, path: str) -> str:
    """Where a role's service listens."""
    return f"http://{vpn_address(name)}:{setting(name, role, f'{role}_port')}{path}"


def run_as(user: str, home: str, *arguments: str, seconds: int = 90) -> Any:
    """What `prime-spark --json` prints on the seat, logged in as the user."""
    script = 'export XDG_STATE_HOME="$1/$2"; shift 2; prime-spark --json "$@"'
    said = shell(connect(SEAT), script, home, user, *arguments, seconds=seconds)
    return json.loads(said) if said else None


@pytest.fixture(scope="module")
def seat() -> Iterator[str]:
    """A directory on the seat where every user of the lab is logged in."""
    host = connect(SEAT)
    home = shell(host, "mktemp -d /root/fleet-api-XXXXXX")
    try:
        for user in USERS:
            password = variables(SEAT)[f"vault_api_{user}_password"]
            # By standard input: never an argument, nor in the script.
            script = f"XDG_STATE_HOME={home}/{user} prime-spark login {user} --password-stdin"
            fleet.feed(SEAT, script, f"{password}\n")
        yield home
    finally:
        shell(host, 'rm -rf "$1"', home)


@pytest.fixture(scope="module")
def admin(seat: str) -> Run:
    """Runs commands as the administrator."""
    return lambda *arguments, seconds=90: run_as("admin", seat, *arguments, seconds=seconds)


def task(admin: Run, task_type: str, payload: dict[str, Any]) -> dict[str, Any]:
    """A task that has ended well."""
    found = admin("tasks", "submit", task_type, json.dumps(payload), "--wait")
    assert (found["status"], found["agent"]) == ("COMPLETED", AGENT), found
    return dict(found)


# --- health ---------------------------------------------------------------------------------


def test_every_subsystem_is_well(admin: Run) -> None:
    found = fleet.wait_until(
        "every subsystem is well", lambda: admin("health"), 30, lambda seen: seen["status"] == "ok"
    )
    assert set(found["subsystems"]) == {
        *("redis", "kafka", "timescale", "nas", "vpn", "agents", "llm")
    }


def test_the_vpn_is_shown_as_the_hub_sees_it(admin: Run) -> None:
    peers = {peer["name"]: peer for peer in admin("vpn")["peers"]}
    assert set(peers) == set(members("wireguard")) - {API}
    assert all(peer["healthy"] for peer in peers.values()), peers


# --- speech ---------------------------------------------------------------------------------


def test_what_was_spoken_is_fetched_and_understood(admin: Run, seat: str) -> None:
    spoken = task(admin, "voice_synthesis", {"text": COMMAND_WORDS})
    result = spoken["result"]

    # The file comes through the API and is the one on the NAS.
    wav = f"{seat}/spoken.wav"
    admin("tasks", "artifact", spoken["task_id"], "--output", wav)
    kind, size, digest = shell(
        connect(SEAT), 'head -c 4 "$1"; echo; stat -c %s "$1"; sha256sum < "$1"', wav
    ).splitlines()
    assert (kind, int(size)) == ("RIFF", result["bytes"])
    script = 'sha256sum < "/mnt/nas/$1"'
    assert shell(connect(AGENT), script, result["artifact"]) == digest

    heard = task(
        admin,
        "voice_recognition",
        {"audio_key": result["artifact"], "words": [COMMAND_WORDS, *OTHER_WORDS]},
    )
    assert heard["result"]["text"] == COMMAND_WORDS


def test_shell_metacharacters_are_spoken_and_not_executed(admin: Run) -> None:
    trap = f"/tmp/fleet-{uuid.uuid4().hex}"
    spoken = task(admin, "voice_synthesis", {"text": f"$(touch {trap}); `touch {trap}` | --help"})
    assert spoken["result"]["seconds"] > 1
    script = 'test ! -e "$1" && ! find /tmp /var/tmp -name "${1##*/}" | grep .'
    shell(connect(AGENT), script, trap)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1/a.wav", "https://169.254.1.1/a.wav", "file:///etc/passwd"]
)
def test_audio_from_where_nobody_should_look_is_refused(seat: str, address: str) -> None:
    payload = json.dumps({"audio_url": address, "words": ["forward"]})
    script = (
        'export XDG_STATE_HOME="$1"; prime-spark --json tasks submit voice_recognition "$2" --wait '
        "|| true"
    )
    said = json.loads(shell(connect(SEAT), script, f"{seat}/admin", payload, seconds=90))
    assert said.get("status", "FAILED") == "FAILED", said


# --- language models ------------------------------------------------------------------------


def test_models_are_those_of_edge_and_cloud(admin: Run) -> None:
    assert admin("models") == [
        {"id": SELF_TEST_MODEL, "backends": [EDGE, CLOUD], "sources": ["edge", "cloud"]}
    ]


def test_the_edge_answers_then_the_cache(admin: Run) -> None:
    ask = ("generate", "--max-tokens", "5", "--seed", "7", uuid.uuid4().hex)
    first, second = admin(*ask), admin(*ask)
    assert (first["source"], first["backend"]) == ("edge", EDGE)
    assert second["source"] == "cache"
    assert (second["response"], second["output_tokens"]) == (first["response"], 5)


def test_a_task_asks_the_language_model(admin: Run) -> None:
    found = task(admin, "llm", {"prompt": "hello", "max_tokens": 4})
    assert found["result"]["output_tokens"] == 4


def test_the_cloud_answers_while_the_edge_is_away_and_nobody_when_both_are(admin: Run) -> None:
    def ask() -> Any:
        return admin("generate", "--max-tokens", "3", "--no-cache", "hello")

    try:
        shell(connect(EDGE), 'systemctl stop "$1"', LLM_UNIT)
        answer = ask()
        assert (answer["source"], answer["backend"]) == ("cloud", CLOUD)
        shell(connect(CLOUD), 'systemctl stop "$1"', LLM_UNIT)
        with pytest.raises(AssertionError, match=r"exits with") as refusal:
            ask()
        assert EDGE in str(refusal.value) and CLOUD in str(refusal.value)
    finally:
        for name in (EDGE, CLOUD):
            shell(connect(name), 'systemctl start "$1"', LLM_UNIT)
    fleet.wait_until("the edge again", ask, 60, lambda seen: seen["source"] == "edge")


# --- events ---------------------------------------------------------------------------------


def test_calls_and_inferences_are_in_the_database_within_seconds(admin: Run) -> None:
    answer = admin("generate", "--max-tokens", "6", "--no-cache", uuid.uuid4().hex)
    since = "time > now() - interval '1 minute'"
    (row,) = fleet.wait_until(
        "the inference is in the database",
        lambda: query(
            "SELECT model_name, input_tokens, output_tokens, source FROM ai_inference_results "
            f"WHERE {since} ORDER BY time DESC LIMIT 1"
        ),
        15,
        lambda rows: rows and rows[0]["output_tokens"] == 6,
    )
    assert row == {
        "model_name": SELF_TEST_MODEL,
        "input_tokens": answer["input_tokens"],
        "output_tokens": 6,
        "source": "edge",
    }
    fleet.wait_until(
        "the call is in the database",
        lambda: query(
            f"SELECT * FROM api_events WHERE {since} AND to_jsonb(api_events)::text "
            "LIKE '%/api/llm/generate%'"
        ),
        15,
    )


# --- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_every_tier_remembers(admin: Run, tier: int) -> None:
    key, value = f"fleet-{uuid.uuid4().hex}", {"tier": tier, "text": "grün"}
    admin("memory", "set", key, json.dumps(value), "--tier", str(tier))
    assert admin("memory", "get", key)["value"] == value
    admin("memory", "delete", key)
    with pytest.raises(AssertionError, match="exits with"):
        admin("memory", "get", key)


# --- who may what ---------------------------------------------------------------------------


def test_a_viewer_looks_and_an_operator_does_more(seat: str) -> None:
    assert run_as("viewer", seat, "whoami")["role"] == "viewer"
    assert run_as("operator", seat, "whoami")["role"] == "operator"
    run_as("viewer", seat, "health")
    with pytest.raises(AssertionError, match="exits with"):
        run_as("viewer", seat, "tasks", "submit", "voice_synthesis", '{"text": "no"}')


@on("spark_agent")
def test_the_agent_takes_no_task_from_strangers(host: Host) -> None:
    asked = url(AGENT, "spark_agent", "/api/execute")
    script = """
        body='{"task_id": "x", "task_type": "voice_synthesis", "priority": "NORMAL",
               "payload": {"text": "x"}}'
        for header in 'X-None: x' 'Authorization: Bearer wrong' 'Authorization: Basic eDp4'; do
            python3 - "$1" "$header" "$body" <<'EOF'
import sys, urllib.error, urllib.request
name, _, value = sys.argv[2].partition(": ")
request = urllib.request.Request(sys.argv[1], sys.argv[3].encode(),
                                 {name: value, "Content-Type": "application/json"})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
EOF
        done
    """
    assert shell(connect(API), script, asked).split() == ["401"] * 3


@on("llm_server")
def test_the_model_server_wants_its_key_and_listens_on_the_vpn_only(host: Host) -> None:
    name = host.backend.get_hostname()
    models = url(name, "llm_server", "/v1/chat/completions")
    outside = [models.replace(vpn_address(name), a) for a in ("127.0.0.1", other_address(name))]
    seen = probe(host, "http_get", models, *outside)
    assert seen[models]["status"] == 401
    assert all("refused" in seen[address]["error"] for address in outside)


def test_the_api_wants_a_token(admin: Run) -> None:
    paths = ("/api/health/detailed", "/api/llm/models", "/api/memory/get/x", "/api/auth/me")
    asked = [url(API, "api", path) for path in paths]
    seen = probe(connect(SEAT), "http_get", *asked)
    assert [seen[address]["status"] for address in asked] == [401] * len(asked)
