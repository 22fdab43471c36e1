"""The baseline's answers on disk before they count, so that a stopped baseline doesn't pay for them twice.

The files are those of `bitnet_providers.raw.journal`, in a folder of their own. A measurement is a round: its number
stands where the collector's journal counts draws. A new measurement begins a round, a stopped one goes on with the
last.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.contract import Completion, GenerateRequest, Teacher
from bitnet_providers.prompts.load_prompts import Prompt
from bitnet_providers.raw.journal import JournalWriter, Rows, read_journal
from bitnet_providers.raw.write_shard import completion_columns, row_batch

_WANTED = ("text", "token_logprobs", "usage", "latency_s", "finish_reason", "prompt_tokens", "model", "repairs")


def request_sha256(teacher: Teacher, kind: str, request: GenerateRequest) -> str:
    """sha256 of everything that decides an answer and how long it takes."""
    asked = attrs.asdict(request) | {"kind": kind, "teacher": dict(teacher.description)}
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class BaselineJournal:
    """The answers of one round. A context manager; without a folder it keeps nothing."""

    def __init__(self, folder: Path | None, *, resume: bool) -> None:
        """`resume`: go on with the last round that is there. Raises ProviderError for a file of another version."""
        rows = Rows() if folder is None else read_journal(folder).rows
        last = max((number for _, number in rows), default=-1)
        self._round = last if resume and rows else last + 1
        self._writer = None if folder is None else JournalWriter(folder)
        self._known = {
            sha256: {name: row.batch.column(name)[row.index].as_py() for name in _WANTED}
            for (sha256, number), row in rows.items()
            if number == self._round
        }

    def get(self, sha256: str) -> Mapping[str, Any] | None:
        """The columns of an answer of this round."""
        return self._known.get(sha256)

    def keep(self, sha256: str, number: int, prompt: Prompt, completion: Completion) -> Mapping[str, Any]:
        """Write an answer down, and wait until the disk has it.

        Raises OSError, and RequestRefusedError where its columns don't fit.
        """
        row = {
            "prompt_idx": number,
            "sample_idx": self._round,
            "request_sha256": sha256,
            "source_id": prompt.id,
            "kind": "sample",
            "format": prompt.format,
            "messages": json.dumps([dict(message) for message in prompt.messages], ensure_ascii=False),
            **completion_columns(completion),
        }
        batch = row_batch(row)
        if self._writer is not None:
            self._writer.append([batch])
        return row

    def __enter__(self) -> "BaselineJournal":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*exception)
