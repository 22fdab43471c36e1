"""The ``gguf`` export: one file for each type, and a Modelfile for Ollama beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError
from bitnet_core.export.config import GGUFOptions, GGUFType
from bitnet_core.export.gguf.modelfile import modelfile
from bitnet_core.export.gguf.vocabulary import vocabulary_of
from bitnet_core.export.gguf.widths import padded_widths
from bitnet_core.export.gguf.write import write_gguf
from bitnet_core.export.student import Student
from bitnet_core.files import write_text
from bitnet_core.hookspecs import Exporter

TERNARY_TYPES = ("tq2_0", "tq1_0")


def file_name(type_: GGUFType) -> str:
    return f"student-{type_}.gguf"


def gguf_exporter(options: GGUFOptions) -> Exporter:
    def write(student: Student, out: Path) -> Mapping[str, Any]:
        return write_files(student, options, out)

    return Exporter(targets=(*(file_name(type_) for type_ in options.types), "Modelfile"), write=write)


def write_files(student: Student, options: GGUFOptions, out: Path) -> Mapping[str, Any]:
    """Write the files of all types. Raises CoreError for a student or tokenizer that the format can't hold."""
    config = student.model.config
    if not config.quantise_weights and set(options.types) & set(TERNARY_TYPES):
        raise CoreError(
            "gguf: tq2_0 and tq1_0 hold ternary weights, and this student has none (student.quantise_weights = false); "
            'set types = ["f16"] under [export.gguf]'
        )
    widths = padded_widths(config)
    vocabulary = vocabulary_of(student.tokenizer, config.vocab_size)
    figures: dict[str, Any] = {}
    for type_ in options.types:
        write_gguf(out / file_name(type_), student, type_, options.embeddings, widths, vocabulary)
        figures[file_name(type_)] = {"activation_bits": 8 if type_ in TERNARY_TYPES else 16}
        if (widths.hidden, widths.inner) != (config.hidden_size, config.intermediate_size):
            figures[file_name(type_)]["padded"] = (
                f"hidden {config.hidden_size} → {widths.hidden}, FFN {config.intermediate_size} → {widths.inner}, "
                f"heads {config.num_attention_heads} → {widths.heads}, "
                f"key/value heads {config.num_key_value_heads} → {widths.kv_heads}"
            )
        if vocabulary.notes:
            figures[file_name(type_)]["notes"] = list(vocabulary.notes)
    write_text(out / "Modelfile", modelfile(student, file_name(options.types[0])))
    return figures
