"""Which stored figures no longer hold, and makes them again: ``python -m benchmarks.stale [NAME ...] [--run]``.

Each JSON under ``benchmarks/results/`` has a ``made_by``: the command, the commit, and a digest of the sources that the
figures depend on. Without options this lists the results whose sources have changed since, and those that say nothing
of theirs; the exit status is 1 where there are any. With ``--run`` those are made again that need nothing but this
machine and few minutes (cheap ones), and with a NAME that one, whatever it takes. A result that another way of running
a benchmark printed gets its ``made_by`` by ``--stamp NAME``, right after the run.
"""

import argparse
import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORE, PROVIDERS = "packages/bitnet-core/src/bitnet_core", "packages/bitnet-providers/src/bitnet_providers"
PIPELINE = (CORE, PROVIDERS, "packages/bitnet-cli/src/bitnet_cli/stages", "manifests/data")


class Figures(NamedTuple):  # no attrs: `benchmarks.gpu_check` begins where nothing is installed
    """How one result is made."""

    sources: tuple[str, ...]
    """Files and folders below the repository, beside the benchmark itself, that the figures depend on."""
    arguments: tuple[str, ...] = ()
    module: str = ""
    """In `benchmarks`; empty: of the result's name."""
    cheap: bool = False
    """Some minutes on any machine, and no run folder."""
    writes: bool = False
    """It writes the result itself; else its last JSON object on stdout is the result."""


RECIPES = (f"{CORE}/training", f"{CORE}/losses", f"{CORE}/model", f"{CORE}/ternary", "manifests/data")

BENCHMARKS: Mapping[str, Figures] = {
    "bitlinear": Figures((f"{CORE}/ternary",), cheap=True),
    "calibration": Figures((f"{CORE}/calibration", f"{CORE}/model", f"{CORE}/ternary", "manifests/data"), writes=True),
    "collect": Figures((f"{PROVIDERS}/collect", f"{PROVIDERS}/raw", f"{PROVIDERS}/teachers")),
    "cpu_hour": Figures((*PIPELINE, "manifests/cpu-hour.toml"), ("cpu-hour",), "quickstart"),
    "decode": Figures(
        (
            f"{CORE}/runtime/packed",
            f"{CORE}/runtime/llamacpp",
            "benchmarks/decode_models.py",
            "benchmarks/decode_peers.py",
        ),
        ("--bitnet-cpp", "BUILD", "--ik-llama", "BUILD"),
    ),
    "decode_head": Figures((f"{CORE}/runtime/packed", f"{CORE}/export/check.py"), ("FOLDER",)),
    "dry_run": Figures((f"{CORE}/dry_run", f"{CORE}/model", f"{CORE}/training"), cheap=True),
    "exports": Figures((f"{CORE}/export", f"{CORE}/model/inference_copy.py", f"{CORE}/ternary"), ("RUN",)),
    "gpu_check": Figures((CORE, PROVIDERS, "benchmarks/kernel_equality.py"), writes=True),
    "identity": Figures((f"{CORE}/losses", "benchmarks/peer_losses.py"), cheap=True),
    "kd_loss": Figures((f"{CORE}/losses",), cheap=True),
    "kernels": Figures(
        (
            f"{CORE}/losses/chunk_triton.py",
            f"{CORE}/runtime/packed/triton_kernels.py",
            f"{CORE}/runtime/packed/triton_products.py",
        ),
        cheap=True,
        writes=True,
    ),
    "many_processes": Figures(
        (f"{CORE}/distributed.py", f"{CORE}/dry_run/communication.py", f"{CORE}/model", f"{CORE}/training"), cheap=True
    ),
    "quickstart": Figures((*PIPELINE, "manifests/quickstart.toml")),
    "recipes": Figures(RECIPES, ("--size", "calibrated")),
    "recipes_finalists": Figures(RECIPES, ("--size", "finalists"), "recipes"),
    "recipes_three_layers": Figures(RECIPES, ("--size", "cpu"), "recipes"),
    "scale": Figures(
        (
            f"{CORE}/traces",
            *(f"{PROVIDERS}/{name}" for name in ("collect", "raw")),
            "packages/bitnet-cli/src/bitnet_cli/launching",
            "packages/bitnet-cli/src/bitnet_cli/stages/collect_on_workers.py",
        )
    ),
    "startup": Figures(("packages/bitnet-cli/src/bitnet_cli",), cheap=True),
    "store": Figures(("packages/bitnet-storage/src/bitnet_storage/backends/s3.py",)),
    "teacher_quantised": Figures(
        (f"{CORE}/evaluation", f"{CORE}/export/gguf", "manifests/data", "manifests/quickstart.toml"),
        ("RUN", "--llama", "FOLDER"),
        writes=True,
    ),
    "token_bytes": Figures((f"{CORE}/traces/tokenizer.py", "benchmarks/texts"), cheap=True),
    "train_step": Figures(
        tuple(f"{CORE}/{folder}" for folder in ("kernels", "losses", "model", "ternary", "training")), cheap=True
    ),
    "traces": Figures((f"{CORE}/projection", "benchmarks/texts"), cheap=True),
    "traces_load": Figures((f"{CORE}/traces",), ("RUN",)),
}
"""By the result's name. Capitals among the arguments stand for what only a person can name."""


def command_of(name: str) -> list[str]:
    figures = BENCHMARKS[name]
    return ["python", "-m", f"benchmarks.{figures.module or name}", *figures.arguments]


