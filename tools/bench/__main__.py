"""Benchmarks: run them, keep the results in docs/benchmarks.json, write the documents' tables.

python -m tools.bench run [--only converge,api]   run sections, record and render
python -m tools.bench render [--check]            write the tables; --check only says what differs
python -m tools.bench list                        what there is
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tools.bench import render, results
from tools.bench.sections import SECTIONS, Section


def _run(section: Section) -> results.Result:
    """Run one section's command and show what it prints; raises ValueError when it fails."""
    print(f"== {section.name}: {section.says} (`{section.command}`)", flush=True)
    argv = ["make", "--no-print-directory", section.target, *section.options]
    with subprocess.Popen(
        argv,
        cwd=results.REPOSITORY,
        env=results.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode != 0:
        raise ValueError(f"`{section.command}` ended with status {process.returncode}")
    return results.result_of(section, "".join(lines))


def run(names: list[str]) -> int:
    """Run the sections one after the other; a failed one keeps its earlier result."""
    failed = []
    for name in names:
        try:
            result = _run(SECTIONS[name])
        except ValueError as error:
            print(f"{error}: nothing is recorded", file=sys.stderr)
            failed.append(name)
            continue
        results.save({**results.load(), name: result})
    render.write(check=False)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--only", default="", help="sections, separated by commas")
    rendering = commands.add_parser("render")
    rendering.add_argument("--check", action="store_true")
    commands.add_parser("list")
    options = parser.parse_args()
    if options.command == "run":
        usual = [name for name, section in SECTIONS.items() if not section.alone]
        names = options.only.split(",") if options.only else usual
        if unknown := [name for name in names if name not in SECTIONS]:
            parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
        return run(names)
    if options.command == "list":
        for section in SECTIONS.values():
            note = " (only when named)" if section.alone else ""
            print(f"{section.name:10} {section.command:24} {section.says}{note}")
        return 0
    differing = render.write(check=options.check)
    for name in differing:
        print(f"{name}: {'differs, run `make bench-render`' if options.check else 'written'}")
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
