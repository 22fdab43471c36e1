"""A completion of a teacher that tells no tokens: one token, the whole text, without a log-probability."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bitnet_providers.contract import Completion


def text_completion(
    text: str,
    *,
    finish_reason: Any,
    model: str,
    latency_s: float,
    usage: Mapping[str, float],
    repairs: Mapping[str, int],
) -> Completion:
    """T = 1, its log-probability NaN, no candidates. `usage` has ``prompt_tokens`` where the provider counted them."""
    content = text.encode("utf-8", "replace")  # half a surrogate pair has no bytes
    return Completion(
        text=content,
        token_logprobs=np.full(1, np.nan, np.float32),
        candidate_counts=np.zeros(1, np.int32),
        candidate_logprobs=np.zeros(0, np.float32),
        finish_reason=finish_reason,
        model=model,
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        latency_s=latency_s,
        token_bytes=(content,),
        candidate_bytes=(),
        usage=dict(usage),
        repairs={name: count for name, count in repairs.items() if count},
    )
