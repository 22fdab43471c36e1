"""What a model thinks before it answers, where a server leaves it in the text: found, and left out."""

import re
from collections import Counter

from bitnet_providers.teachers.common.token_bytes import Token, all_given_bytes, answer_tokens, encoded

THOUGHT_IN_PROMPT = "thought_in_prompt"
"""Repair: the answer began within thoughts, as the template writes their first tag. Where some answers of a teacher do,
one that was cut before the thoughts' end is thoughts alone."""
_XML = r"(?i:(?:\w+[:_])?think(?:ing)?)"
_TAGS = (
    (rf"<{_XML}>", rf"</{_XML}>"),  # most; seed:think, longcat_think
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"),  # Command
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?"),  # OpenThinker
)
_TAGS_IN_PAIRS = (  # where one of them alone may be anything
    (r"<(thoughts?|reasoning)>", r"</\1>"),
    (r"<\|channel\|>analysis<\|message\|>", r"(?:<\|end\|>|<\|start\|>assistant|<\|channel\|>final<\|message\|>)+"),
    (r"analysis(?=.*?assistantfinal)", r"assistantfinal"),  # gpt-oss without its special tokens
)
_THOUGHTS = (rf"{begin}.*?(?:{end}|\Z)\s*" for begin, end in (*_TAGS, *_TAGS_IN_PAIRS))
_THOUGHT = re.compile(rf"\s*(?:{'|'.join(_THOUGHTS)})+", re.DOTALL)
"""What a model thinks before its answer, where the server leaves it in the text; without an end: cut off in there."""
_THOUGHT_BEGINS = re.compile("|".join(begin for begin, _ in _TAGS))
_THOUGHT_ENDS = re.compile(rf"(?<![`\"'])(?:{'|'.join(end for _, end in _TAGS)})\s*")
"""Not where a text speaks of the tag."""


def without_thought(content: str, thought: bool, tokens: list[Token], repairs: Counter[str]) -> tuple[str, list[Token]]:
    """The answer alone with the tokens that spell it; servers give the log-probabilities of thoughts, too."""
    inline = _THOUGHT.match(content)
    if inline is None:
        inline = _THOUGHT_ENDS.search(content)
        if inline is not None and _THOUGHT_BEGINS.search(content, 0, inline.start()):
            inline = None
        # The template has written the first tag: it stands in the prompt.
        repairs[THOUGHT_IN_PROMPT] += inline is not None
    if inline is None and not thought:
        return content, tokens
    answer = content if inline is None else content[inline.end() :]
    repairs["reasoning_dropped"] += 1
    kept = answer_tokens(tokens, answer)
    if kept is None and tokens and answer:
        repairs["tokens_unproved"] += len(tokens)
    return answer, kept or []


def with_thought(content: str, tokens: list[Token]) -> str:
    """The thoughts that the server set apart with their tags, as the tokens tell them, and the text."""
    raws = all_given_bytes(tokens)
    if not content or None in raws:
        return content
    spoken = b"".join(raw or b"" for raw in raws)
    place = spoken.rfind(encoded(content))
    return content if place < 0 else spoken[:place].decode("utf-8", "replace") + content
