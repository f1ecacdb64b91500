"""Writes the dashboards' JSON into the role `monitoring`: python -m tools.dashboards [--check]"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tools.dashboards.boards import BOARDS
from tools.dashboards.schema import mistakes

OUTPUT = (
    Path(__file__).resolve().parents[2]
    / "roles/monitoring/templates/stack/config/grafana/dashboards"
)


def files() -> dict[str, str]:
    """The text of every dashboard by file name."""
    return {
        f"{board.uid}.json": json.dumps(board.model(), indent=2, ensure_ascii=False) + "\n"
        for board in BOARDS
    }


def main() -> int:
    """Write the files, remove what left; with --check only say what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a mistake")
    check = parser.parse_args().check
    wanted = files()
    found = {path.name: path.read_text() for path in OUTPUT.glob("*.json")}
    different = sorted(
        name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
    )
    if check:
        for name in different:
            print(
                f"{name} is not what tools/dashboards makes: run make dashboards", file=sys.stderr
            )
        wrong = [line for name, text in wanted.items() for line in mistakes(name, json.loads(text))]
        for line in wrong:
            print(line, file=sys.stderr)
        return 1 if different or wrong else 0
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in different:
        if name in wanted:
            (OUTPUT / name).write_text(wanted[name])
        else:
            (OUTPUT / name).unlink()
        print(f"{'wrote' if name in wanted else 'removed'} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
