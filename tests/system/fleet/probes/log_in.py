"""Try to log in several times at once, with a password that is wrong: [status, ...]; 0: no answer.

Arguments: the API's URL, how often.
"""

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

URL = sys.argv[1] + "/api/auth/login"
BODY = json.dumps({"username": "alert-test", "password": "not-this-one-1"}).encode()


def log_in(_: int) -> int:
    request = urllib.request.Request(URL, BODY, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


count = int(sys.argv[2])
with ThreadPoolExecutor(count) as pool:
    print(json.dumps(list(pool.map(log_in, range(count)))))
