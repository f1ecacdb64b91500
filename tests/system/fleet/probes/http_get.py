"""GET each URL: {url: {"status": ..., "body": ...} or {"error": ...}}; a status is no error."""

import json
import sys
import urllib.error
import urllib.request


def get(url: str) -> dict[str, object]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return {"status": answer.status, "body": answer.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "body": error.read().decode()}
    except OSError as error:
        return {"error": str(error)}


print(json.dumps({url: get(url) for url in sys.argv[1:]}))
