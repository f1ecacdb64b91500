"""What makes an inventory right: pure functions over its groups and values, no Ansible, no host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .addresses import check_owners, check_vpn
from .fleet import Fleet, Role
from .memory import check_memory
from .names import check_groups, check_names
from .secrets import check_secrets
from .values import check_values

__all__ = ["Fleet", "Role", "validate"]


def validate(
    fleet: Fleet,
    *,
    needs: Mapping[str, list[str]],
    single: list[str],
    secrets: set[str],
    remedy: str,
    prepared: Sequence[str] = (),
) -> None:
    """Collect every refusal and warning in ``fleet``, whose values were worked out before.

    ``needs`` and ``single`` are the arguments of the action, ``secrets`` the names that roles refer
    to, ``remedy`` the command that makes a secret, ``prepared`` the groups whose hosts a run begins
    with.
    """
    check_groups(fleet, single, needs, list(prepared))
    check_names(fleet)
    check_values(fleet)
    check_secrets(fleet, secrets, remedy)
    check_memory(fleet)
    check_vpn(fleet)
    check_owners(fleet)
