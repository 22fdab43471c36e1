"""The first ten minutes on a CUDA machine: does what no GPU has seen yet work there, and how fast is it?

    python -m benchmarks.gpu_check                               all parts, ten minutes at most
    python -m benchmarks.gpu_check --only kernels,tests          these alone
    python -m benchmarks.gpu_check --pack carried                elsewhere, with a network: what the machine may lack

It runs from a copy of this repository's files, with the machine's own Python, torch (2.11 or later) and transformers
(5.17 or later); nothing of ours is installed, nothing is fetched. Each part is a process of its own with its own time
limit, so that a failure, or a hang, costs one row of the table:

    kernels    every Triton kernel against float64 and whole numbers      benchmarks.kernel_equality
    tests      the tests that need a GPU                                  pytest -m cuda
    kd_loss    the loss beside its matrix products, and Liger's           benchmarks.kd_loss
    bitlinear  a block of ternary layers, 4096 wide, beside nn.Linear     benchmarks.bitlinear
    decode_gpu the share of the bandwidth that decoding uses              benchmarks.decode_gpu
    dry_run    predicted memory against a real step of a 7B               benchmarks.dry_run
    distil     a teacher made there, distilled by the whole pipeline      benchmarks.tiny_distillation

The table is printed, and all figures go to ``benchmarks/results/gpu_check.json`` (``--out FOLDER``: there), which is
written anew after each part. With ``--only`` or ``--device cpu`` it is written to ``--out`` alone. On the CPU sizes are
tiny, Triton is interpreted, and only the running is shown. The exit status is 1 where a part failed or didn't run.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.stale import RESULTS, ROOT, last_object, stamped, write

PACKAGES = sorted((ROOT / "packages").glob("bitnet-*"))
CORE = ("torch", "transformers", "numpy", "safetensors", "attrs", "pluggy", "triton")
PIPELINE = (*CORE, "pyarrow", "cattrs", "click", "dotenv", "filelock", "gguf", "msgspec", "rich", "tomli", "tomli_w")
DISTRIBUTIONS = {"dotenv": "python-dotenv", "tomli_w": "tomli-w"}
"""Of modules that are called otherwise."""
OWN = ("torch", "triton", "transformers", "numpy", "safetensors", "pyarrow")
"""The machine's own, or hers to install: large, or compiled for what she has."""
ALONE = ("gguf", "liger-kernel")
"""They would bring numpy and torch along."""
CARRIED_BYTES = 64 * 2**20
SECONDS = 600
"""For all parts together."""
PATIENCE = 10
"""Times its limit, on a CPU: it interprets kernels, and may be busy."""
GRACE = 5
"""Seconds from the request to end until the end."""


class Machine(NamedTuple):
    """What a part's sizes depend on."""

    device: str
    gigabytes: float
    """Of the GPU."""
    bfloat16: bool

    @property
    def half(self) -> str:
        return "bfloat16" if self.bfloat16 else "float16"


class Part(NamedTuple):
    """One row of the table."""

    name: str
    seconds: int
    """Its limit."""
    command: Callable[[Machine], list[str]]
    """Arguments of Python."""
    needs: tuple[str, ...]
    """Modules."""
    told: Callable[[dict[str, Any]], str]
    """What the table says of its figures."""


def _kd_loss(machine: Machine) -> list[str]:
    sizes = {"--tokens": 8192, "--width": 4096, "--vocabulary": 128256, "--chunk-tokens": 2048}
    if machine.gigabytes < 40:
        sizes |= {"--tokens": 2048, "--vocabulary": 49152}
    if machine.device == "cpu":
        sizes = {"--tokens": 64, "--width": 32, "--vocabulary": 512, "--rounds": 2}
    options = [word for option, value in sizes.items() for word in (option, str(value))]
    return ["-m", "benchmarks.kd_loss", "--device", machine.device, "--dtype", machine.half, *options]


