#!/usr/bin/env python3
"""Make every secret that an inventory lacks, straight into its encrypted vault file.

Existing secrets stay as they are. Nothing is printed but names, and nothing is ever written in
plain text, except the vault's own password, which is made on first use (0600) where the
inventory's password script looks for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.vault import References, SecretsError, Vault, new_secret


def make(inventory: Path) -> list[str]:
    """Make what is missing; returns the lines to print."""
    said = []
    vault = Vault(inventory)
    with vault.locked():
        if vault.make_password():
            said.append(
                f"made the vault password {vault.password_file}: keep a copy of it somewhere safe, "
                "nothing opens the vault without it"
            )
        known = vault.read()
        missing = [name for name in References(inventory).required if not known.get(name)]
        if missing:
            known.update({name: new_secret() for name in missing})
            vault.write(known)
            said.append(f"made {len(missing)} secrets in {vault.path}: {', '.join(missing)}")
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True, help="directory of the inventory")
    arguments = parser.parse_args()
    try:
        said = make(arguments.inventory)
    except (SecretsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(said) if said else "every secret is there, nothing to make")
    return 0


if __name__ == "__main__":
    sys.exit(main())
