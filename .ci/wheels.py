"""Each package as strangers get it: its wheel, built from its sdist, alone in a clean environment of one Python.

uv run --no-project python .ci/wheels.py 3.11             the newest versions of what it depends on
uv run --no-project python .ci/wheels.py 3.13 --locked    those of uv.lock
uv run --no-project python .ci/wheels.py 3.13 --from DIR  wheels that are there already, built on another system
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

EVERY = """
import importlib.metadata, importlib.resources, sys
module = __import__(name)
assert (importlib.resources.files(name) / "py.typed").is_file(), "py.typed is not in the wheel"
for public in module.__all__:
    getattr(module, public)  # lazy: this imports what is behind the name
"""
FIRST_STEPS = {
    "storage": """
from bitnet_storage.plugin import bitnet_stores
assert {"local", "s3", "gdrive", "fsspec"} <= {plugin.name for plugin in bitnet_stores()}
""",
    "providers": """
from bitnet_providers.plugin import bitnet_teachers
assert "local" in {plugin.name for plugin in bitnet_teachers()}
""",
    "core": """
import warnings, torch
from bitnet_core import BitLinear, BitNetKDEConfig, BitNetKDEForCausalLM
BitLinear(8, 4)(torch.ones(1, 8)).sum().backward()
warnings.simplefilter("error", FutureWarning)  # what the newest transformers is about to drop
small = BitNetKDEConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = BitNetKDEForCausalLM(small).eval()
model.set_activation_bits(16)  # rounded activations may differ with the order of sums
asked = torch.arange(1, 8)[None]
said = [model.generate(asked, max_new_tokens=9, do_sample=False, use_cache=cache) for cache in (True, False)]
assert said[0].equal(said[1]), "the cache of keys and values changes what is said"
""",
    "cli": """
from pathlib import Path
from click.testing import CliRunner
from bitnet_cli.main import cli
for command in (["--version"], ["init", "started"], ["manifests", "schema"], ["plugins"], ["sanity"]):
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, f"bitnet {' '.join(command)}: {done.output}"
assert Path("started/manifests/data/corpus.jsonl").stat().st_size > 1000
assert Path("started/manifests/manifest.schema.json").stat().st_size > 1000
""",
}
"""What the users of each package do first."""


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    subprocess.run([str(word) for word in command], cwd=cwd, check=True, env=own)


def check(package: str, python: str, work: Path, wheels_at: Path, constraints: list[str]) -> None:
    environment = work / package
    run("uv", "venv", "--quiet", "--python", python, environment)
    packages = FIRST_STEPS if package == "cli" else [package]
    wheels = [next(wheels_at.glob(f"bitnet_{each}-*.whl")) for each in packages]
    run("uv", "pip", "install", "--quiet", "--python", environment, *constraints, *wheels)
    interpreter = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    said = f"\nprint('bitnet-{package}', importlib.metadata.version('bitnet-{package}'), 'on Python', sys.version)"
    code = f"name = 'bitnet_{package}'{EVERY}{FIRST_STEPS[package]}{said}"
    run(interpreter, "-I", "-c", code, cwd=work)


def main(python: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options[:1] == ("--from",):
            wheels_at = Path(options[1]).resolve()
        else:
            wheels_at = work / "dist"
            run("uv", "build", "--quiet", "--all-packages", "--out-dir", wheels_at)
        constraints: list[str] = []
        if "--locked" in options:
            locked = work / "locked.txt"
            run("uv", "export", "--quiet", "--no-hashes", "--no-emit-workspace", "--all-groups", "-o", locked)
            constraints = ["--constraint", str(locked)]
        for package in FIRST_STEPS:
            check(package, python, work, wheels_at, constraints)


if __name__ == "__main__":
    main(*sys.argv[1:])
