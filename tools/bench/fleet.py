"""How the seconds of a run grow with the number of hosts: many light hosts, in a lab of their own.

The hub and HOSTS hosts get common, wireguard, telemetry and node_exporter: a first run, runs
without a change in turns with pyinfra, one with one changed variable, and one without a change on a
part of the hosts. All figures are seconds per host. The lab is deleted afterwards, unless --keep is
given; the other lab is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

STATE = Path("/var/lib/prime-spark-light")
RUNTIME = Path("/run/prime-spark-light")
# Read by what is imported next, and by every program that is run from here.
os.environ["PRIME_SPARK_LAB_RUN"] = str(RUNTIME)
SHARED = Path(os.environ.get("PRIME_SPARK_LAB_DIR", "/var/lib/prime-spark-lab")) / "cache"
os.environ["PRIME_SPARK_LAB_DIR"] = str(STATE)

from tools.bench import converge, peer  # noqa: E402
from tools.bench.converge import REPOSITORY, BenchError, say, site  # noqa: E402
from tools.bench.state import Fleet, counted  # noqa: E402
from tools.vault import References, new_secret  # noqa: E402

ROLES = ["common", "wireguard", "telemetry", "node_exporter"]
HUB = "control-pc-1"
BATCH = 10  # hosts that boot together


def lab(*words: str) -> None:
    argv = [sys.executable, "-m", "lab", *words]
    subprocess.run(argv, cwd=REPOSITORY, check=True, stdout=sys.stderr)


def boot(names: list[str]) -> None:
    """Bare hosts on the bases that are there already."""
    STATE.mkdir(parents=True, exist_ok=True)
    cache = STATE / "cache"
    if SHARED.is_dir() and not cache.exists():
        cache.symlink_to(SHARED)
    for start in range(0, len(names), BATCH):
        lab("up", "--no-images", *names[start : start + BATCH])


def inventory(folder: Path, light: list[str]) -> Path:
    """An inventory of the hub and the light hosts, with secrets of its own."""
    place = folder / "lab"
    (place / "group_vars/all").mkdir(parents=True)
    shared = yaml.safe_load((REPOSITORY / "inventories/lab/group_vars/all/main.yml").read_text())
    wanted = ("lab_directory", "ansible_", "wireguard_", "telemetry_", "node_exporter_")
    given = {key: value for key, value in shared.items() if key.startswith(wanted)}
    given["lab_proxy"] = f"{REPOSITORY}/lab/bin/ssh-proxy"
    hub = yaml.safe_load((REPOSITORY / "inventories/lab/hosts.yml").read_text())
    hosts = {HUB: hub["all"]["children"]["edge"]["hosts"][HUB]}
    for number, name in enumerate(light, start=1):
        hosts[name] = {
            "ansible_host": f"198.51.100.{100 + number}",
            "wireguard_address": f"10.90.8.{100 + number}",
        }
    groups = {
        "edge": {"hosts": {HUB: hosts[HUB]}, "vars": {"wireguard_lan": "home"}},
        "cloud": {"hosts": {name: hosts[name] for name in light}},
        "managed": {"children": {"edge": {}, "cloud": {}}},
        # The collectors' settings name it; it is not played, and they keep what they cannot send.
        "docker": {"hosts": {HUB: {}}},
        "kafka": {"hosts": {HUB: {}}},
        **{name: {"children": {"managed": {}}} for name in ROLES if name != "common"},
    }
    (place / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    given["kafka_image"] = "kafka"  # never pulled
    (place / "group_vars/all/main.yml").write_text(yaml.safe_dump(given))
    secrets = {name: new_secret() for name in References(place).required}
    (place / "group_vars/all/vault.yml").write_text(yaml.safe_dump(secrets))
    return place


def measure(light: list[str], rounds: int) -> str:
    """Run everything; the figures as pairs."""
    count = len(light) + 1
    few = [HUB, *light[: max(1, len(light) // 5)]]
    fleet = Fleet(STATE / "ssh/config")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usual = ["-i", str(inventory(folder, light)), "--tags", ",".join(ROLES)]

        def run(what: str, *arguments: str, unchanged: bool = False, hosts: int = count) -> float:
            done = site([*usual, *arguments])
            say(f"{what}: {done.seconds:.1f} s, changed={done.changed}")
            if unchanged and done.changed:
                raise BenchError(f"{what} changed {done.changed}:\n{done.output[-4000:]}")
            return done.seconds / hosts

        first = run("first run")
        states = fleet.read_all()
        say(f"the state in both: {counted(states)}")
        (folder / "peer").mkdir()
        peer.write(folder / "peer", fleet, states)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(run("nothing to change", unchanged=True))
            done = peer.deploy(folder / "peer")
            say(f"pyinfra: {done.seconds:.1f} s, changed={len(done.changed)}")
            if done.changed:
                raise BenchError(f"pyinfra changes what is in place: {done.changed[:5]}")
            theirs.append(done.seconds / count)
        little = run("a part", "--limit", ",".join(few), unchanged=True, hosts=len(few))
        one = run("one variable changed", "--extra-vars", '{"telemetry_interval_seconds": 7}')
        # What it repairs is that one change, the other way.
        back = peer.deploy(folder / "peer")
        say(f"pyinfra: {back.seconds:.1f} s, changed={len(back.changed)}")
    return (
        f"hosts={len(light)} first={first:.2f} unchanged={statistics.median(ours):.2f}"
        f" changed_one={one:.2f} pyinfra_unchanged={statistics.median(theirs):.2f}"
        f" pyinfra_changed_one={back.seconds / count:.2f}"
        f" few_hosts={len(few) - 1} few_unchanged={little:.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the light lab as it is")
    options = parser.parse_args()
    os.environ["PRIME_SPARK_LAB_LIGHT"] = str(options.hosts)
    converge.LAB = STATE
    light = [f"light-{number:02}" for number in range(1, options.hosts + 1)]
    try:
        boot([HUB, *light])
        print(measure(light, options.rounds), flush=True)
    except (BenchError, peer.PeerError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if not options.keep:
            lab("destroy")
            for place in (STATE, RUNTIME):
                shutil.rmtree(place, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
