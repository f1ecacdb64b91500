"""Use the share through NASStorage. Arguments: mount point, "store" KEY TEXT, "store_bytes" KEY
NUMBER, "retrieve" KEY, "delete" KEY or "keys" PREFIX. Prints {"result": ...} or {"error": name,
"text": ...}."""

import json
import sys

from prime_spark.memory.nas import NASError, NASStorage

storage = NASStorage(sys.argv[1])
what = sys.argv[2]
arguments: list[str | bytes] = [*sys.argv[3:]]
if what == "store_bytes":
    what, arguments = "store", [arguments[0], bytes(int(arguments[1]))]
try:
    answer = {"result": getattr(storage, what)(*arguments)}
except NASError as error:
    answer = {"error": type(error).__name__, "text": str(error)}
print(json.dumps(answer))
