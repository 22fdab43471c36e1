"""The text in the student's tokens, with the byte at which each begins; and what each id of its tokenizer is.

S response tokens, V vocabulary. The student reads prompt and response as one text, as it will when it generates. Bytes
are counted within the response, from 0; a space that the tokenizer puts in front of it (SentencePiece) is byte -1. A
character that the tokenizer has no token for is told of (`unknown_note`).
"""

import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bitnet_core.config.project import ProjectConfig
from bitnet_core.projection.chat_template import ChatTemplate
from bitnet_core.projection.structure_tokens import is_struct_token
from bitnet_core.projection.teacher_text import UNKNOWN
from bitnet_core.traces.tokenizer import (
    Identity,
    end_ids,
    id_to_bytes,
    load_tokenizer,
    special_ids,
    turn_end,
    unknown_id,
)


@attrs.frozen(eq=False)
class Vocabulary:
    """What the projection needs to know of each id of the student's tokenizer."""

    sha256: str
    size: int
    """V: ids that the traces may hold (the teacher's output width where it is larger than the tokenizer)."""
    bytes: pa.Array
    """binary [V]"""
    is_struct: NDArray[np.bool_]
    """[V]"""
    is_special: NDArray[np.bool_]
    """[V]"""
    cutting_sha256: str | None = None
    """How the tokenizer cuts text; see `bitnet_core.traces.tokenizer.cutting_sha256`."""
    unknown_id: int | None = None
    """What stands for a character that the tokenizer has no token for, where it is nothing else."""


def load_vocabulary(tokenizer: Any, identity: Identity, width: int, ends: Collection[int] = ()) -> Vocabulary:
    """The student's tokenizer as arrays over V = `width`; `ends`: its ids that end a turn.

    Raises CoreError where its tokens' bytes can't be told.
    """
    table = id_to_bytes(tokenizer, width)
    special = special_ids(tokenizer)
    is_special = np.zeros(width, dtype=bool)
    is_special[special] = True
    unknown = unknown_id(tokenizer)
    return Vocabulary(
        sha256=identity.ids,
        size=width,
        bytes=pa.array(table, pa.binary()),
        is_struct=is_struct_token(table, special),
        is_special=is_special,
        cutting_sha256=identity.cutting,
        unknown_id=None if unknown in ends else unknown,
    )


@attrs.frozen(eq=False)
class StudentText:
    """One completion in the student's tokens."""

    prompt_ids: NDArray[np.int32]
    ids: NDArray[np.int32]
    """[S]"""
    starts: NDArray[np.int64]
    """[S] byte of the response at which a token begins; `UNKNOWN` where a normaliser hides it."""
    ends: NDArray[np.int64]
    """[S]"""
    is_unknown: NDArray[np.bool_]
    """[S] The tokenizer has no tokens for a character of it: what stands here (``<unk>``, or less than the character)
    is not what the teacher said."""
    boundary_forced: bool
    """The whole text has a token across the prompt's end: both sides were tokenised by themselves."""

    @property
    def has_prefix(self) -> bool:
        """A prefix space stands before the response."""
        return len(self.starts) > 0 and bool(self.starts[0] == -1)


