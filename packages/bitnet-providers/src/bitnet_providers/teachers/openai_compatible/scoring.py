"""Scoring given text: vLLM's ``prompt_logprobs``, and ``echo`` of legacy completions. Nothing is believed unchecked.

A server that ignores these fields (llama.cpp ignores ``echo``) answers as if nothing were wrong. So an answer counts
only where its tokens spell the very text that was asked about.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from bitnet_providers.contract import Completion, ProviderError, RequestRefusedError, ScoreRequest
from bitnet_providers.teachers.common.logprobs import Columns, columns, token_list
from bitnet_providers.teachers.common.token_bytes import Candidate, Token, answer_tokens, encoded, known_bytes
from bitnet_providers.teachers.openai_compatible.answer import Choice, PromptLogprobs, Response, completion
from bitnet_providers.teachers.openai_compatible.model_url_key import Server


def scoring_body(server: Server, request: ScoreRequest) -> dict[str, Any]:
    """The JSON of a chat completion (with messages) or of a legacy completion (plain text).

    Raises ProviderError for what the server can't score.
    """
    # Servers want to write at least one token; it is thrown away.
    fields: dict[str, Any] = {"model": server.model, "max_tokens": 1, "temperature": 0.0}
    count = max(1, request.top_logprobs)
    if server.scoring == "off":
        raise ProviderError(
            f"{server.base_url} does not score given text, as far as is known",
            'take collect.texts out, or set teacher.scoring = "prompt_logprobs" (vLLM) or "echo" and probe it',
        )
    if server.scoring == "echo":
        if request.messages:
            raise ProviderError(
                f"{server.base_url} scores plain texts only (echo belongs to the legacy completions, which know no "
                "messages)",
                "take texts with messages out of collect.texts",
            )
        return fields | {"prompt": request.text, "echo": True, "logprobs": count}
    fields["prompt_logprobs"] = count
    if not request.messages:
        return fields | {"prompt": request.text}
    fields["messages"] = [*(dict(each) for each in request.messages), {"role": "assistant", "content": request.text}]
    # The prompt ends with the text: its turn is not closed, and none is opened behind it.
    return fields | {"add_generation_prompt": False, "continue_final_message": True}


def scored(response: Response, request: ScoreRequest, server: Server, *, latency_s: float) -> Completion:
    """The text's own tokens with their log-probabilities; what the server wrote behind it is gone.

    Raises ProviderError where the server scored nothing, RequestRefusedError where its tokens are not the text's.
    """
    if not response.choices:
        raise RequestRefusedError(f"{server.base_url} scored nothing: a content filter left it out", _LEAVE_OUT)
    repairs = Counter[str]()
    choice = response.choices[0]
    tokens: Sequence[Token]
    if server.scoring == "echo":
        tokens = _echoed(choice, request.text, server)
    else:
        tokens = _prompt_tokens(response.prompt_logprobs or choice.prompt_logprobs, request, server)
    told = columns(request.text, tokens, 0, repairs)
    if told.text != encoded(request.text) or repairs["tokens_unproved"]:
        raise RequestRefusedError(
            f"{server.base_url} scored other tokens than the text's (its template or its tokenizer changes the text): "
            "this text can't be scored there",
            _LEAVE_OUT,
        )
    told = _first(told, request.max_tokens)
    if len(told.token_logprobs) > 1 and not np.isfinite(told.token_logprobs[1:]).any():
        raise ProviderError(f"{server.base_url} gives no log-probabilities of a prompt", _OFF)
    model = response.model or server.model
    return completion(told, response, finish="scored", model=model, latency_s=latency_s, repairs=repairs)


_OFF = 'set teacher.scoring = "off" and take collect.texts out'


_LEAVE_OUT = "take this text out of collect.texts"


def _echoed(choice: Choice, text: str, server: Server) -> list[Token]:
    """The text's tokens out of ``logprobs`` of a legacy completion; without those that were written behind it."""
    tokens = token_list(choice.logprobs)
    if not (choice.text or "").startswith(text) or not tokens:
        raise ProviderError(f"{server.base_url} ignores echo: it scores no given text", _OFF)
    whole, place = encoded(text), 0
    for index, token in enumerate(tokens):
        if place >= len(whole):
            return tokens[:index]
        raw = known_bytes(token)
        if raw is None:  # a cut character; `columns` proves it or refuses
            return tokens[: len(tokens) - 1]
        if index == 0 and not raw:  # the token that begins a text
            continue
        place += len(raw)
    return tokens


def _prompt_tokens(found: PromptLogprobs | None, request: ScoreRequest, server: Server) -> Sequence[Token]:
    """The text's tokens out of vLLM's ``prompt_logprobs``: all of a plain text, the last ones of a conversation."""
    if not found:
        raise ProviderError(f"{server.base_url} ignores prompt_logprobs: it scores no given text", _OFF)
    tokens = [_prompt_token(position, request.top_logprobs) for position in found if position]
    whole = encoded(request.text)
    if request.messages:
        answer = answer_tokens(tokens, request.text)
        if answer is None:
            raise RequestRefusedError(
                f"{server.base_url}: no token begins where the text does (its chat template changes the text, or a "
                "token spans both): this text can't be scored there",
                _LEAVE_OUT,
            )
        return answer
    # A null stands at the first position, of which vLLM tells no token: one that begins a text, or the text's first.
    spoken = b"".join(known_bytes(token) or b"" for token in tokens)
    missing = len(whole) - len(spoken)
    if found[0] is None and missing > 0 and whole.endswith(spoken):
        tokens.insert(0, Token(whole[:missing].decode("utf-8", "replace"), None, list(whole[:missing])))
    return tokens


def _prompt_token(position: dict[str, Any], top_logprobs: int) -> Token:
    """The token that stands in the prompt comes first; it is among the candidates only if its rank is."""
    candidates = [
        Candidate(each.decoded_token or "", each.logprob, id=int(key) if key.isdigit() else None)
        for key, each in position.items()
    ]
    own = candidates[0]
    top = sorted(candidates, key=lambda each: -np.inf if each.logprob is None else each.logprob, reverse=True)
    return Token(own.token, own.logprob, id=own.id, top_logprobs=top[:top_logprobs])


def _first(told: Columns, max_tokens: int | None) -> Columns:
    if max_tokens is None or len(told.token_bytes) <= max_tokens:
        return told
    candidates = int(told.candidate_counts[:max_tokens].sum())
    return attrs.evolve(
        told,
        text=b"".join(told.token_bytes[:max_tokens]),
        token_bytes=told.token_bytes[:max_tokens],
        token_logprobs=told.token_logprobs[:max_tokens],
        candidate_counts=told.candidate_counts[:max_tokens],
        candidate_logprobs=told.candidate_logprobs[:candidates],
        candidate_bytes=told.candidate_bytes[:candidates],
    )
