"""The ``gguf`` export: a file for each type that holds the snapped student bit for bit, and a Modelfile beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_core.config.export import GGUFOptions, GGUFType
from bitnet_core.errors import CoreError
from bitnet_core.export.gguf.compare_tokens import compared
from bitnet_core.export.gguf.modelfile import modelfile
from bitnet_core.export.gguf.rope import rope_of
from bitnet_core.export.gguf.tensors import GGUFTensor, student_tensors
from bitnet_core.export.gguf.vocabulary import Vocabulary, vocabulary_of
from bitnet_core.export.gguf.widths import BLOCK, BLOCKS, Widths, padded_widths
from bitnet_core.export.load_student import Student
from bitnet_core.export.published_architecture import architecture_of, head_width
from bitnet_core.files import write_text
from bitnet_core.hookspecs import Exporter
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.start_student import llama_shaped
from bitnet_core.ternary.packed_table import BLOCK as TABLE_BLOCK


def write_gguf(file: Path, student: Student, type_: GGUFType, widths: Widths, vocabulary: Vocabulary) -> None:
    """Write `file`. Raises CoreError where a stored tensor is not exactly the student's."""
    from gguf import GGUFWriter

    model = llama_shaped(student.model, file.name)
    writer = GGUFWriter(file, architecture_of(model.config))
    try:
        writer.add_name(str(student.facts.get("name") or "BitNet KDE student"))
        _add_shape(writer, model, type_, widths)
        vocabulary.add_to(writer, student.chat_template)
        _add_ends(writer, student.ends)
        for tensor in student_tensors(model, widths):
            _add_tensor(writer, tensor, type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_tensor(writer: Any, tensor: GGUFTensor, type_: GGUFType) -> None:
    from gguf import GGMLQuantizationType, quants

    from bitnet_core.export.gguf import q2_0

    name = _type_name(tensor, type_)
    if name == "q2_0":
        stored = q2_0.quantize(tensor.values)
        back = q2_0.dequantize(stored)
    else:
        kind = GGMLQuantizationType[name.upper()]
        stored = quants.quantize(tensor.values, kind)
        back = quants.dequantize(stored, kind)
    if not np.array_equal(back, tensor.values):
        raise CoreError(
            f"gguf: {tensor.name} does not come back exactly from {name}, which is a fault of the export", "report it"
        )
    if name == "q2_0":
        q2_0.add_tensor(writer, tensor.name, stored)
    else:
        writer.add_tensor(tensor.name, stored, raw_dtype=kind)


def _type_name(tensor: GGUFTensor, type_: GGUFType) -> str:
    if tensor.role == "vector" or type_ == "f32":
        return "f32"
    if tensor.role == "ternary":
        return type_
    # A file for checks runs no 8-bit products; and float16 doesn't hold 8 bits times a scale.
    return "q8_0" if type_ in TERNARY_TYPES and tensor.values.shape[1] % TABLE_BLOCK == 0 else "f32"


def _add_shape(writer: Any, model: BitNetKDEForCausalLM, type_: GGUFType, widths: Widths) -> None:
    from gguf import LlamaFileType

    from bitnet_core.export.gguf.q2_0 import MOSTLY_Q2_0

    config = model.config
    file_types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "tq1_0": LlamaFileType.MOSTLY_TQ1_0,
        "tq2_0": LlamaFileType.MOSTLY_TQ2_0,
        "q2_0": MOSTLY_Q2_0,
    }
    writer.add_file_type(file_types[type_])
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(widths.hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(widths.inner)
    writer.add_head_count(widths.heads)
    writer.add_head_count_kv(widths.kv_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_rope_dimension_count(head_width(config))
    rope_of(model, architecture_of(config)).add_to(writer)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps * widths.shrink)


def _add_ends(writer: Any, ends: Sequence[int]) -> None:
    """llama.cpp stops at the end of sequence, at ``eot`` and at ``eom``, Ollama's own engine at a list."""
    others = ends[1:] if len(ends) > 1 else ()
    for add, id_ in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add(id_)
    if ends:
        writer.add_array("tokenizer.ggml.eos_token_ids", list(ends))


LLAMA_CPP_ENDS = 3
"""End tokens that llama.cpp reads from a file."""
TERNARY_TYPES: tuple[GGUFType, ...] = ("tq2_0", "q2_0", "tq1_0")
"""The quickest on an x86 CPU first."""


def file_name(type_: GGUFType) -> str:
    return f"student-{type_}.gguf"


def gguf_exporter(options: GGUFOptions) -> Exporter:
    """Writes a GGUF file of each of `options.types`, and a Modelfile; for `bitnet_core.export.folder.export`.

    A student that GGUF can't hold (another architecture) is refused when it is written: CoreError.
    """

    def write(student: Student, out: Path) -> Mapping[str, Any]:
        return write_files(student, options, out)

    return Exporter(targets=(*(file_name(type_) for type_ in options.types), "Modelfile"), write=write)


def write_files(student: Student, options: GGUFOptions, out: Path) -> Mapping[str, Any]:
    """Write the files of all types. Raises CoreError for a student or tokenizer that the format can't hold."""
    model = llama_shaped(student.model, "a GGUF file")
    config = model.config
    if not config.quantise_weights and set(options.types) & set(TERNARY_TYPES):
        raise CoreError(
            f"gguf: {', '.join(TERNARY_TYPES)} hold ternary weights, and this student has none "
            "(student.quantise_weights = false)",
            'set types = ["f16"] under [export.gguf]',
        )
    widths_of = [padded_widths(config, BLOCKS.get(type_, BLOCK)) for type_ in options.types]
    rope = rope_of(model, architecture_of(config))
    vocabulary = vocabulary_of(student.tokenizer, config.vocab_size)
    vocabulary = compared(student.tokenizer, vocabulary)
    figures: dict[str, Any] = {}
    for type_, widths in zip(options.types, widths_of, strict=True):
        write_gguf(out / file_name(type_), student, type_, widths, vocabulary)
        figures[file_name(type_)] = {"activation_bits": 8 if type_ in TERNARY_TYPES else 16}
        if (widths.hidden, widths.inner) != (config.hidden_size, config.intermediate_size):
            figures[file_name(type_)]["padded"] = (
                f"hidden {config.hidden_size} → {widths.hidden}, FFN {config.intermediate_size} → {widths.inner}, "
                f"heads {config.num_attention_heads} → {widths.heads}, "
                f"key/value heads {config.num_key_value_heads} → {widths.kv_heads}"
            )
        if notes := [*vocabulary.notes, *rope.notes, *_notes_on_ends(student)]:
            figures[file_name(type_)]["notes"] = notes
    write_text(out / "Modelfile", modelfile(student, file_name(options.types[0])))
    return figures


def _notes_on_ends(student: Student) -> list[str]:
    if not (left_out := student.ends[LLAMA_CPP_ENDS:]):
        return []
    names = ", ".join(student.tokenizer.decode([id_]) for id_ in left_out)
    return [f"llama.cpp reads three end tokens; these end an answer by the Modelfile's stop lines only: {names}"]