class Student:
    """The student's tokenizer as the projection uses it."""

    def __init__(self, folder: Path, chat_template: str | None = None) -> None:
        """`chat_template`: Jinja text that takes the place of the tokenizer's own. Raises CoreError."""
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self.template = ChatTemplate(self._tokenizer, folder, chat_template)
        self.bytes_by_id = id_to_bytes(self._tokenizer)
        self._lengths_V = np.array([len(each) for each in self.bytes_by_id], dtype=np.int64)
        serialised = self._tokenizer.backend_tokenizer.to_str()
        self._whole = self._tokenizer.backend_tokenizer
        self._whole.no_truncation()
        self._whole.no_padding()
        self.continuation = continuation_tokenizer(serialised, self.end_ids)
        """Reads a text as what goes on from an earlier token: no prefix space, special tokens' names are plain text."""
        self._special_names = [
            token.content
            for id_, token in self._tokenizer.added_tokens_decoder.items()
            if token.special or id_ in self.end_ids
        ]

    def special_id(self, content: str) -> int | None:
        """The added token (special or not) with this text."""
        return self._added.get(content)

    @cached_property
    def added_ids(self) -> frozenset[int]:
        return frozenset(self._added.values())

    @cached_property
    def id_of_bytes(self) -> dict[bytes, int]:
        """Tokens by their bytes, added ones left out.

        Where two have the same ("a" and its byte-fallback "<0x61>", in SentencePiece) it is the later one, the piece.
        """
        return {each: id_ for id_, each in enumerate(self.bytes_by_id) if each and id_ not in self.added_ids}

    @cached_property
    def longest_token(self) -> int:
        """Bytes."""
        return max(map(len, self.id_of_bytes))

    @cached_property
    def _added(self) -> dict[str, int]:
        return {token.content: id_ for id_, token in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""
        return end_ids(self._folder, self._tokenizer)

    @cached_property
    def unknown_id(self) -> int | None:
        return unknown_id(self._tokenizer)

    @cached_property
    def _begin_ids(self) -> list[int]:
        """The begin token, where the tokenizer puts one before any text."""
        begin = self._tokenizer.bos_token_id
        return [begin] if begin is not None and self._tokenizer("a")["input_ids"][:1] == [begin] else []

    @cached_property
    def _is_lost(self) -> NDArray[np.bool_]:
        """[256] Bytes without a token of their own. A tokenizer without an unknown token leaves them out."""
        is_lost = np.full(256, self.unknown_id is None)
        is_lost[[each[0] for each in self.id_of_bytes if len(each) == 1]] = False
        return is_lost

    @cached_property
    def end_of_turn(self) -> int | None:
        """What the template puts behind an assistant's message (`turn_end`), else the end of sequence.

        None where the tokenizer has neither.
        """
        found = turn_end(self._tokenizer, self.end_ids, self.template.text)
        end_of_sequence = self._tokenizer.eos_token_id
        return found if found is not None or end_of_sequence is None else int(end_of_sequence)

    def prompts(self, messages: Sequence[str]) -> list[str]:
        """Conversations (JSON lists of role and content) as text up to and with the head of the assistant's turn.

        An empty list is a plain text: before it stands nothing (and `_begin_ids`, which are no text).
        Raises CoreError where there is no template, or it refuses.
        """
        rendered: dict[str, str] = {}
        for text in messages:
            if text not in rendered:
                turns = json.loads(text)
                rendered[text] = self.template.render(turns, add_generation_prompt=True) if turns else ""
        return [rendered[text] for text in messages]

    def tokenise(self, prompts: Sequence[str], responses: Sequence[str]) -> list[StudentText]:
        """Prompts and responses as whole texts. The response begins with a token of its own."""
        wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        distinct = list(dict.fromkeys(prompts))
        encoded = self._whole.encode_batch_fast(distinct, add_special_tokens=False)
        ids_of_prompt = dict(zip(distinct, (each.ids for each in encoded), strict=True))
        result = []
        for prompt, response, whole in zip(
            prompts, responses, self._whole.encode_batch_fast(wholes, add_special_tokens=False), strict=True
        ):
            before, ids = ids_of_prompt[prompt], whole.ids
            # A special token's name in the response was written out by the teacher; it must not end the turn.
            literal = any(name in response for name in self._special_names)
            forced = literal or ids[: len(before)] != before
            ids = self.continuation.encode(response, add_special_tokens=False).ids if forced else ids[len(before) :]
            token_ids = np.array(ids, dtype=np.int32)
            places = self._places(token_ids, prompt, response, forced)
            prompt_ids = np.array(before if prompt else self._begin_ids, dtype=np.int32)
            result.append(StudentText(prompt_ids, token_ids, *places, forced))
        return result

    def _places(
        self, ids: NDArray[np.int32], prompt: str, response: str, forced: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Starts and ends in bytes of the response: by the tokens' own bytes where they spell it, else by offsets.

        And which tokens stand for characters that the tokenizer doesn't know.
        """
        text = response.encode()
        spelt = b"".join([self.bytes_by_id[id_] for id_ in ids.tolist()])
        if spelt == text or spelt == b" " + text:
            ends = np.cumsum(self._lengths_V[ids]) - (len(spelt) - len(text))
            return ends - self._lengths_V[ids], ends, np.zeros(len(ids), dtype=bool)
        if len(ids) and (places := self._places_of_kept(ids, spelt, text)) is not None:
            return places
        if not len(ids):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
        reader, whole, before = (
            (self.continuation, response, 0) if forced else (self._whole, prompt + response, len(prompt))
        )
        encoding = reader.encode(whole, add_special_tokens=False)
        offsets = np.clip(np.array(encoding.offsets, dtype=np.int64)[-len(ids) :] - before, 0, len(response))
        byte_of_character = np.concatenate([[0], np.cumsum([len(each.encode()) for each in response])])
        is_unknown = ids == (UNKNOWN if self.unknown_id is None else self.unknown_id)
        return *_places_from_offsets(byte_of_character[offsets]), is_unknown

    def _places_of_kept(
        self, ids: NDArray[np.int32], spelt: bytes, text: bytes
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]] | None:
        """`_places` where the tokens spell the text without its lost bytes (whose offsets are wrong); else None."""
        values = np.frombuffer(text, np.uint8)
        is_lost = self._is_lost[values]
        kept = np.flatnonzero(~is_lost)
        if not is_lost.any() or values[kept].tobytes() != spelt or not self._lengths_V[ids].all():
            return None
        character = np.cumsum(values & 0xC0 != 0x80) - 1
        is_broken = np.zeros(len(text), dtype=bool)
        is_broken[character[is_lost]] = True
        broken_before = np.concatenate([[0], np.cumsum(is_broken[character[kept]])])
        stops = np.cumsum(self._lengths_V[ids])
        ends = kept[stops - 1] + 1
        is_unknown = broken_before[stops] > broken_before[stops - self._lengths_V[ids]]
        return np.concatenate([[0], ends[:-1]]), ends, is_unknown


def _places_from_offsets(offsets_S2: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A token begins where all earlier ones have ended; where two share a character, only the first has a start.

    What lies between two tokens (white space that a tokenizer drops) belongs to the second.
    """
    ends = np.maximum.accumulate(offsets_S2[:, 1])
    before = np.concatenate([[0], ends[:-1]])
    known = (offsets_S2[:, 0] >= before) & (offsets_S2[:, 1] > offsets_S2[:, 0])
    return np.where(known, before, UNKNOWN), ends


def continuation_tokenizer(serialised: str, ends: Collection[int] = ()) -> Tokenizer:
    """A copy without what happens only where a text begins (prefix spaces, BOS).

    Special tokens are not parsed, nor those that end a turn (`ends`): in a text their names are written out.
    """
    record = json.loads(serialised)
    for token in record["added_tokens"]:
        token["special"] |= token["id"] in ends
    record["post_processor"] = record["truncation"] = record["padding"] = None
    record["normalizer"] = _without_prefix(record["normalizer"])
    record["pre_tokenizer"] = _without_prefix(record["pre_tokenizer"])
    tokenizer = Tokenizer.from_str(json.dumps(record))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_prefix(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node["type"] == "Prepend":
        return None
    if node["type"] == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        return node | {key: [kept for each in node[key] if (kept := _without_prefix(each)) is not None]}
    if node["type"] == "Metaspace":
        return node | {"prepend_scheme": "never"}
    return node | {"add_prefix_space": False} if "add_prefix_space" in node else node


def unknown_note(count: int, config: ProjectConfig) -> Iterator[str]:
    """What the user should know of `count` tokens that stand for characters without a token."""
    if count:
        taught = "cross-entropy teaches them" if config.unknown_in_ce else "cross-entropy leaves them out"
        yield (
            f"{count:,} tokens stand for characters that the student's tokenizer has no token for: {taught}, and the "
            "student can't write them; for a student that can, set project.tokenizer to one with byte fallback"
        )
