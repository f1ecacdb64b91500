"""pyinfra's inventory: the hosts with what each has to be, from the file that the bench wrote."""

import json
import os
from pathlib import Path

folder = Path(os.environ["PRIME_SPARK_BENCH_STATE"])
given = json.loads((folder / "fleet.json").read_text())

fleet = [
    (
        name,
        {
            "ssh_config_file": given["ssh_config"],
            "wanted": state,
            "contents": str(folder / name),
        },
    )
    for name, state in given["hosts"].items()
]
