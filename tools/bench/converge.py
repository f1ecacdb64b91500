"""Compare site.yml with a pyinfra deployment of the same state on the converged lab.

Both run in turns and leave out `verify`; the medians of all rounds are compared. The state is read
from the hosts (tools/bench/state.py) and given to pyinfra (tools/bench/peer). With --prove one
drift of every kind that is counted is planted instead, and pyinfra has to find and repair each.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench import drifts, peer
from tools.bench.state import Fleet, State, counted, differences

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab"))
SITE = [str(Path(sys.executable).parent / "ansible-playbook"), "site.yml"]

OURS = {
    "site": ["--skip-tags", "verify"],
    "with verify": [],
    "one role on one host": ["--tags", "wireguard", "--limit", "primecore1"],
    "verify alone": ["--tags", "verify"],
}
# What Ansible does around a module whose code it copies first; with pipelining there is none of it.
HOUSEKEEPING = re.compile(r"(echo ~|\( umask 77 && mkdir -p|chmod u\+r?w?x|rm -f -r) ?")


class BenchError(Exception):
    """The fleet is not what the bench needs; the message says what was seen."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of ansible-playbook: wall-clock and processor seconds, the recap, the output."""

    seconds: float
    cpu: float
    changed: int
    output: str


def module_runs(output: str) -> int:
    """How many modules and commands a run with -vvv sent to hosts.

    With pipelining a module is one `SSH: EXEC`. What Ansible sends besides, to copy a module first
    and to remove it, belongs to that module's run and is not counted again; nor is a second
    attempt to connect.
    """
    again = len(re.findall(r"^<[^>]+> ssh_retry: attempt: ", output, re.MULTILINE))
    sent = re.findall(r"^<[^>]+> SSH: EXEC .* '/bin/sh -c '\"'\"'(.*)$", output, re.MULTILINE)
    return sum(not HOUSEKEEPING.match(command) for command in sent) - again


def close_connections() -> None:
    """Let no run profit from the connections that the one before left open."""
    for control in (LAB / "ssh/control").glob("*"):
        argv = ["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={control}", "lab"]
        subprocess.run(argv, capture_output=True)


def site(arguments: list[str]) -> Run:
    """Run site.yml with fresh connections; raises BenchError unless it ends with status 0."""
    close_connections()
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            [*SITE, *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        # The usage of this process and all that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        output.seek(0)
        said = output.read()
    if process.returncode != 0:
        raise BenchError(f"site.yml {' '.join(arguments)} failed:\n{said[-6000:]}")
    changed = sum(map(int, re.findall(r" ok=\d+ +changed=(\d+) ", said)))
    return Run(seconds, usage.ru_utime + usage.ru_stime, changed, said)


def say(line: str) -> None:
    print(line, flush=True)


def converged() -> int:
    """Bring the fleet to this tree's state; the module runs of a run that changes nothing."""
    for _ in range(2):
        run = site([*OURS["site"], "-vvv"])
        say(f"to begin with: {run.seconds:.1f} s, changed={run.changed}, counted with -vvv")
        if run.changed == 0:
            return module_runs(run.output)
    raise BenchError("site.yml changes something whenever it runs:\n" + run.output[-6000:])


def shown(states: dict[str, State]) -> str:
    kinds = ", ".join(f"{number} {kind}" for kind, number in counted(states).items())
    return f"the state in both: {len(states)} hosts, {kinds}"


def compare(fleet: Fleet, rounds: int) -> None:
    runs = converged()
    states = fleet.read_all()
    say(shown(states))
    changed = 0
    seconds: dict[str, list[float]] = {name: [] for name in (*OURS, "pyinfra")}
    cpu = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer.write(folder, fleet, states)
        for number in range(1, rounds + 1):
            for what, arguments in OURS.items():
                run = site(arguments)
                changed += run.changed
                seconds[what].append(run.seconds)
                if what == "site":
                    cpu.append(run.cpu)
                    theirs = peer.deploy(folder)
                    if theirs.changed:
                        raise BenchError(f"pyinfra changes what is in place: {theirs.changed}")
                    seconds["pyinfra"].append(theirs.seconds)
            last = ", ".join(f"{what} {all_of[-1]:.1f} s" for what, all_of in seconds.items())
            say(f"round {number}: {last}")
    medians = {what: statistics.median(all_of) for what, all_of in seconds.items()}
    whole = medians["pyinfra"]
    say(
        f"with_verify_seconds={medians['with verify']:.1f}"
        f" tag_seconds={medians['one role on one host']:.1f}"
        f" tag_ratio={medians['one role on one host'] / whole:.2f}"
        f" verify_seconds={medians['verify alone']:.1f}"
        f" verify_ratio={medians['verify alone'] / whole:.2f}"
    )
    say(
        f"changed={changed} seconds={medians['site']:.1f} pyinfra_seconds={whole:.1f}"
        f" ratio={medians['site'] / whole:.2f} module_runs={runs}"
        f" controller_cpu={statistics.median(cpu):.1f}"
    )
    if changed:
        raise BenchError(f"site.yml changed {changed} things on a fleet that needed nothing")


def prove(fleet: Fleet) -> None:
    """Plant a drift of every kind, let pyinfra repair them all, compare the fleet with before."""
    before = fleet.read_all()
    say(shown(before))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer.write(folder, fleet, before)
        planted = drifts.plant(fleet, before)
        seen = differences(before, fleet.read_all())
        hidden = [drift.name for drift in planted if drift.shows not in seen]
        if hidden:
            raise BenchError(f"planted, but not to be seen: {hidden}")
        run = peer.deploy(folder)
        left = differences(before, fleet.read_all())
        for drift in planted:
            say(f"{'not fixed' if drift.shows in left else 'fixed'}: {drift.name}: {drift.shows}")
        again = peer.deploy(folder)
    say(f"pyinfra took {run.seconds:.1f} s; its next run changed {len(again.changed)}")
    fixed = sum(drift.shows not in left for drift in planted)
    say(f"planted={len(planted)} fixed={fixed} left={len(left)} next_changed={len(again.changed)}")
    if left or again.changed:
        raise BenchError(f"left {left}, changed again {again.changed}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prove", action="store_true", help="plant drifts for pyinfra to repair")
    options = parser.parse_args()
    fleet = Fleet(LAB / "ssh/config")
    try:
        if options.prove:
            prove(fleet)
        else:
            compare(fleet, options.rounds)
    except (BenchError, peer.PeerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
