"""What Triton's compiler makes of each kernel for each GPU; it needs none.

    python -m benchmarks.kernels [--capabilities 75 80 86 89 90 100 120]

The launches are the code's own, made on fake CUDA tensors of real shapes and recorded instead of run, so that types,
tiles and alignments are those of a real run. Each is compiled for each capability and its machine code is read with
cuobjdump and nvdisasm, which come with Triton: registers, bytes of the stack (what doesn't fit in registers is spilled
there), shared memory, and the instructions that the speed rests on. With all capabilities the figures go to
``benchmarks/results/kernels.json``; with some they are printed alone. A kernel takes about a second, and what is in
Triton's cache takes none: begin again where it was stopped.
"""

import argparse
import json
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import attrs
import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.stale import RESULTS, stamped, write
from bitnet_core.losses import chunk_triton
from bitnet_core.losses.divergences import REVERSE_KL, KDTerm, jensen_shannon, tempered_term, topk_other_term
from bitnet_core.losses.masks_and_rows import NextTokenRows
from bitnet_core.runtime.packed import triton_products
from bitnet_core.runtime.packed.triton_products import DP4A_TILE, GEMV_TILES, PREFILL_TILES, QuantisedTokens, Tile

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
SHARED_BYTES = {75: 65_536, 80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Of one block at most (CUDA's programming guide, table of compute capabilities)."""
REGISTERS = 65_536
"""Of one block at most."""
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
INSTRUCTIONS = {
    "matrix": r"IMMA|IGMMA|UTCIMMA",
    "dp4a": r"IDP\.4A",
    "wide_loads": r"LDG\S*\.128",
    "spills": r"STL|LDL",
}
"""Names in machine code: int8 products of tensor cores (before sm_90, of sm_90, of sm_100), ..., loads of 16 bytes."""
NEEDED = {
    "matmul_kernel": ("matrix", "wide_loads"),
    "gemv_kernel": ("dp4a", "wide_loads"),
    "dp4a_matmul_kernel": ("dp4a", "wide_loads"),
    "quantise_kernel": (),
    "_row": ("wide_loads",),
}
"""What its speed rests on."""
UNALIGNED = "rows of no multiple of 16"
_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


@attrs.frozen(eq=False)
class Launch:
    """One call of a kernel."""

    variant: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    warps: int

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def source(self) -> ASTSource:
        """What Triton compiles for these arguments: whole numbers of 1 are constants, multiples of 16 are known to be.

        Tensors begin at multiples of 16 bytes, as those of torch's allocator do.
        """
        types, constants, known = {}, {}, {}
        for place, (name, value) in enumerate(self.arguments.items()):
            constant = self.kernel.params[place].is_constexpr or (type(value) is int and value == 1)
            if constant:
                constants[(place,)] = value
            elif isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
                known[(place,)] = [["tt.divisibility", 16]]
            number = "fp32" if isinstance(value, float) else "i32"
            type_ = POINTERS[value.dtype] if isinstance(value, Tensor) else number
            types[name] = "constexpr" if constant else type_
        return ASTSource(fn=self.kernel, signature=types, constexprs=constants, attrs=known)


def loss_rows(
    kd: KDTerm, dtype: torch.dtype, *, vocabulary: int = 49152, k: int = 20, tokens: int = 1024, gradient: bool = True
) -> None:
    """A chunk of the loss."""
    column = partial(torch.zeros, tokens, device="cuda")
    rows = NextTokenRows(
        hidden_ND=column(),
        target=column(dtype=torch.int64),
        topk_ids=torch.zeros(tokens, k, dtype=torch.int64, device="cuda"),
        topk_logprobs=torch.zeros(tokens, k, device="cuda"),
        other_logprob=column(),
        sample_logprob=column(),
        has_kd=column(dtype=torch.bool),
        is_response=column(dtype=torch.bool),
        is_format=column(dtype=torch.bool),
        document=column(dtype=torch.int64),
        log_z=column(),
        entropy=column(),
    )
    logits_CV = torch.empty(tokens, vocabulary, dtype=dtype, device="cuda")
    chunk_triton.TritonRows.for_chunks(logits_CV, rows, kd, 0.3, 0.5, gradient)(logits_CV, 0)


def quantised(dtype: torch.dtype, inputs: int, bits: int, *, tokens: int = 1) -> None:
    triton_products.quantise(torch.empty(tokens, inputs, dtype=dtype, device="cuda"), bits)


def multiplied(
    tile: Tile | None = None, *, outputs: int = 4096, inputs: int = 11008, tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16, bias: bool = False,
) -> None:  # fmt: skip
    row_bytes = inputs // 4 + -(inputs // 4) % triton_products.ROW_BYTES
    x = QuantisedTokens(
        torch.empty(tokens, 4, row_bytes, dtype=torch.int8, device="cuda"),
        torch.empty(tokens, device="cuda"),
        torch.empty(tokens, dtype=torch.int32, device="cuda"),
        torch.Size([tokens]),
    )
    codes_OP = torch.empty(outputs, row_bytes, dtype=torch.uint8, device="cuda")
    scale_O = torch.empty(outputs, device="cuda")
    triton_products.product(x, codes_OP, scale_O, torch.empty_like(scale_O) if bias else None, dtype=dtype, tile=tile)


def variants(capability: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """All that differ for the compiler in more than a name; the first of a kernel is the usual one."""
    yield "forward KL, bf16", partial(loss_rows, topk_other_term(1.0), torch.bfloat16)
    yield "forward KL, fp16", partial(loss_rows, topk_other_term(1.0), torch.float16)
    yield "forward KL, fp32", partial(loss_rows, topk_other_term(1.0), torch.float32)
    yield "forward KL, bf16, no gradient", partial(loss_rows, topk_other_term(1.0), torch.bfloat16, gradient=False)
    yield "forward KL, bf16, 256 candidates", partial(loss_rows, topk_other_term(1.0), torch.bfloat16, k=256)
    yield f"forward KL, bf16, {UNALIGNED}", partial(loss_rows, topk_other_term(1.0), torch.bfloat16, vocabulary=50257)
    yield "reverse KL, bf16", partial(loss_rows, topk_other_term(1.6, REVERSE_KL), torch.bfloat16)
    yield "JSD, bf16", partial(loss_rows, topk_other_term(1.6, jensen_shannon(0.3)), torch.bfloat16)
    yield "tempered first, bf16", partial(loss_rows, tempered_term(1.6), torch.bfloat16)
    yield "tempered first, fp32", partial(loss_rows, tempered_term(1.6), torch.float32)
    for bits in (8, 4):
        for inputs in (576, 4096, 11008):
            yield f"fp32, A{bits}, {inputs} wide", partial(quantised, torch.float32, inputs, bits)
    yield "bf16, A8, 4096 wide", partial(quantised, torch.bfloat16, 4096, 8)
    matrices = capability >= 80
    for tokens, tiles in ((1, GEMV_TILES), (512, PREFILL_TILES if matrices else (DP4A_TILE,))):
        for tile in tiles:
            size = f"{tile.rows}x{tile.inner}" if tokens == 1 else f"{tile.tokens}x{tile.rows}x{tile.inner}"
            yield f"{size} with {tile.warps} warps, bf16", partial(multiplied, tile, tokens=tokens)
        yield "first tile, fp32, bias", partial(multiplied, tokens=tokens, dtype=torch.float32, bias=True)


def launches(capability: int) -> Iterator[Launch]:
    """What the code launches on a GPU of this compute capability (90 for 9.0)."""
    for name, run in variants(capability):
        yield from recorded(name, capability, run)


def recorded(name: str, capability: int, run: Callable[[], None]) -> list[Launch]:
    """`run` on fake tensors, with recorders in the place of the kernels."""
    found: list[Launch] = []
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda *_: divmod(capability, 10)))
        for module in (chunk_triton, triton_products):
            for attribute in NEEDED:
                if hasattr(module, attribute):
                    recorder = _Recorder(name, getattr(module, attribute), found)
                    stack.enter_context(patch.object(module, attribute, recorder))
        run()
    return found


@attrs.frozen(eq=False)
class _Recorder:
    """``kernel[grid](...)`` as a note of it."""

    variant: str
    kernel: Any
    found: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
            named = {name: named[name] for name in self.kernel.arg_names}
            self.found.append(Launch(self.variant, self.kernel, grid, named, num_warps))

        return launch


def figures_of(launch: Launch, capability: int) -> dict[str, Any]:
    """One row of the result: `launch` compiled. Raises what Triton raises where it doesn't compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Triton's, of its defaults to come
        compiled = triton.compile(
            launch.source(), target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.warps}
        )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _read("cuobjdump", "--dump-resource-usage", file.name)
        names = Counter(_INSTRUCTION.findall(_read("nvdisasm", file.name)))
    resources = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "kernel": launch.name,
        "variant": launch.variant,
        "capability": capability,
        "warps": launch.warps,
        "registers": resources["REG"],
        "stack_bytes": resources["STACK"] + resources["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        **{key: sum(n for name, n in names.items() if re.match(form, name)) for key, form in INSTRUCTIONS.items()},
        "instructions": names.total(),
    }


def _read(tool: str, *arguments: str) -> str:
    return subprocess.run([_BINARIES / tool, *arguments], check=True, capture_output=True, text=True).stdout


def faults_of(row: Mapping[str, Any]) -> list[str]:
    """Why a compiled kernel won't run there, or not at the speed that it is made for."""
    found = [f"no {name}" for name in NEEDED[row["kernel"]] if not row[name] and UNALIGNED not in row["variant"]]
    if row["spills"] or row["stack_bytes"]:
        found.append(f"spills: {row['spills']} instructions, {row['stack_bytes']} bytes")
    if row["shared_bytes"] > SHARED_BYTES[row["capability"]]:
        found.append(f"{row['shared_bytes']} bytes of shared memory: the chip has {SHARED_BYTES[row['capability']]}")
    if row["registers"] * row["warps"] * 32 > REGISTERS:
        found.append(f"{row['registers']} registers in each of {row['warps']} warps: the chip has {REGISTERS} in all")
    return [f"{row['kernel']}, {row['variant']}, sm_{row['capability']}: {fault}" for fault in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", type=int, nargs="+", choices=CAPABILITIES, default=list(CAPABILITIES))
    capabilities = parser.parse_args().capabilities
    rows = []
    for capability in capabilities:
        for launch in launches(capability):
            rows.append(figures_of(launch, capability))
            print(json.dumps(rows[-1]), flush=True)
    if tuple(capabilities) == CAPABILITIES:
        result = {"rows": rows, "versions": {name: version(name) for name in ("torch", "triton")}}
        write(RESULTS / "kernels.json", stamped("kernels", result))
    faults = [fault for row in rows for fault in faults_of(row)]
    print("\n".join(faults) or f"{len(rows)} kernels compiled, without a fault")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
