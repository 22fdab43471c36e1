"""The packed export: transformers' Auto classes open it once bitnet-core is imported, at A8 or A4 as it was trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_core.config.export import PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.load_student import Student
from bitnet_core.export.readme import packed_card
from bitnet_core.export.write_weights import write_weights
from bitnet_core.files import write_text
from bitnet_core.hookspecs import Exporter
from bitnet_core.model.start_student import llama_shaped

TARGET = "packed"


def packed_exporter(_: PackedOptions) -> Exporter:
    """Writes a folder with two bits a weight, for the packed runtime; for `bitnet_core.export.folder.export`.

    Llama-shaped students alone; another is refused when it is written: CoreError.
    """
    return Exporter(targets=(TARGET,), write=write_packed)


def write_packed(student: Student, out: Path) -> Mapping[str, Any]:
    """The folder ``packed``: codes of two bits and of 8, float16 scales, everything else as in the snapped student."""
    config = llama_shaped(student.model, "the packed export").config
    if not config.quantise_weights:
        raise CoreError("the packed export is for ternary weights, and this student has none", "export it with hf")
    folder = out / TARGET
    folder.mkdir()
    config.save_pretrained(folder)
    if student.model.generation_config is not None:
        student.model.generation_config.save_pretrained(folder)
    write_weights(folder, student.model.state_dict(), tied_head=bool(config.tie_word_embeddings), halve=True)
    student.copy_tokenizer(folder)
    write_text(folder / "README.md", packed_card(student))
    return {TARGET: {"activation_bits": config.activation_bits}}
