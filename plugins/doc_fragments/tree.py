"""Options that modules share.

``tree``: what is written; ``tree.owned``: how it is kept; ``tree.role``: whose it is.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Found by Ansible under the names of its attributes."""

    DOCUMENTATION = r"""
options:
  trees:
    description:
      - Directories of templates below the role's C(templates), or of its C(files) (C(files/NAME)),
        each C(src), C(dest) and optionally C(owner), C(group), C(mode), C(dir_mode), C(secret)
        (content hidden, mode 0600), C(purge) (the directory holds nothing else) and C(directory)
        (V(false) for a directory shared with others, whose owner and mode stay). The suffix C(.j2)
        is dropped.
    type: list
    elements: dict
  files:
    description: Single files with their content.
    type: list
    elements: dict
    default: []
  secret_files:
    description: Single files whose content is hidden from output and diff.
    type: list
    elements: dict
    default: []
  directories:
    description: Directories to make, with owner, group, mode and purge.
    type: list
    elements: dict
    default: []
"""

    OWNED = r"""
options:
  validate:
    description: Commands (argument lists) that validate the new files before anything is written;
      C({stage}) is a directory that holds them at their full paths.
    type: list
    elements: list
    default: []
  watch:
    description: What else belongs to it and is compared by the drift probe, C(paths), C(users) and
      C(groups). What is there when the role has been played is what is expected.
    type: dict
    default: {}
  absent:
    description: Further paths that O(state=absent) removes, directories with all that is in them.
    type: list
    elements: path
    default: []
"""

    ROLE = r"""
options:
  role:
    description: Role that this belongs to, for the record; set by the action plugin.
    type: str
    default: ""
  run:
    description: Identifier of the run, for the record; set by the action plugin.
    type: str
    default: ""
"""