def _bitlinear(machine: Machine) -> list[str]:
    small = ["--widths", "64", "96", "--tokens", "32", "--rounds", "2", "--eager"]
    return ["-m", "benchmarks.bitlinear", "--device", machine.device, *(small if machine.device == "cpu" else [])]


def _decode_gpu(machine: Machine) -> list[str]:
    small = ["--rounds", "1", "--prefill-tokens", "18", "--shapes", "20x96"]
    return ["-m", "benchmarks.decode_gpu", "--device", machine.device, *(small if machine.device == "cpu" else [])]


def _tests(machine: Machine) -> list[str]:
    """Only files that have one: collecting all costs half a minute, and modules that aren't there."""
    files = sorted((ROOT / "packages").glob("*/tests/**/test_*.py"))
    with_cuda = [str(file) for file in files if "mark.cuda" in file.read_text(encoding="utf-8")]
    options = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-rfE"]
    return ["-m", "pytest", *options, "-m", "cuda", *with_cuda]


PARTS = (
    Part(
        "kernels", 90, lambda machine: ["-m", "benchmarks.kernel_equality", "--device", machine.device], CORE,
        lambda found: f"{found['variants']} variants, wrong: {', '.join(found['wrong']) or 'none'}",
    ),
    Part("tests", 60, _tests, (*PIPELINE, "pytest"), lambda found: found["said"]),
    Part(
        "kd_loss", 55, _kd_loss, CORE,
        lambda found: f"{found['ratio_to_matmuls']} times its products; Liger's cross-entropy: "
        f"{found.get('liger_ce_ratio_to_matmuls') or found['not_run']['liger-kernel']}",
    ),
    Part(
        "bitlinear", 90, _bitlinear, CORE, lambda found: f"{found['step_ratio']} times nn.Linear's step",
    ),
    Part(
        "decode_gpu", 75, _decode_gpu, CORE,
        lambda found: f"{_shares(found['bandwidth_fraction'])} of the bandwidth; "
        f"whole steps {found['decode']['vs_half']} times as fast as in {found['half']}",
    ),
    Part(
        "dry_run", 75,
        lambda machine: ["-m", "benchmarks.dry_run", "--model", "tiny" if machine.device == "cpu" else "7b"], CORE,
        lambda found: f"{found['model']} with {found['layers']['run']} of {found['layers']['of']} layers: "
        f"off by {found['largest_error']:.1%} at most",
    ),
    Part(
        "distil", 130, lambda machine: ["-m", "benchmarks.tiny_distillation", "--device", machine.device], PIPELINE,
        lambda found: f"KL {found['heldout_kl']:.3g} nats (at the start {found['untrained_kl']:.3g}, of the unigram "
        f"{found['unigram_kl']:.3g}), {found['training_tokens_per_second']:,.0f} tok/s in training; {found['runtime']}",
    ),
)  # fmt: skip
"""Their limits come to less than `SECONDS` with the look at the machine."""
OF_THE_MACHINE = """
import json, platform, torch
from importlib.metadata import distributions
versions = {each.metadata["Name"]: each.version for each in distributions()}
cuda = torch.cuda.is_available()
print(json.dumps({
    "cuda": cuda,
    "name": torch.cuda.get_device_name() if cuda else "CPU",
    "capability": list(torch.cuda.get_device_capability()) if cuda else None,
    "bytes": torch.cuda.get_device_properties(0).total_memory if cuda else 0,
    "bfloat16": not cuda or torch.cuda.is_bf16_supported(including_emulation=False),
    "system": f"{platform.system()} {platform.machine()}",
    "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
    | {name: versions.get(name) for name in ("torch", "triton", "transformers", "numpy")},
}))
"""
MACHINE_SECONDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", metavar="PART,PART", help="of " + ", ".join(part.name for part in PARTS))
    parser.add_argument("--limit", type=float, default=SECONDS, help="seconds for all parts together (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where gpu_check.json goes")
    parser.add_argument("--carried", type=Path, metavar="FOLDER", help="packages that --pack gathered")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="gather what a machine may lack, and end")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
        return
    chosen = _chosen(parser, options.only)
    whole = options.device == "cuda" and len(chosen) == len(PARTS)
    out = options.out or (RESULTS if whole else None)
    until = time.monotonic() + options.limit
    with environment(options.device, options.carried) as variables:
        record = check(options.device, chosen, variables, until, out)
    raise SystemExit(0 if all(row["status"] == "ok" for row in record["parts"].values()) else 1)


