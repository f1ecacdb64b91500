"""The command line: `prime-spark --help`."""

from __future__ import annotations

import getpass
import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import typer

from prime_spark import __version__
from prime_spark.cli import memory, tasks
from prime_spark.cli.client import Client
from prime_spark.cli.errors import CliError
from prime_spark.cli.output import Output
from prime_spark.cli.state import State, state_of
from prime_spark.runtime.tables import age, size, table

app = typer.Typer(
    name="prime-spark",
    help="The Prime Spark fleet from your terminal. Start with `prime-spark login`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(memory.app, name="memory")
app.add_typer(tasks.app, name="tasks")


@dataclass
class _Asked:
    """Whether --json was given, also for errors before any command runs."""

    json: bool = False


_asked = _Asked()


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"prime-spark {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="The API's address; else $PRIME_SPARK_URL, else the last login's."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document, errors included. May come after a command."
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 120.0,
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that every command knows."""
    _asked.json = as_json
    context.obj = State(url, timeout, Output(as_json=as_json))


def _ask_password() -> str:
    """Ask on the terminal. typer would show its prompt first and turn the echo off after it."""
    try:
        return getpass.getpass("Password: ", stream=sys.stderr)
    except (EOFError, KeyboardInterrupt):
        raise typer.Abort from None


@app.command()
def login(
    context: typer.Context,
    username: Annotated[str | None, typer.Argument(help="Prompted for if omitted.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin.")
    ] = False,
) -> None:
    """Log in; the tokens are kept in a file that only you can read."""
    state = state_of(context)
    client = state.client()
    if (username is None or not password_stdin) and not sys.stdin.isatty():
        raise CliError(
            "no_terminal",
            "There is no terminal to ask on.",
            "Give a name and --password-stdin.",
            status=2,
        )
    if username is None:
        username = str(typer.prompt("Name", err=True))
    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else _ask_password()
    client.login(username, password)
    me = client.ask("GET", "/api/auth/me").json()
    state.output.show(
        {**me, "url": client.url}, f"Logged in to {client.url} as {me['username']} ({me['role']})."
    )


@app.command()
def logout(context: typer.Context) -> None:
    """End the session, here and on the server."""
    state = state_of(context)
    ended = state.client().logout()
    state.output.show(
        {"logged_out": ended}, "Logged out." if ended else "There was no session to end."
    )


@app.command()
def whoami(context: typer.Context) -> None:
    """Show your user and your role."""
    state = state_of(context)
    client = state.client()
    me = client.ask("GET", "/api/auth/me").json()
    state.output.show({**me, "url": client.url}, f"{me['username']} ({me['role']}) on {client.url}")


@app.command()
def health(context: typer.Context) -> None:
    """Show the health of the API and its subsystems; exits with 1 when one fails."""
    state = state_of(context)
    found = state.client().ask("GET", "/api/health/detailed").json()
    rows = [(name, s["status"], s["detail"]) for name, s in found["subsystems"].items()]
    state.output.show(found, table(("SUBSYSTEM", "STATUS", "DETAIL"), rows))
    if found["status"] != "ok":
        raise typer.Exit(1)


@app.command()
def vpn(context: typer.Context) -> None:
    """Show the peers of the VPN as the API's host sees them."""
    state = state_of(context)
    found = state.client().ask("GET", "/api/health/detailed").json()["subsystems"]["vpn"]
    if not found["peers"] and found["detail"]:
        raise CliError("vpn", found["detail"], "Look at wg-quick@wg0 on the API's host.", status=5)
    rows = [
        (
            peer["name"],
            peer["vpn_address"],
            peer["endpoint"] or "-",
            age(peer["handshake_seconds"]),
            size(peer["rx_bytes"]),
            size(peer["tx_bytes"]),
            "ok" if peer["healthy"] else "SILENT",
        )
        for peer in found["peers"]
    ]
    heads = ("PEER", "VPN ADDRESS", "ENDPOINT", "HANDSHAKE", "RECEIVED", "SENT", "STATE")
    state.output.show(found, table(heads, rows))


@app.command()
def models(context: typer.Context) -> None:
    """List the available language models."""
    state = state_of(context)
    found = state.client().ask("GET", "/api/llm/models").json()
    rows = [(model["id"], ", ".join(model["backends"])) for model in found]
    state.output.show(found, table(("MODEL", "BACKENDS"), rows))


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Prompt; - reads it from stdin.")],
    *,
    model: Annotated[str | None, typer.Option(help="One of `prime-spark models`.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt for the model.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = 256,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    cache: Annotated[bool, typer.Option(help="Use a cached answer to the same request.")] = True,
) -> None:
    """Generate text and print it as it arrives."""
    state = state_of(context)
    given = {"model": model, "system": system, "temperature": temperature, "seed": seed}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    body["prompt"] = sys.stdin.read() if prompt == "-" else prompt
    body |= {"max_tokens": max_tokens, "use_cache": cache}
    client = state.client()
    if state.output.as_json:
        state.output.show(client.ask("POST", "/api/llm/generate", json=body).json(), "")
        return
    done = _stream(client, {**body, "stream": True}, state.output)
    tokens = done["output_tokens"]
    counted = "" if tokens is None else f"{tokens} tokens, "
    seconds = done["latency_ms"] / 1000
    note = f"[{done['model']}, {done['source']}: {done['backend']}, {counted}{seconds:.1f} s]"
    state.output.note(note)


def _stream(client: Client, body: dict[str, Any], output: Output) -> dict[str, Any]:
    """Print the pieces of an answer as they come; return its end."""
    with client.stream("/api/llm/generate", body) as events:
        for name, data in events:
            if name == "token":
                output.piece(data["text"])
            elif name == "error":
                output.piece("\n")
                raise CliError(data["code"], data["detail"], "Try again.", status=5)
            elif name == "done":
                output.piece("\n")
                result: dict[str, Any] = data
                return result
    output.piece("\n")
    raise CliError("interrupted", "The answer broke off.", "Try again.", status=5)


def _json_first(arguments: list[str]) -> list[str]:
    """Return the arguments with --json before the command, wherever it was given."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = arguments[:end]
    if "--json" not in options:
        return arguments
    return ["--json", *(option for option in options if option != "--json"), *arguments[end:]]


def main() -> NoReturn:
    """Console entry point: every error is two lines, never a traceback."""
    try:
        app(_json_first(sys.argv[1:]), standalone_mode=True)
    except CliError as error:
        if _asked.json:
            sys.stdout.write(json.dumps(error.as_json(), indent=2) + "\n")
        else:
            sys.stderr.write(f"error: {error.message}\n")
            sys.stderr.write(f"{error.remedy}\n" if error.remedy else "")
        raise SystemExit(error.status) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
