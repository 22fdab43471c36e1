"""Conversations as text through the student's chat template, at one fixed moment and with fixed chance, so that a
projection repeats."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError

CLOCK = datetime(2026, 1, 1, 12)
"""What a template that asks for the time (``strftime_now``) is told."""

_SET = "set project.chat_template to a file with"


class ChatTemplate:
    """The template of a tokenizer, or another text in its place."""

    def __init__(self, tokenizer: Any, folder: Path, text: str | None = None) -> None:
        """`text`: Jinja that takes the place of the tokenizer's own. `folder`: named in errors."""
        self._tokenizer, self._folder = tokenizer, folder
        own = tokenizer.chat_template
        self._names = sorted(own) if isinstance(own, Mapping) and text is None else []
        self.text: str | None = text if text is not None else own.get("default") if isinstance(own, Mapping) else own
        """None: there is none, or several without a default."""

    @property
    def record(self) -> dict[str, str | None]:
        """``sha256`` of the text, and the moment that it is told as ``clock``; None where it doesn't ask."""
        text = self.text or ""
        return {
            "sha256": hashlib.sha256(text.encode()).hexdigest() if text else None,
            "clock": CLOCK.isoformat() if "strftime_now" in text else None,
        }

    def render(self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Raises CoreError where there is no template, or it fails, with whatever error, on this conversation."""
        if self.text is None:
            raise self._nothing_to_choose()
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import _compile_jinja_template

        # The template is a stranger's program: it may raise anything.
        try:
            # transformers has no setting for the clock, and compiles each text once: this is the one it will render.
            names = _compile_jinja_template(self.text).globals
            names["strftime_now"] = CLOCK.strftime
            chance = random.getstate()
            random.seed(0)  # Jinja's filter `random` draws from it
            try:
                return str(
                    self._tokenizer.apply_chat_template(
                        list(turns),
                        chat_template=self.text,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                    )
                )
            finally:
                del names["strftime_now"]
                random.setstate(chance)
        except Exception as error:
            refuses = isinstance(error, TemplateError)
            reason = str(error) if refuses else f"{type(error).__name__}: {error}"
            raise CoreError(
                f"{self._folder}: the chat template {'refuses' if refuses else 'fails on'} a conversation with the "
                f"roles {', '.join(str(turn.get('role')) for turn in turns)} ({reason})",
                f"{_SET} one that takes them (Jinja)",
            ) from error

    def _nothing_to_choose(self) -> CoreError:
        if self._names:
            return CoreError(
                f"{self._folder}: the student's tokenizer has several chat templates ({', '.join(self._names)}) and no "
                "default, and the raw shards hold conversations",
                f"{_SET} the one to use (Jinja)",
            )
        return CoreError(
            f"{self._folder}: the student's tokenizer has no chat template, and the raw shards hold conversations",
            f"{_SET} one (Jinja)",
        )
