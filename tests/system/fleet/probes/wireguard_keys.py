"""Where on this host stands a WireGuard private key? Only digests of keys leave the host.

Arguments: directories. Prints {"own": digest of this host's private key, "found": {digest: [file]}}
for everything in the directories that looks like a key in base64.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys

KEY = re.compile(rb"[A-Za-z0-9+/]{43}=")


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


own = b""
if shutil.which("wg"):
    argv = ["wg", "show", "wg0", "private-key"]
    own = subprocess.run(argv, capture_output=True, check=True).stdout.strip()
# -w would miss a key within a longer word, so the whole of each match is looked at.
found: dict[str, list[str]] = {}
lines = subprocess.run(
    ["grep", "-raoE", "--devices=skip", "--exclude-dir=releases", "--null"]
    + ["[A-Za-z0-9+/]{43}=", "--", *sys.argv[1:]],
    capture_output=True,
    check=False,
    env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
).stdout.splitlines()
for line in lines:
    path, _, match = line.partition(b"\0")
    for key in KEY.findall(match):
        found.setdefault(digest(key), []).append(path.decode(errors="replace"))
print(json.dumps({"own": digest(own) if own else None, "found": found}))
