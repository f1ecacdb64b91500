#!/usr/bin/env python3
"""Give one secret of an inventory a new value, everywhere, and prove that the old one is refused.

Without a name it lists the secrets and where each is used. The old value stays in the encrypted
vault as <name>_previous until the rotation is finished, so that an interrupted or failed one is
continued by the same command. No value is ever printed or passed as an argument.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.vault import PREVIOUS, REPOSITORY, References, SecretsError, Vault, new_secret

# What ansible-playbook exits with when all went well but some hosts could not be reached, and when
# something failed.
UNREACHABLE = 4
FAILED = 2
# It comes from roles/wireguard; a host that misses the change of a pair's key is cut off by it.
CUT_OFF_WITHOUT = "wireguard"


def listing(vault: Vault, references: References) -> list[str]:
    """One line for each secret."""
    known = vault.read()
    width = max(map(len, references.required + references.optional), default=0)
    lines = []
    for name in references.required:
        state = "" if name in known else "missing: make secrets"
        state = "unfinished: rotate it again" if name + PREVIOUS in known else state
        lines.append(f"{name:{width}}  {', '.join(references.roles(name)):24}  {state}".rstrip())
    lines += [
        f"{name:{width}}  {', '.join(references.roles(name)):24}  set by its own administrator"
        for name in references.optional
    ]
    return [f"{'secret':{width}}  {'used by the roles':24}", *lines]


def begin(vault: Vault, references: References, secret: str) -> bool:
    """Put the new value into the vault; returns whether an earlier rotation goes on instead."""
    if secret in references.optional:
        raise SecretsError(
            f"{secret} belongs to a system that this fleet does not manage: change it there, then "
            f"write it into the vault (`ansible-vault edit {vault.path}`) and run site.yml --tags "
            f"{','.join(references.roles(secret))}"
        )
    known = vault.read()
    if secret not in references.required:
        near = difflib.get_close_matches(secret, references.required, n=1)
        raise SecretsError(
            f"no role uses a secret {secret}"
            + (f", did you mean {near[0]}?" if near else "; `make rotate` lists them")
        )
    if not known.get(secret):
        raise SecretsError(f"{secret} was never made: `make secrets` first")
    if known.get(secret + PREVIOUS):
        return True
    known[secret + PREVIOUS], known[secret] = known[secret], new_secret()
    vault.write(known)
    return False


def finish(vault: Vault, secret: str) -> None:
    """Forget the old value."""
    known = vault.read()
    del known[secret + PREVIOUS]
    vault.write(known)


def play(inventory: Path, playbook: str, *arguments: str) -> int:
    """Run a playbook, its output on the terminal; 0, UNREACHABLE or another exit status.

    Ansible's own is UNREACHABLE, too, where hosts failed beside those that are away, and where it
    could not read the inventory.
    """
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory)]
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="prime-spark-") as directory:
        outcome = Path(directory) / "outcome"
        environment = {**os.environ, "PRIME_SPARK_OUTCOME": str(outcome)}
        done = subprocess.run(
            [*command, playbook, *arguments], cwd=REPOSITORY, env=environment, check=False
        )
        if done.returncode != UNREACHABLE:
            return done.returncode
        if outcome.exists() and not json.loads(outcome.read_text())["failed"]:
            return UNREACHABLE
        return FAILED


def rotate(vault: Vault, references: References, secret: str, extra: list[str]) -> int:
    """Rotate one secret; returns the exit status."""
    roles = references.roles(secret)
    going_on = begin(vault, references, secret)
    state = "going on with the rotation" if going_on else "made a new value"
    print(f"{secret}: {state}; roles {', '.join(roles)}")
    given = os.path.relpath(vault.inventory)
    again = f"`make rotate SECRET={secret} INVENTORY={given}` goes on from here"
    status = play(vault.inventory, "site.yml", "--tags", ",".join([*roles, "verify"]), *extra)
    if status not in (0, UNREACHABLE):
        print(
            f"error: the run failed, see above. Services that it did not come to still have the "
            f"old {secret} and buffer what they cannot deliver; {again}",
            file=sys.stderr,
        )
        return 1
    if status == UNREACHABLE:
        lost = ", and until then it is out of the VPN" if CUT_OFF_WITHOUT in roles else ""
        print(f"a host could not be reached: the next run of site.yml brings it {secret}{lost}")
    checked = play(vault.inventory, "playbooks/rotate.yml", "-e", f"rotate_secret={secret}", *extra)
    if checked not in (0, UNREACHABLE):
        print(f"error: it is not proved that the old {secret} is refused; {again}", file=sys.stderr)
        return 1
    finish(vault, secret)
    print(f"{secret}: the new one is in use, the old one is refused")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    parser.add_argument("secret", nargs="?", default="", help="name of the secret, vault_…")
    parser.add_argument("--verbose", "-v", action="count", default=0, help="as of ansible-playbook")
    parser.add_argument(
        "--become-password-file",
        type=Path,
        help="file with the password for sudo, for both runs (as of ansible-playbook)",
    )
    arguments = parser.parse_args()
    extra = [f"-{'v' * arguments.verbose}"] if arguments.verbose else []
    if arguments.become_password_file:
        extra += ["--become-password-file", str(arguments.become_password_file.resolve())]
    try:
        vault, references = Vault(arguments.inventory), References(arguments.inventory)
        if not arguments.secret:
            print("\n".join(listing(vault, references)))
            return 0
        with vault.locked():
            return rotate(vault, references, arguments.secret, extra)
    except (SecretsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
