"""What a student takes where it is deployed, against the student's own files and caches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.deployed_sizes import CONTEXTS, deployed, gguf_forms, packed_form
from bitnet_core.dry_run.formulas import decode_bytes, prefill_bytes
from bitnet_core.export.gguf import write
from bitnet_core.export.gguf.tensors import student_tensors
from bitnet_core.export.gguf.widths import BLOCK, BLOCKS, padded_widths
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.init_from import build_student
from bitnet_core.runtime.packed.cpu import CpuEngine
from bitnet_core.runtime.packed.load_weights import packed_weights
from bitnet_core.ternary.model_bytes import packed_bytes

SIZES: Any = {
    "vocab_size": 300, "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "context": 32,
}  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4},
]


class Writer:
    """Takes what the export hands to gguf's writer, and keeps its size."""

    size = 0

    def add_tensor(self, _: str, stored: Any, **__: Any) -> None:
        self.size += stored.nbytes


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_weights_are_what_the_exports_write(other: dict[str, Any]) -> None:
    config = DryRunConfig(**SIZES | other)
    student = snapped(build_student(config.student(), None, config.vocab_size))
    assert packed_form(config).weights == packed_bytes(student)
    forms = {form.name.removeprefix("gguf "): form for form in gguf_forms(config)}
    assert forms.keys() == set(write.TERNARY_TYPES)
    for type_ in write.TERNARY_TYPES:
        writer, widths = Writer(), padded_widths(student.config, BLOCKS.get(type_, BLOCK))
        for tensor in student_tensors(student, widths):
            write._add_tensor(writer, tensor, type_)
        assert forms[type_].weights == writer.size
        keys = widths.kv_heads * config.hidden_size // config.num_attention_heads
        assert forms[type_].cache_a_position == config.num_hidden_layers * 2 * keys * 2, "keys and values, float16"


def test_the_packed_runtime_holds_what_is_said(tmp_path: Path) -> None:
    config = DryRunConfig(**SIZES)
    build_student(config.student(), None, config.vocab_size).save_pretrained(tmp_path)
    weights = packed_weights(tmp_path)
    engine = CpuEngine(weights, context=config.context)
    held = [tensor for tensor in engine._kept if isinstance(tensor, torch.Tensor)]
    caches = [tensor for tensor in held if tensor.dtype == torch.float32 and tensor.dim() > 2]
    head = [tensor for tensor in held if tensor.shape[0] == config.vocab_size]
    form = packed_form(config)
    assert sum(tensor.nbytes for tensor in caches) == form.cache_a_position * config.context
    assert sum(tensor.nbytes for tensor in head) == form.beside


def test_a_row_a_form_and_a_total_a_context() -> None:
    config = DryRunConfig(batch_size=2, context=4096)
    rows = {row["form"]: row for row in deployed(config, 2)}
    assert list(rows) == ["checkpoint", "packed", "gguf tq2_0", "gguf q2_0", "gguf tq1_0"]
    for row in rows.values():
        assert [each["context"] for each in row["contexts"]] == sorted({4096, *CONTEXTS})
    trained = {each["context"]: each["total_bytes"] for each in rows["checkpoint"]["contexts"]}
    assert trained[4096] == max(prefill_bytes(config, 2), decode_bytes(config, 2))
    q2_0 = rows["gguf q2_0"]
    totals = {each["context"]: each["total_bytes"] for each in q2_0["contexts"]}
    # by hand: 2.25 bits a ternary weight, 8.5 of both tables, float32 norms; float16 keys and values of 2 sequences
    by_hand = (4 * 4096**2 + 3 * 4096 * 11008) * 32 * 2.25 / 8 + 2 * 32000 * 4096 * 8.5 / 8 + 65 * 4096 * 4
    assert q2_0["weights_bytes"] == by_hand
    assert totals[8192] - by_hand == 2 * 8192 * 32 * 2 * 4096 * 2
    assert q2_0["fits_gb"] == [size for size in (8, 16, 24, 80, 141) if totals[4096] <= 0.95e9 * size]
