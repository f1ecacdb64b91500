"""Replace and read one key through NASStorage, from many threads at once. Arguments: mount point,
KEY, epoch seconds when to begin, seconds, writers, readers. Prints how often which outcome was
seen: "read", "stored", or what an error said."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from prime_spark.memory.nas import NASError, NASStorage

mount_point, key, begin, seconds, writers, readers = sys.argv[1:]
storage = NASStorage(mount_point)
VALUES = ["a" * 100, {"b": "b" * 5000}]


def until_the_end(outcome: str, act: Callable[[int], object]) -> Counter[str]:
    seen: Counter[str] = Counter()
    while time.time() < float(begin) + float(seconds):
        try:
            act(seen[outcome])
            seen[outcome] += 1
        except NASError as error:
            seen[f"{type(error).__name__}: {error}"] += 1
    return seen


def read(_: int) -> None:
    if storage.retrieve(key) not in VALUES:
        raise NASError("neither the old value nor the new one")


def store(number: int) -> None:
    storage.store(key, VALUES[number % 2])


time.sleep(max(0.0, float(begin) - time.time()))
with ThreadPoolExecutor(int(writers) + int(readers)) as pool:
    work = [pool.submit(until_the_end, "stored", store) for _ in range(int(writers))]
    work += [pool.submit(until_the_end, "read", read) for _ in range(int(readers))]
print(json.dumps(sum((done.result() for done in work), Counter())))
