"""What a row asks, and what it answers: the shapes that people's data come in.

========================================================  =============================================
``messages``: ``[{"role", "content"}]``                   OpenAI, TRL; content parts of text are joined
``conversations``: ``[{"from", "value"}]``                ShareGPT; human and gpt are user and assistant
``prompt``, with ``completion``                           TRL; both may be lists of messages
``instruction``, with ``input`` and ``output``            Alpaca; ``context`` and ``response`` (Dolly)
``question``, with ``answer``                             and query, response, ...: `QUESTIONS`, `ANSWERS`
``text``                                                  plain
========================================================  =============================================

``system`` or ``system_prompt`` beside any of them comes first, then the turns of a ``history``. What a question is
about (``context``) is asked with it. ``[collect.columns]`` names columns of other names. Other columns are nobody's
concern, and of a message's other keys only those that make it no answer to learn: a call of a tool, a weight of 0.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet_providers.config import ColumnsConfig
from bitnet_providers.contract import Message, ProviderError

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "instruction", "question", "query", "input")
ANSWERS = ("completion", "response", "output", "answer")
SYSTEM = ("system", "system_prompt", "system_message")
TEXT, ID, FORMAT, HISTORY = "text", "id", "format", "history"
MORE: Mapping[str, tuple[str, ...]] = {"instruction": ("input", "context"), "question": ("context",)}
"""What is asked with a question, where it is there."""
BESIDE = frozenset((*SYSTEM, ID, FORMAT, HISTORY, "context"))
"""Columns that are read beside a question, an answer or a text, and make no row alone."""

ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
}  # fmt: skip
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "function_response", "tool_response")
ONLY_TEXT = "leave such rows out: a student reads text alone"
NO_TOOLS = "leave such rows out: a student learns no calls of tools"
TEXT_PARTS = (None, "text", "input_text", "output_text")
"""The types of a message's parts that are text."""
PICTURE = re.compile(r"\A<(image|video|audio)>|<(image|video|audio)>\Z")
"""Where a picture belongs (LLaVA): before a message's text or behind it."""
WHOLE_CHAT = re.compile(
    r"(### *(Assistant|Response|Answer):|<\|im_start\|> *assistant|<\|assistant\|>|<start_of_turn>model|"
    r"<\|start_header_id\|>assistant<\|end_header_id\|>|\[/INST\]|^Assistant:)",
    re.MULTILINE,
)
"""What an answer stands behind, in a text that is a whole chat."""

PROMPT_SHAPES = (
    'give "messages", "conversations", "prompt", "instruction", "question" or "text", or name yours in '
    "[collect.columns]"
)
TEXT_SHAPES = (
    'give "messages" or "conversations" that end with an answer, "prompt" and "completion", "instruction" and '
    '"output", "question" and "answer", or "text", or name yours in [collect.columns]'
)


def known_columns(columns: ColumnsConfig) -> frozenset[str]:
    """All columns that `prompt_of` and `text_of` may look at."""
    own = (columns.messages, columns.prompt, columns.response, columns.text, columns.id, columns.format)
    usual = (*CONVERSATIONS, *QUESTIONS, *ANSWERS, *SYSTEM, *sum(MORE.values(), ()), HISTORY, TEXT, ID, FORMAT)
    return frozenset(usual) | {each for each in own if each is not None}


def prompt_of(row: Any, columns: ColumnsConfig) -> tuple[Message, ...]:
    """The conversation to be answered; an answer at its end is left off. Raises ProviderError without the place."""
    if isinstance(row, str):
        return _user(row, "the line")
    record = _object(row, PROMPT_SHAPES)
    turns = _question(record, columns) if columns.prompt is not None else None
    turns = turns or _conversation(record, columns) or _question(record, columns) or _plain(record, columns)
    if turns is None:
        raise _nothing_in(record, columns, PROMPT_SHAPES)
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    messages = _checked(_with_system(record, turns))
    if not messages or messages[-1]["role"] != "user":
        raise ProviderError("nothing is asked: no user's turn stands at the end", 'end with a "user" message')
    return messages


def text_of(row: Any, columns: ColumnsConfig) -> tuple[str, tuple[Message, ...]]:
    """(text to score, the conversation that it answers: none for a plain text). Raises ProviderError as `prompt_of`."""
    if isinstance(row, str):
        return string(row, "the line"), ()
    record = _object(row, TEXT_SHAPES)
    named = columns.prompt is not None or columns.response is not None
    turns = (_answered(record, columns) if named else ()) or _conversation(record, columns) or ()
    turns = turns or _answered(record, columns)
    if columns.text is None and _ends_with_answer(turns):
        before, answer = _checked(_with_system(record, turns[:-1])), turns[-1]
        if not before:
            raise ProviderError(
                f"{answer['place']} answers nothing: no turn is before it", 'give a "user" message, or a "text"'
            )
        if answer.get("is_not_learned"):
            raise ProviderError(
                f"{answer['place']} is not to be learned: its weight is 0, or train is false", "take the row out"
            )
        return _checked([answer])[0]["content"], before
    text = record.get(columns.text or TEXT)
    if text is not None:
        before = () if _ends_with_answer(turns) else turns
        return string(text, columns.text or TEXT), _checked(_with_system(record, before)) if before else ()
    if turns:
        raise ProviderError("there is no answer at the end, and nothing else to score", TEXT_SHAPES)
    raise _nothing_in(record, columns, TEXT_SHAPES)


