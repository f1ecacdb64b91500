"""The newest samples in Redis: {key: {field: value}}, read from what Redis has written to disk.

Argument: the directory of its data. None of its users may read them yet, so a copy of the data is
loaded by a second server without a network, which is removed again.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(sys.argv[1])
LUA = """
local found = {}
for _, key in ipairs(redis.call('keys', 'metrics:*')) do
  if redis.call('type', key).ok == 'hash' then
    local fields = {}
    local pairs_ = redis.call('hgetall', key)
    for i = 1, #pairs_, 2 do fields[pairs_[i]] = pairs_[i + 1] end
    found[key] = fields
  end
end
return cjson.encode(found)
"""


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    if check and done.returncode != 0:
        raise SystemExit(f"docker {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def main() -> str:
    label = "label=com.docker.compose.project=redis"
    image = docker("ps", "--filter", label, "--format", "{{.ID}}")
    image = docker("inspect", "--format", "{{.Image}}", image)
    with tempfile.TemporaryDirectory(prefix="fleet-test-") as directory:
        copy = Path(directory) / "data"
        shutil.copytree(DATA, copy)
        server = ["redis-server", "--dir", "/data", "--appendonly", "yes", "--port", "0"]
        server += ["--unixsocket", "/tmp/redis.sock", "--daemonize", "yes"]
        wait = "until redis-cli -s /tmp/redis.sock ping | grep -q PONG; do sleep 0.05; done"
        script = f"{' '.join(server)} >/dev/null && {wait} && exec redis-cli -s /tmp/redis.sock"
        return docker(
            *("run", "--rm", "--network", "none", "--user", "0:0"),
            *("--volume", f"{copy}:/data", "--entrypoint", "/bin/bash", image),
            *("-c", f'{script} --raw eval "$1" 0', "bash", LUA),
        )


print(json.dumps(json.loads(main())))
