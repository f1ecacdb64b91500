"""A WireGuard interface on its host: what is there, and how it is changed."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import shutil
import tempfile
import time
from typing import Any

from ansible_collections.prime_spark.fleet.plugins.module_utils.atomic import replace_file
from ansible_collections.prime_spark.fleet.plugins.module_utils.process import attempt
from ansible_collections.prime_spark.fleet.plugins.module_utils.units import journal
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard import (
    HEADER,
    KNOWN_PEERS,
    Config,
    Running,
    WireGuardError,
    known_peers,
    peer_difference,
    peer_differences,
    public_key_of,
    read_text,
    run,
    running_interface,
    sections,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_plan import (
    Plan,
    route_changes,
)
from ansible_collections.prime_spark.fleet.plugins.module_utils.wireguard_revert import (
    FRESH_SECONDS,
    arm,
    snapshot,
)


@dataclasses.dataclass(frozen=True)
class Paths:
    """Where the parts of an interface are kept."""

    config: str
    peers: str
    applied: str

    @classmethod
    def of(cls, name: str) -> Paths:
        return cls(
            config=f"/etc/wireguard/{name}.conf",
            peers=KNOWN_PEERS,
            # Gone after a boot, and rightly: then the file is what was started.
            applied=f"/run/prime-spark/wireguard-{name}.json",
        )


class Host:
    """The interface on this host: what is there, and how it is changed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paths = Paths.of(self.name)
        self.unit = f"wg-quick@{self.name}.service"

    def unit_property(self, name: str) -> str:
        argv = ["systemctl", "show", "--property", name, "--value", "--", self.unit]
        return attempt(argv).stdout.strip()

    def facts(self, config: Config) -> dict[str, Any]:
        shown = json.loads(run(["ip", "-json", "address", "show", "dev", self.name]))
        addresses = [
            f"{entry['local']}/{entry['prefixlen']}"
            for entry in shown[0].get("addr_info", [])
            if entry.get("scope") == "global"
        ]
        forwarding = False
        if config.forward:
            rule = attempt(["iptables", "-w", "-C", *config.forward_rule()])
            allowed = (read_text("/proc/sys/net/ipv4/ip_forward") or "0").strip()
            forwarding = rule.returncode == 0 and allowed == "1"
        return {
            "addresses": addresses,
            "routes": self.routes(),
            "mtu": shown[0].get("mtu"),
            "active": self.unit_property("ActiveState") == "active",
            "forwarding": forwarding,
        }

    def routes(self) -> dict[str, str]:
        """Destinations through the interface, with who made the route."""
        shown = json.loads(run(["ip", "-json", "-4", "route", "show", "dev", self.name]) or "[]")
        return {
            str(ipaddress.ip_network(route["dst"])): route.get("protocol", "boot")
            for route in shown
            if route["dst"] != "default"
        }

    def applied(self) -> dict[str, str] | None:
        try:
            record = json.loads(read_text(self.paths.applied) or "null")
            return {"interface": record["interface"], "peers": record["peers"]}
        except (ValueError, KeyError, TypeError):
            return None

    def record_applied(self, text: str) -> None:
        interface, peers = sections(text)
        os.makedirs(os.path.dirname(self.paths.applied), mode=0o755, exist_ok=True)
        replace_file(self.paths.applied, json.dumps({"interface": interface, "peers": peers}))

    def validate(self, text: str) -> None:
        """Raises when wg-quick cannot read the file."""
        directory = tempfile.mkdtemp(prefix="prime-spark-wg-", dir="/run")
        try:
            path = os.path.join(directory, f"{self.name}.conf")
            replace_file(path, text)
            run(["wg-quick", "strip", path])
        finally:
            shutil.rmtree(directory)

    def check_key(self, config: Config, moment: str) -> None:
        running = running_interface(self.name)
        expected = public_key_of(config.private_key)
        seen = running.public_key if running else ""
        if seen != expected:
            raise WireGuardError(
                f"{moment} a change of peers expected the host's own key {expected}, "
                f"seen: {seen or 'none'}"
            )

    def sync(self, config: Config) -> None:
        """Change peers in the running interface; the others' sessions and packets notice nothing.

        What `wg syncconf` is for, but it sets the allowed addresses of every peer again, and a
        packet of a peer that nobody changed is lost when it comes in between (14 of 1200 while
        syncconf ran 300 times, none with this). Nor does this ever touch the host's own key, which
        syncconf takes away where its input lacks it; the key is looked at anyway.
        """
        self.check_key(config, "before")
        running = running_interface(self.name)
        peers = running.peers if running else {}
        wanted = {peer.public_key for peer in config.peers}
        for key in sorted(set(peers) - wanted):
            run(["wg", "set", self.name, "peer", key, "remove"])
        differing = [peer for peer in config.peers if peer_difference(peer, peers)]
        if differing:
            lines = []
            for peer in differing:
                lines += peer.lines(peer.preshared_key)
                lines += [] if peer.keepalive else ["PersistentKeepalive = off"]
            run(["wg", "addconf", self.name, "/dev/stdin"], stdin="\n".join(lines) + "\n")
        for peer in config.peers:
            if peer.endpoint and peer not in differing:
                run(["wg", "set", self.name, "peer", peer.public_key, "endpoint", peer.endpoint])
        try:
            self.check_key(config, "after")
        except WireGuardError:
            run(["wg", "set", self.name, "private-key", "/dev/stdin"], stdin=config.private_key)
            raise
        # wg knows nothing of routes; wg-quick sets them only when it starts the interface.
        missing, left = route_changes(config, self.routes())
        own = ipaddress.ip_interface(config.address)
        for network in missing:
            # As the kernel makes the one of the interface's own network.
            like = ["proto", "kernel", "scope", "link", "src", str(own.ip)]
            more = like if network == str(own.network) else []
            run(["ip", "route", "replace", network, "dev", self.name, *more])
        for network in left:
            run(["ip", "route", "delete", network, "dev", self.name])
        self.check_peers(config)

    def check_peers(self, config: Config) -> None:
        running = running_interface(self.name)
        if running is None:
            raise WireGuardError(f"{self.name} is not there after it was applied")
        left = peer_differences(config.peers, running.peers)
        if left:
            raise WireGuardError(f"{self.name} runs, but still has to: {'; '.join(left)}")

    def stop(self) -> None:
        """Stop by the file that started it, so that its own PostDown is what runs."""
        if self.unit_property("ActiveState") in ("active", "activating", "reloading"):
            run(["systemctl", "stop", self.unit])
        left = os.path.exists(f"/sys/class/net/{self.name}")
        # Someone else's interface, or one whose service forgot it.
        if left and attempt(["wg-quick", "down", self.name]).returncode != 0:
            run(["ip", "link", "delete", "dev", self.name])

    def start(self) -> None:
        try:
            for tried in range(5):
                attempt(["systemctl", "reset-failed", self.unit])
                try:
                    run(["systemctl", "start", self.unit])
                    return
                except WireGuardError:
                    # On a busy host wireguard-go is asked before it listens, and wg-quick gives up.
                    if tried == 4 or shutil.which("wireguard-go") is None:
                        raise
                    time.sleep(0.5 * (tried + 1))
        except WireGuardError as error:
            raise WireGuardError(f"{error}\n{journal(self.unit)}") from None

    def restart(self, config: Config, running: Running | None) -> None:
        self.stop()
        replace_file(self.paths.config, config.text())
        self.start()
        # A peer that calls this host would need up to 40 s to notice that the session is gone.
        called = {peer.public_key for peer in config.peers if not peer.endpoint}
        for peer in running.peers.values() if running else ():
            if peer.public_key in called and peer.endpoint:
                argv = ["wg", "set", self.name, "peer", peer.public_key]
                run([*argv, "endpoint", peer.endpoint])
        self.check_peers(config)

    def arm(self, program: str, seconds: int, running: Running | None, enabled: bool) -> None:
        """Keep what is there now, and start the timer that comes back to it."""
        known = known_peers(self.paths.peers)
        peers = running.peers if running else {}
        now = time.time()
        state = snapshot(
            self.name,
            self.unit,
            [self.paths.config, self.paths.peers, self.paths.applied],
            enabled=enabled,
            # One that failed should run, and may do so with what it had.
            active=enabled or self.unit_property("ActiveState") == "active",
            fresh=sorted(
                name
                for name, peer in known.items()
                if (seen := peers.get(peer["public_key"]))
                and now - seen.latest_handshake < FRESH_SECONDS
            ),
            endpoints={key: peer.endpoint for key, peer in peers.items() if peer.endpoint},
            addresses=sorted(peer["address"] for peer in known.values()),
        )
        arm(state, program, seconds)

    def apply(
        self, plan: Plan, config: Config, before: str | None, running: Running | None
    ) -> None:
        text = config.text()
        if before is not None and HEADER not in before:
            # Taken over from somebody: their peers may be needed again.
            replace_file(f"{self.paths.config}.before-prime-spark", before)
        if plan.action in ("start", "restart"):
            self.restart(config, running)
        else:
            if before != text:
                if self.applied() is None and before is not None:
                    # What runs is the old file: a run that dies here must not hide that.
                    self.record_applied(before)
                replace_file(self.paths.config, text)
            if plan.action == "sync":
                self.sync(config)
        self.record_applied(text)