def id_of(row: Any, columns: ColumnsConfig) -> str | None:
    """The row's own id; None: it has none."""
    value = row.get(columns.id or ID) if isinstance(row, Mapping) else None
    if isinstance(value, float) and value.is_integer():  # a table's column of whole numbers with holes
        value = int(value)
    return str(value) if isinstance(value, int | str) and str(value).strip() else None


def format_of(row: Any, columns: ColumnsConfig) -> str | None:
    """What the answer should be, e.g. ``"json"``; a column of this name that holds something else is another thing."""
    value = row.get(columns.format) if isinstance(row, Mapping) else None
    return value if isinstance(value, str) and value.strip() else None


Turn = Mapping[str, Any]
"""``role`` and ``content`` as they were found, and its ``place`` in the row."""


def _conversation(record: Mapping[str, Any], columns: ColumnsConfig) -> tuple[Turn, ...] | None:
    names = CONVERSATIONS if columns.messages is None else (columns.messages,)
    name = next((each for each in names if record.get(each) not in (None, "", [])), None)
    return None if name is None else _turns(record[name], name)


def _question(record: Mapping[str, Any], columns: ColumnsConfig) -> tuple[Turn, ...] | None:
    """What is asked in words (or, as TRL has it, in messages)."""
    names = QUESTIONS if columns.prompt is None else (columns.prompt,)
    name = next((each for each in names if record.get(each) not in (None, "", [])), None)
    if name is None:
        return None
    if isinstance(record[name], list):
        return _turns(record[name], name)
    content = record[name]
    more = next((each for each in MORE.get(name, ()) if not _says_nothing(record.get(each))), None)
    if more == "context" and columns.prompt is not None:
        more = None
    if more is not None and isinstance(content, str):
        if not isinstance(record[more], str):
            without = f', or set collect.columns.prompt = "{name}", to ask without it' if more == "context" else ""
            raise ProviderError(f'"{more}" is {kind(record[more])}', f"write a string{without}")
        content = f"{content}\n\n{string(record[more], more)}"
    history = () if HISTORY in (name, *map(str, (columns.response, columns.text))) else _history(record, columns, name)
    return (*history, {"role": "user", "content": content, "place": name})


def _says_nothing(found: Any) -> bool:
    return found in (None, [], {}) or (isinstance(found, str) and not found.strip())


def _history(record: Mapping[str, Any], columns: ColumnsConfig, question: str) -> tuple[Turn, ...]:
    """The turns before the question: pairs of question and answer (LLaMA-Factory), or messages. What else is called so
    is not asked where the question's column is named."""
    found: Any = record.get(HISTORY)
    if _says_nothing(found):
        return ()
    pairs = isinstance(found, list) and all(isinstance(each, list) and len(each) == 2 for each in found)
    if not pairs and not (isinstance(found, list) and all(isinstance(each, Mapping) for each in found)):
        if columns.prompt is not None:
            return ()
        raise ProviderError(
            f'"{HISTORY}" is {kind(found)}, and no list of [question, answer] pairs',
            f'write one, or set collect.columns.prompt = "{question}", to ask without it',
        )
    if not pairs:
        return _turns(found, HISTORY)
    return tuple(
        {"role": role, "content": content, "place": f"{HISTORY}[{index}]"}
        for index, pair in enumerate(found)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    )


def _answered(record: Mapping[str, Any], columns: ColumnsConfig) -> tuple[Turn, ...]:
    """Question and answer, where both are there; nothing where the answer is not."""
    names = ANSWERS if columns.response is None else (columns.response,)
    name = next((each for each in names if record.get(each) is not None), None)
    question = None if name is None else _question(record, columns)
    if name is None or question is None:
        return ()
    if isinstance(record[name], list):
        return (*question, *_turns(record[name], name))
    return (*question, {"role": "assistant", "content": record[name], "place": name})


def _plain(record: Mapping[str, Any], columns: ColumnsConfig) -> tuple[Turn, ...] | None:
    name = columns.text or TEXT
    found = record.get(name)
    if found is None:
        return None
    if columns.text is None and isinstance(found, str) and _is_answered(found):
        raise ProviderError(
            f'"{name}" is a whole chat, with its answer',
            f'give the turns as "messages", or set collect.columns.text = "{name}", to ask it as it stands',
        )
    return ({"role": "user", "content": string(found, name), "place": name},)


def _is_answered(text: str) -> bool:
    """A whole chat, and not one that waits for its last answer."""
    marks = [each.end() for each in WHOLE_CHAT.finditer(text)]
    return bool(marks) and bool(text[marks[-1] :].strip())