def source_files(name: str) -> list[str]:
    """What the figures depend on, relative to the repository, sorted: the files that git knows or would take; where
    there is no repository but only its files, all of them."""
    figures = BENCHMARKS[name]
    paths = [f"benchmarks/{figures.module or name}.py", *figures.sources]
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard", "--", *paths)
    if listed is None:
        below = [
            each for path in paths for each in ((ROOT / path).rglob("*") if (ROOT / path).is_dir() else [ROOT / path])
        ]
        listed = "\n".join(str(file.relative_to(ROOT)) for file in below if "__pycache__" not in file.parts)
    return sorted(file for file in set(listed.splitlines()) if (ROOT / file).is_file())


def digest_of(name: str) -> str:
    """SHA-256 over what is in `source_files`. Names of files, and which of them a function stands in, don't count."""
    parts = sorted(part for file in source_files(name) for part in _parts(ROOT / file))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _parts(file: Path) -> Iterator[str]:
    """A digest of each function, class and statement of a Python file, else one of it all.

    Comments, docstrings and imports change no figure.
    """
    content = file.read_bytes()
    if file.suffix != ".py":
        yield hashlib.sha256(content).hexdigest()
        return
    lines, tree = content.decode().splitlines(), ast.parse(content)
    for node in filter(_is_words, ast.walk(tree)):
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    for node in tree.body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        kept = [
            line for line in lines[first - 1 : node.end_lineno] if line.strip() and not line.lstrip().startswith("#")
        ]
        if kept:
            yield hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _is_words(node: Any) -> bool:
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_for_types = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return is_text or is_for_types or isinstance(node, ast.Import | ast.ImportFrom)


def stamped(name: str, result: Mapping[str, Any], command: Sequence[str] | None = None) -> dict[str, Any]:
    """The result with its ``made_by``, as of now. command: None for the one that is being run."""
    ran = [f"benchmarks.{name}", *sys.argv[1:]] if command is None else list(command[2:])
    made_by = {
        "command": " ".join(["python", "-m", *ran]),
        "commit": _commit(),
        "sources_sha256": digest_of(name),
    }
    return {"made_by": made_by, **{key: value for key, value in result.items() if key != "made_by"}}


def fault_of(name: str) -> str | None:
    """Why the stored result doesn't hold; None: it does."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        return "not there yet"
    made_by = json.loads(file.read_text()).get("made_by")
    if not isinstance(made_by, dict):
        return "says nothing of what made it"
    if made_by.get("sources_sha256") != digest_of(name):
        return f"its sources have changed since {str(made_by.get('commit'))[:12]}"
    return None


def unknown_results() -> Iterator[str]:
    """Results that no entry of `BENCHMARKS` is for."""
    yield from sorted(file.stem for file in RESULTS.glob("*.json") if file.stem not in BENCHMARKS)


def make(name: str) -> None:
    """Run the benchmark and keep its result. Ends the program where it fails, or a person has to name something."""
    command, file = command_of(name), RESULTS / f"{name}.json"
    if any(word.isupper() for word in command):
        raise SystemExit(
            f"{name}: run it yourself ({' '.join(command)}), then python -m benchmarks.stale --stamp {name}"
        )
    print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
    before = file.stat().st_mtime_ns if file.is_file() else 0
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {' '.join(command)} ended with {done.returncode}; its result stays as it was")
    if BENCHMARKS[name].writes:
        if not file.is_file() or file.stat().st_mtime_ns == before:
            raise SystemExit(f"{name}: {' '.join(command)} wrote no {file.relative_to(ROOT)}")
        result = json.loads(file.read_text())
    else:
        result = last_object(done.stdout)
    write(file, stamped(name, result, command))


def last_object(printed: str) -> dict[str, Any]:
    """The JSON object that ends at the end of a benchmark's output, on one line or over several."""
    decoder, lines = json.JSONDecoder(), printed.rstrip().splitlines(keepends=True)
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].startswith("{"):
            try:
                found = decoder.decode("".join(lines[start:]))
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    raise SystemExit("its output does not end with a JSON object")


def write(file: Path, record: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(file)


def _commit() -> str | None:
    head = _git("rev-parse", "HEAD")
    return None if head is None else head.strip() + ("-dirty" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str | None:
    """What git says; None where it, or the repository, isn't here: a copy of the files is enough to run a benchmark."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return None
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME", help="make these again")
    parser.add_argument("--run", action="store_true", help="make the cheap ones again that no longer hold")
    parser.add_argument("--stamp", choices=list(BENCHMARKS), help="say of a result just made what made it")
    arguments = parser.parse_args()
    if arguments.stamp:
        file = RESULTS / f"{arguments.stamp}.json"
        write(file, stamped(arguments.stamp, json.loads(file.read_text()), command_of(arguments.stamp)))
        return
    for name in arguments.names:
        make(name)
    faults = {name: fault for name in BENCHMARKS if (fault := fault_of(name)) is not None}
    if arguments.run:
        for name in [name for name in faults if BENCHMARKS[name].cheap]:
            make(name)
            del faults[name]
    faults |= dict.fromkeys(unknown_results(), "no entry of benchmarks.stale.BENCHMARKS is for it")
    for name, fault in sorted(faults.items()):
        cheap = name in BENCHMARKS and BENCHMARKS[name].cheap
        print(f"{name}: {fault}{' (cheap: --run makes it again)' if cheap else ''}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
