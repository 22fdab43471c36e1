"""Greedy answers of a student: samples for the report, and its decode speed."""

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bitnet_core.hardware import autocast
from bitnet_core.model.modeling import BitNetKDEForCausalLM

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


@torch.inference_mode()
def greedy_answers(
    model: BitNetKDEForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    precision: str,
    on_progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Answer each prompt (a record with ``id``, ``messages`` and maybe ``format``) alone, one token after the other.

    Returns ``answers``, the decode speed in tokens per second (all tokens over all seconds, and the median and spread
    over prompts), and ``json_validity``. The first prompt is answered once more before the clock starts.
    """
    device = model.device
    answers: list[dict[str, Any]] = []
    for number, prompt in enumerate([prompts[0], *prompts]):
        inputs: Any = tokenizer.apply_chat_template(
            list(prompt["messages"]), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        inputs = inputs.to(device)
        start = time.perf_counter()
        with autocast(precision, device):
            ids = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )
        seconds = time.perf_counter() - start
        if number == 0:
            continue  # warm-up
        new_ids = ids[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new_ids, skip_special_tokens=True)
        answers.append(
            {
                "id": prompt["id"],
                "messages": list(prompt["messages"]),
                "format": prompt.get("format"),
                "text": text,
                "tokens": len(new_ids),
                "seconds": seconds,
            }
        )
        on_progress(number, len(prompts), f"{len(new_ids) / seconds:.1f} tok/s")
    return {"answers": answers, **decode_speed(answers), "json_validity": json_validity(answers)}


def decode_speed(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens per second over all answers, and the median, least and greatest over single answers."""
    rates = [answer["tokens"] / answer["seconds"] for answer in answers]
    return {
        "tokens_per_second": sum(a["tokens"] for a in answers) / sum(a["seconds"] for a in answers),
        "tokens_per_second_median": statistics.median(rates),
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
    }


def json_validity(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of answers to JSON prompts that parse, with or without a code fence; None without such prompts."""
    asked = [answer["text"] for answer in answers if answer["format"] == "json"]
    return sum(map(parses_as_json, asked)) / len(asked) if asked else None


def parses_as_json(text: str) -> bool:
    fenced = _FENCE.search(text)
    try:
        json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return False
    return True