def _turns(found: Any, name: str) -> tuple[Turn, ...]:
    """The turns of a list of messages, of such a list as JSON text (in a CSV), or of lists by key (in a dataset)."""
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            raise ProviderError(f'"{name}" is a string', "write a list of messages, as JSON") from None
    if isinstance(found, Mapping) and found and all(isinstance(each, list) for each in found.values()):
        found = [dict(zip(found, each, strict=False)) for each in zip(*found.values(), strict=False)]
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ProviderError(f'"{name}" is {kind(found)}', 'write a list of {"role", "content"} objects')
    turns = []
    for index, each in enumerate(found):
        place = f"{name}[{index}]"
        if not isinstance(each, Mapping):
            raise ProviderError(f"{place} is {kind(each)}", 'write {"role": "user", "content": "..."}')
        turns.append(_turn(each, place))
    return tuple(turns)


def _turn(message: Mapping[str, Any], place: str) -> Turn:
    role, content = (  # a table has all keys in all rows
        next((message[key] for key in keys if message.get(key) is not None), None)
        for keys in (("role", "from"), ("content", "value"))
    )
    if not isinstance(role, str) or role.lower() not in ROLES:
        is_tool = isinstance(role, str) and role.lower() in TOOL_ROLES
        raise ProviderError(
            f"{place}: its role is {json.dumps(role, default=str)}",
            NO_TOOLS if is_tool else "write one of system, user, assistant",
        )
    return {
        "role": ROLES[role.lower()],
        "content": content,
        "place": place,
        "calls": any(map(_is_call, (message.get("tool_calls"), message.get("function_call")))),
        "is_not_learned": message.get("weight") == 0 or message.get("train") is False,
    }


def _is_call(found: Any) -> bool:
    """A table has the key in all rows: empty ones, and objects of nulls, call nothing."""
    if isinstance(found, Mapping):
        return any(map(_is_call, found.values()))
    return bool(found) and found not in ("[]", "{}", "null", "None")


def _with_system(record: Mapping[str, Any], turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """A system turn that says nothing is none."""
    kept = [each for each in turns if each["role"] != "system" or each["content"] not in (None, "", [])]
    name = next((each for each in SYSTEM if isinstance(record.get(each), str) and record[each].strip()), None)
    if name is None or (kept and kept[0]["role"] == "system"):
        return tuple(kept)
    return ({"role": "system", "content": record[name], "place": name}, *kept)


def _checked(turns: Sequence[Turn]) -> tuple[Message, ...]:
    for each in turns:
        if each.get("calls"):
            raise ProviderError(f"{each['place']} calls a tool", NO_TOOLS)
    return tuple({"role": each["role"], "content": string(_content(each["content"]), each["place"])} for each in turns)


def _content(content: Any) -> Any:
    """Parts of text as one text, a line each; a picture is refused."""
    if isinstance(content, list) and content:
        parts = [
            (each.get("text") if each.get("type") in TEXT_PARTS else None) if isinstance(each, Mapping) else each
            for each in content
        ]
        content = "\n".join(each for each in parts if isinstance(each, str))
        if not all(isinstance(each, str) for each in parts):
            raise ProviderError("a message has a part that is no text", ONLY_TEXT)
    if isinstance(content, str) and PICTURE.search(content):
        raise ProviderError("a message has a picture, sound or film", ONLY_TEXT)
    return content


def _user(text: str, place: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": string(text, place)},)


def _ends_with_answer(turns: Sequence[Turn]) -> bool:
    return bool(turns) and turns[-1]["role"] == "assistant"


def _object(row: Any, shapes: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ProviderError(f"expected an object, got {kind(row)}", shapes)
    return {name: None if isinstance(each, float) and math.isnan(each) else each for name, each in row.items()}


def _nothing_in(record: Mapping[str, Any], columns: ColumnsConfig, shapes: str) -> ProviderError:
    ours = known_columns(columns) - BESIDE - {columns.id, columns.format}
    for name in record:
        if name in ours:
            if record[name] not in (None, "", []):
                return ProviderError(f'"{name}" stands alone: there is no answer to score', shapes)
            return ProviderError(f'"{name}" is {kind(record[name])}', "fill it, or take the row out")
    return ProviderError(f"no column that is read; it has {_names(record)}", shapes)


def _names(record: Mapping[str, Any]) -> str:
    names = [str(each)[:40] for each in record]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no column"


def string(value: Any, place: str) -> str:
    """`value`, a text with something in it. Raises ProviderError without the row's place."""
    if not isinstance(value, str):
        raise ProviderError(f'"{place}" is {kind(value)}', "write a string")
    if not value.strip():
        raise ProviderError(f'"{place}" is empty', "fill it, or take the row out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProviderError(f'"{place}" holds half a surrogate pair', "write whole characters") from None
    return value


def kind(value: object) -> str:
    """The value's JSON type, for people."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", dict: "an object"}
    if value is None:
        return "null"
    if value == "":
        return "empty"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return names.get(type(value), type(value).__name__)
