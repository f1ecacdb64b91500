"""Fill Redis with values of the API's until it takes no more, or remove them. Needs redis.

Arguments: where Redis listens, host:port; "fill" or "remove". Prints how many values.
"""

import sys
from pathlib import Path

import redis

PASSWORD = Path("/etc/prime-spark/api/credentials/redis_password").read_text().strip()
MIB = 1024 * 1024
MOST = 1024

(host, port), action = sys.argv[1].rsplit(":", 1), sys.argv[2]
client = redis.Redis(host=host, port=int(port), username="api", password=PASSWORD)
count = 0
try:
    for size in (MIB, 1024):
        for _ in range(MOST):
            name = f"memory:alert-test:{count}"
            if action == "remove":
                if not client.delete(name):
                    break
            else:
                client.set(name, b"x" * size)
            count += 1
except redis.exceptions.OutOfMemoryError:
    pass
print(count)
