"""The most memory that cgroups have while standard input is open: {name: bytes}.

Arguments: parts of a cgroup's name, such as a container's ID or a unit. Counted is what cannot be
dropped, shared pages once. Not asked of the cgroup: one of the lab's hosts may have no accounting.
"""

import json
import re
import select
import sys
from pathlib import Path

HELD = re.compile(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", re.MULTILINE)


def look() -> dict[str, int]:
    seen = dict.fromkeys(sys.argv[1:], 0)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = (process / "cgroup").read_text()
            for name in seen:
                if name in group:
                    pages = (process / "smaps_rollup").read_text()
                    seen[name] += sum(map(int, HELD.findall(pages))) * 1024
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
    return seen


peak = look()
while not select.select([sys.stdin], [], [], 0.3)[0]:
    for name, held in look().items():
        peak[name] = max(peak[name], held)
print(json.dumps(peak))
