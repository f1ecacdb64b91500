"""Makes numbered files in a directory, each at a moment that another host uses, too.

Arguments: source of `make_once`, the directory, the Unix time to begin at, how many files, seconds
from one to the next. Prints how often each outcome was seen.
"""

import collections
import json
import os
import sys
import time

source, directory, begin, files, apart = sys.argv[1:]
space = {"os": os}
exec(source, space)
outcomes = collections.Counter()
for number in range(int(files)):
    while time.time() < float(begin) + number * float(apart):
        pass
    try:
        made = space["make_once"](os.path.join(directory, str(number)), b"made\n")
        outcomes["made" if made else "there"] += 1
    except OSError as error:
        outcomes[str(error)] += 1
print(json.dumps(outcomes))
