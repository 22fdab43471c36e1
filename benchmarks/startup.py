"""How long does the command take to say something? Whole processes, against an empty Python, in one interleaved run.

uv run python -m benchmarks.startup
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
BITNET = str(Path(sys.executable).with_name("bitnet"))
COMMANDS = {
    "python": ["-c", "pass"],
    "import_torch": ["-c", "import torch"],
    "help": [BITNET, "--help"],
    "plugins": [BITNET, "plugins"],
    "plan": [BITNET, "plan", "manifests/quickstart.toml"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    for arguments in COMMANDS.values():
        seconds(arguments)  # warm the file cache
    readings = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            readings[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in readings.items()}
    print(
        json.dumps(
            {
                "seconds": medians,
                "spread": {name: [min(values), max(values)] for name, values in readings.items()},
                "ratio_to_python": {name: value / medians["python"] for name, value in medians.items()},
                "rounds": ROUNDS,
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}",
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
