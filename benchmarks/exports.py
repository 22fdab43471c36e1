"""Are the exports the same model as the checkpoint? Every export of a run, checked, GGUF through llama.cpp itself.

    uv run python -m benchmarks.exports RUN

Prints one JSON object: each figure with its bar (see docs/exports.md), the size of each export, and the machine. The
same figures for what lies in a run's exports/: `bitnet export RUN --check`.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

BITNET = str(Path(sys.executable).with_name("bitnet"))
PACKAGES = ("torch", "transformers", "gguf", "xllamacpp", "bitnet-core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or a checkpoint")
    run = parser.parse_args().run
    types = 'export.gguf.types=["q2_0", "tq2_0", "tq1_0", "f16", "f32"]'
    with tempfile.TemporaryDirectory() as folder:
        command = [BITNET, "export", run, "--to", "gguf,hf,packed", "--set", types, "--out", folder]
        done = subprocess.run([*command, "--check", "--json"], check=False, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    exports = found["exported"]["exports"]
    print(
        json.dumps(
            {
                "checkpoint": found["exported"]["checkpoint"],
                "figures": found["check"],
                "bytes": {target: entry["bytes"] for target, entry in exports.items()},
                "padded": exports["student-tq2_0.gguf"].get("padded"),
                "machine": f"{platform.system()} {platform.machine()}",
                "versions": {name: version(name) for name in PACKAGES},
            },
            indent=1,
        )
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
