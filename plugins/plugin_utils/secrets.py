"""Secrets: there, and not typed by hand."""

from __future__ import annotations

from .fleet import Fleet

SHORTEST_SECRET = 16
# More than so many missing ones are an inventory without its vault.
FEW = 3


def check_secrets(fleet: Fleet, names: set[str], remedy: str) -> None:
    """Every secret that roles need is there, and long: `make secrets` makes long ones."""
    if len(fleet.missing) > FEW:
        listed = ", ".join(sorted(fleet.missing))
        fleet.refuse(
            "vault",
            f"{len(fleet.missing)} secrets are missing, expected in the inventory's "
            f"group_vars/all/vault.yml: {listed}; `{remedy}` makes them",
        )
    else:
        for secret, users in sorted(fleet.missing.items()):
            by = sorted(users)
            others = f" and {len(by) - 1} more" if len(by) > 1 else ""
            fleet.refuse(
                "vault",
                f"{secret} is missing, expected a secret for {by[0]}{others}; `{remedy}` makes it",
            )
    for host, variables in fleet.raw.items():
        for name in sorted(names & set(variables)):
            if (length := len(str(variables[name]))) < SHORTEST_SECRET:
                fleet.refuse(
                    host,
                    f"{name} has {length} characters, expected at least {SHORTEST_SECRET}; "
                    f"take it out of the vault and run `{remedy}`",
                )
