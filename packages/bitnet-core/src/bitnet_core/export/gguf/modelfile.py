"""A Modelfile: ``ollama create my-student -f Modelfile`` in the exports' folder makes the GGUF file a model of Ollama.

Ollama's templates are Go's, the tokenizer's is Jinja. The Modelfile gets what a chat is made of (what stands before and
after each role's words), found by rendering one, and only if a whole conversation put together from it is the same.
"""

from typing import Any

import attrs

from bitnet_core.export.load_student import Student

_SYSTEM, _USER, _ANSWER, _LAST = "⟦system⟧", "⟦user⟧", "⟦answer⟧", "⟦last⟧"


@attrs.frozen
class ChatPieces:
    """What stands around the words of a conversation."""

    default_system: str
    """What opens a chat that has no system message."""
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    """What asks for the answer."""

    def render(self, messages: list[dict[str, str]]) -> str:
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        opening = "" if messages[0]["role"] == "system" else self.default_system
        said = "".join(around[each["role"]][0] + each["content"] + around[each["role"]][1] for each in messages)
        return opening + said + self.generation


def modelfile(student: Student, gguf: str) -> str:
    lines = [
        "# ollama create my-student -f Modelfile && ollama run my-student",
        f"FROM ./{gguf}",
        f"PARAMETER num_ctx {min(student.model.config.max_position_embeddings, 4096)}",
    ]
    lines += [f"PARAMETER stop {_quoted(student.tokenizer.decode([end]))}" for end in student.ends]
    clockless = "strftime_now" in (student.chat_template or "")
    pieces = chat_pieces(student.tokenizer, student.chat_template, clockless) if student.chat_template else None
    if clockless:
        lines.append("# The chat template asks for today's date, which a Modelfile has no word for: llama.cpp says it.")
    if pieces is not None:
        lines.append(f'TEMPLATE """{_go_template(pieces)}"""')
    elif student.chat_template:
        lines.append("# The chat template is in the GGUF file; it has no simple form that could be written here.")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else f'"""{text}"""'


def chat_pieces(tokenizer: Any, template: str | None = None, clockless: bool = False) -> ChatPieces | None:
    """The pieces of a chat template; None where a conversation isn't simply put together from such.

    `template`: by default the tokenizer's own. `clockless`: what the template says where there is no ``strftime_now``;
    today's date would stay for ever.
    """
    template = template or tokenizer.chat_template
    if clockless:
        template = template.replace("strftime_now", "strftime_never")  # a name that nothing defines
    asked = [{"role": "user", "content": _USER}]
    whole = [
        {"role": "system", "content": _SYSTEM}, *asked, {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _LAST},
    ]  # fmt: skip
    try:
        plain, full = (
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=template)
            for messages in (whole[1:], whole)
        )
        closed = tokenizer.apply_chat_template(whole, tokenize=False, chat_template=template)
        pieces = _cut(plain, full, closed)
    # A template may refuse a role, and Jinja raises what it likes.
    except Exception:
        return None
    if pieces is None or pieces.render(whole) != full or pieces.render(whole[1:]) != plain:
        return None
    texts = (pieces.default_system, *pieces.system, *pieces.user, *pieces.assistant, pieces.generation)
    return None if any("{{" in text or '"""' in text for text in texts) else pieces


def _cut(plain: str, full: str, closed: str) -> ChatPieces | None:
    if not full.startswith(closed):
        return None
    generation = full[len(closed) :]
    user_end = closed[closed.index(_LAST) + len(_LAST) :]
    between = full[full.index(_USER) + len(_USER) : full.index(_ANSWER)]
    after_answer = full[full.index(_ANSWER) + len(_ANSWER) : full.index(_LAST)]
    after_system = full[full.index(_SYSTEM) + len(_SYSTEM) : full.index(_USER)]
    # Most templates close every turn alike; else whatever stands before each user's words is the turn's beginning.
    closed_alike = after_answer.startswith(user_end)
    before_user = after_answer[len(user_end) :] if closed_alike else _common_end(after_system, after_answer)
    return ChatPieces(
        default_system=plain[: plain.index(_USER)].removesuffix(before_user),
        system=(full[: full.index(_SYSTEM)], after_system.removesuffix(before_user)),
        user=(before_user, user_end),
        assistant=(between.removeprefix(user_end), after_answer.removesuffix(before_user)),
        generation=generation,
    )


def _common_end(*texts: str) -> str:
    """The longest text that all end with."""
    shortest = min(texts, key=len)
    for cut in range(len(shortest) + 1):
        end = shortest[cut:]
        if all(text.endswith(end) for text in texts):
            return end
    return ""


def _go_template(pieces: ChatPieces) -> str:
    turns = "{{ range .Messages }}"
    for number, (role, (before, after)) in enumerate(
        (("system", pieces.system), ("user", pieces.user), ("assistant", pieces.assistant))
    ):
        word = "if" if number == 0 else "else if"
        turns += f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
    opening = f"{{{{ if not .System }}}}{pieces.default_system}{{{{ end }}}}" if pieces.default_system else ""
    return f"{opening}{turns}{{{{ end }}}}{{{{ end }}}}{pieces.generation}"
