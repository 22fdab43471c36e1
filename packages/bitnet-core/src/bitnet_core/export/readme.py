"""README.md of the exported folders: how to open them, what they hold, the run's figures, the teacher's terms."""

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_core.errors import printable
from bitnet_core.export.load_student import Student

_FIGURES = (
    ("KL to the teacher, nats a token", "kl", "heldout_kl"),
    ("top-1 agreement with the teacher", "top1_agreement", "top1_agreement"),
    ("perplexity", "perplexity", "perplexity"),
)


def hf_card(student: Student, bits: int) -> str:
    """README.md of the ``hf`` folder, which computes with activations of so many bits."""
    a8 = bits != 16
    needs = "pip install transformers accelerate" if a8 else "pip install transformers"
    lines = [
        *_head(student),
        "",
        "## Open it",
        "",
        "```sh",
        needs,
        "```",
        "",
        *_snippet(imports=""),
        "",
    ]
    if a8:
        lines += [
            "Weights are ternary codes times one scale per output row, stored dense in float32 (keep that dtype);",
            "activations are quantised to 8 bits per token by transformers' own BitNet layers (`AutoBitLinear`).",
            "",
            "Those layers are compiled by torch at their first call, for which a machine needs a C++ compiler. Without",
            "one, or to skip the wait, set `TORCHDYNAMO_DISABLE=1` in the environment: the same numbers, not compiled.",
        ]
    else:
        lines.append("Weights are stored dense; activations are not quantised.")
    return "\n".join([*lines, "", *_about(student, bits)]) + "\n"


def packed_card(student: Student) -> str:
    """README.md of the ``packed`` folder."""
    bits = student.model.config.activation_bits
    return (
        "\n".join(
            [
                *_head(student),
                "",
                "## Open it",
                "",
                "```sh",
                "pip install bitnet-core",
                "```",
                "",
                *_snippet(imports="import bitnet_core.model  # registers the architecture with transformers\n"),
                "",
                f"Two bits a weight and one float16 scale per output row. Activations run at {_bits_words(bits)};",
                "`model.set_activation_bits(8)` or `(4)` changes that.",
                "",
                *_about(student, bits),
            ]
        )
        + "\n"
    )


def _head(student: Student) -> Iterator[str]:
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- bitnet")
    yield from ("- 1.58-bit", "- distillation", "---", "")
    yield f"# {student.facts.get('name') or 'A 1.58-bit student'}"
    yield ""
    teacher = printable(str(student.facts.get("teacher") or ""))
    yield f"A ternary language model, distilled{f' from {teacher}' if teacher else ''} with BitNet KDE."


def _snippet(imports: str) -> Iterator[str]:
    yield from ("```python", f"{imports}from transformers import AutoModelForCausalLM, AutoTokenizer", "")
    yield from ('folder = "."  # this folder', "tokenizer = AutoTokenizer.from_pretrained(folder)")
    yield "model = AutoModelForCausalLM.from_pretrained(folder)"
    yield 'messages = [{"role": "user", "content": "Hello!"}]'
    yield "inputs = tokenizer.apply_chat_template("
    yield '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
    yield ")"
    yield "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"
    yield "```"


def _about(student: Student, bits: int) -> Iterator[str]:
    yield from ("## Figures", "")
    yield from _figures(student.facts.get("evaluation") or {}, bits)
    config = student.model.config
    yield from ("", "## Shape", "")
    inner, groups = getattr(config, "intermediate_size", None), getattr(config, "num_key_value_heads", None)
    yield (
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, {f'FFN {inner}, ' if inner else ''}"
        f"{config.num_attention_heads} heads{f' over {groups}' if groups else ''}, {config.vocab_size} tokens"
        f"{', SubLN' if getattr(config, 'sublayer_norm', False) else ''}; checkpoint `{student.checkpoint.name}`."
    )
    yield from ("", "## Terms of use", "")
    teacher = student.facts.get("teacher")
    yield f"This model learned from what {teacher or 'its teacher'} said. Before you use or share it, read the terms of"
    yield "that model and of the service that served it: some forbid training other models on their output, some ask"
    yield "for their name or licence to be carried on. No licence is stated here because it is yours to settle."


def _figures(evaluation: Mapping[str, Any], bits: int) -> Iterator[str]:
    """The measured figures at this export's activation bits first; nothing is made up where nothing was measured."""
    trained = evaluation.get("activation_bits")
    columns = {}
    if evaluation.get("heldout_at_8_bits"):
        columns[8] = {key: (evaluation["heldout_at_8_bits"] or {}).get(key) for _, key, _ in _FIGURES}
    if trained is not None:
        columns[trained] = {key: evaluation.get(name) for _, key, name in _FIGURES}
    ordered = sorted(columns, key=lambda each: (each != bits, each))
    if not ordered:
        yield "Not measured: the run has no evaluation of this checkpoint."
        return
    where = evaluation.get("split", "held-out")
    yield f"| {where}, fake quantisation in torch | {' | '.join(_bits_words(each) for each in ordered)} |"
    yield f"|---|{'---|' * len(ordered)}"
    for label, key, _ in _FIGURES:
        yield f"| {label} | {' | '.join(_number(columns[each].get(key)) for each in ordered)} |"
    if bits in columns:
        yield from ("", f"This folder runs {_bits_words(bits)}: the first column is its own.")


def _bits_words(bits: int) -> str:
    return {16: "full-precision activations", 8: "A8 (8-bit activations)", 4: "A4 (4-bit activations)"}.get(
        bits, f"A{bits}"
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"