def _chosen(parser: argparse.ArgumentParser, only: str | None) -> list[Part]:
    names = only.split(",") if only else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"--only: no part is called {', '.join(sorted(unknown))}; there are {[p.name for p in PARTS]}")
    return [part for part in PARTS if part.name in names]


def check(
    device: str, parts: Sequence[Part], variables: Mapping[str, str], until: float, out: Path | None = None
) -> dict[str, Any]:
    """Run `parts`, print their rows, and write the record into `out` after each."""
    record: dict[str, Any] = {"device": None, "parts": {}}

    def tell(name: str, row: dict[str, Any]) -> None:
        record["parts"][name] = row
        print(f"{name:<10} {row['status']:<8} {row['seconds']:>6.1f} s  {row['said']}", flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write(out / "gpu_check.json", stamped("gpu_check", record))

    if missing := _missing(parts, variables):
        tell("needs", _row("lacking", said=_to_carry(missing)))
    if set(missing) & {"torch", "transformers"}:
        return record
    patience = 1 if device == "cuda" else PATIENCE
    looked = run(["-c", OF_THE_MACHINE], variables, min(MACHINE_SECONDS * patience, until - time.monotonic()), _about)
    record["device"] = about = looked.get("figures")
    if about is None:
        tell("machine", looked)
        return record
    if device == "cuda" and not about["cuda"]:
        tell("machine", looked | {"status": "failed", "said": "torch sees no CUDA GPU here; --device cpu is for tests"})
        return record
    print(looked["said"], flush=True)
    machine = Machine(device, about["bytes"] / 1e9, about["bfloat16"])
    for part in parts:
        lacking = [name for name in part.needs if name in missing]
        left = until - time.monotonic()
        if lacking:
            tell(part.name, _row("not run", said=f"needs {', '.join(lacking)}"))
        elif left < 1:
            tell(part.name, _row("not run", said="the time for all parts is over (--limit)"))
        else:
            tell(part.name, run(part.command(machine), variables, min(part.seconds * patience, left), part.told))
    return record


def run(
    arguments: Sequence[str], variables: Mapping[str, str], seconds: float,
    told: Callable[[dict[str, Any]], str] = lambda found: "",
) -> dict[str, Any]:  # fmt: skip
    """Python with `arguments`, as a row of the record: how it ended, its last JSON object, what it said last."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=variables, stdout=said, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        code = _waited(process, seconds)
        said.seek(0)
        text = said.read().decode(errors="replace")
    taken = time.monotonic() - started
    command = " ".join(["python", *arguments]) if arguments[0] == "-m" else "python -c ..."
    common = {"command": command, "limit_s": round(seconds, 1)}
    if code is None:
        return _row("hung", taken, f"stopped at its limit of {seconds:.0f} s", **common, tail=text[-4000:])
    figures = _tested(text) if "pytest" in arguments else _object(text)
    if figures is None:  # it did not come as far
        last = next((line for line in reversed(text.splitlines()) if line.strip()), f"ended with {code}")
        return _row("failed", taken, last[:300], **common, tail=text[-4000:])
    if code == 0:
        all_skipped = "pytest" in arguments and "passed" not in figures
        return _row("not run" if all_skipped else "ok", taken, told(figures), **common, figures=figures)
    return _row("failed", taken, told(figures), **common, figures=figures, tail=text[-4000:])


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Its exit status; None: it had to be ended."""
    try:
        return process.wait(timeout=max(seconds, 0))
    except subprocess.TimeoutExpired:
        _end(process)
        return None
    except BaseException:
        _end(process)
        raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With all that it has started. One that waits in the driver can't be ended: it is left behind."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)


def _row(status: str, seconds: float = 0.0, said: str = "", **more: Any) -> dict[str, Any]:
    return {"status": status, "seconds": round(seconds, 1), "said": said, **more}


def _object(text: str) -> dict[str, Any] | None:
    try:
        return last_object(text)
    except SystemExit:  # there is none
        return None


def _tested(text: str) -> dict[str, Any] | None:
    """pytest's last line."""
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", text.splitlines()[-1] if text.strip() else "")
    if not counts:
        return None
    found: dict[str, Any] = {kind: int(number) for number, kind in counts}
    found["said"] = ", ".join(f"{number} {kind}" for number, kind in counts)
    return found


@contextmanager
def environment(device: str, carried: Path | None) -> Iterator[dict[str, str]]:
    """Of the parts: our packages out of their source folders, with what says that they are installed.

    Plugins are found by a distribution's entry points, versions by its metadata.
    """
    with tempfile.TemporaryDirectory() as place:
        for package in PACKAGES:
            _say_installed(package, Path(place))
        paths = [str(path) for path in (ROOT, *(package / "src" for package in PACKAGES), place)]
        paths += [str(carried.resolve())] if carried else []
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        variables = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        variables |= {"PYTHONUNBUFFERED": "1", "SKIP_EXTERNAL": "1", "HF_HUB_OFFLINE": "1"}
        variables.pop("TRITON_INTERPRET", None)
        if device == "cpu":
            variables |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        yield variables


def _say_installed(package: Path, place: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = place / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, points in project.get("entry-points", {}).items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _missing(parts: Sequence[Part], variables: Mapping[str, str]) -> list[str]:
    """Modules that a part needs and Python doesn't find."""
    needed = list(dict.fromkeys(name for part in parts for name in part.needs))
    before = list(sys.path)
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    try:
        return [name for name in needed if find_spec(name) is None]
    finally:
        sys.path[:] = before


def _to_carry(missing: Sequence[str]) -> str:
    hers = [name for name in missing if name in OWN]
    ours = [DISTRIBUTIONS.get(name, name) for name in missing if name not in OWN]
    carry = "where there is a network, python -m benchmarks.gpu_check --pack carried; then --carried carried"
    said = [f"not here: {', '.join(ours)} ({carry})"] if ours else []
    said += [f"not here, and too large to carry: {', '.join(hers)}; install them"] if hers else []
    return "; ".join(said)


def pack(folder: Path) -> None:
    """What a machine with torch and transformers may lack, unpacked, for Linux on x86-64 and its Python 3.12."""
    small = [name for name in dict.fromkeys((*PIPELINE, "pytest")) if name not in (*OWN, *ALONE)]
    names = [DISTRIBUTIONS.get(name, name) for name in small]
    platform = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28", "--only-binary", ":all:"]
    if shutil.which("uv") is None:
        raise SystemExit("gpu_check: --pack needs uv: https://docs.astral.sh/uv/getting-started/installation/")
    for more in (names, ["--no-deps", *ALONE]):
        subprocess.run(["uv", "pip", "install", "--quiet", "--target", str(folder), *platform, *more], check=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 2**20:.1f} MiB")
    if size > CARRIED_BYTES:
        raise SystemExit(f"gpu_check: {folder} is larger than {CARRIED_BYTES >> 20} MiB")


def _about(machine: Mapping[str, Any]) -> str:
    return f"{machine['name']}, {machine['capability']}, {machine['bytes'] / 1e9:.0f} GB; {machine['versions']}"


def _shares(fractions: Mapping[str, float]) -> str:
    return f"{min(fractions.values()):.0%} to {max(fractions.values()):.0%}"


if __name__ == "__main__":
    main()
