"""How many samples the collector of this host has ever taken, by its buffer on disk.

Arguments: the buffer's directory, the interval in seconds. Prints {"number", "at"}: the samples
numbered below `number` are those taken before `at` (epoch seconds). Numbers are given out by the
buffer, one for each sample, and outlive kill -9 and reboots. The collector may be off.
"""

import json
import shutil
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

# A sample is taken right after each multiple of the interval; looked is at some distance from it.
AFTER_TICK, BEFORE_TICK = 1.5, 0.5
FILES = ("samples.db", "samples.db-wal")


def next_number(directory: Path) -> int:
    """Read a copy: the collector keeps its database locked."""
    while True:
        before = [stamp(directory / name) for name in FILES]
        with tempfile.TemporaryDirectory() as folder:
            for name in FILES:
                with suppress(FileNotFoundError):  # a collector that is off has no log
                    shutil.copy(directory / name, folder)
            if before != [stamp(directory / name) for name in FILES]:
                continue  # written meanwhile: the two do not belong together
            with closing(sqlite3.connect(f"{folder}/samples.db")) as db:
                (last,) = db.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()
                return int(last) + 1


def stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return None
    return seen.st_mtime_ns, seen.st_size


def main(directory: Path, interval: float) -> dict[str, float]:
    while not AFTER_TICK <= (now := time.time()) % interval <= interval - BEFORE_TICK:
        time.sleep(0.1)
    return {"number": next_number(directory), "at": now}


print(json.dumps(main(Path(sys.argv[1]), float(sys.argv[2]))))
