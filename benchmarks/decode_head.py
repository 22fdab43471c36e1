"""What does an int8 or bfloat16 language-model head cost? KL to the exact head on the same hidden states, in nats.

    uv run python -m benchmarks.decode_head FOLDER [FOLDER ...]

A FOLDER is a checkpoint of ours or any model that transformers opens; the text is `bitnet_core.export.check.TEXT` and
the first thousand tokens of benchmarks/texts. For a ternary student the KL of 8-bit activations stands beside it.
Prints one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitnet_core.export.check import TEXT
from bitnet_core.model import BitNetKDEForCausalLM
from bitnet_core.runtime.packed.cpu import int8_rows
from bitnet_core.ternary.bitlinear import quantised_once

TOKENS = 1000


def main() -> None:
    found = {Path(each).resolve().name: costs(Path(each)) for each in sys.argv[1:]}
    print(json.dumps({"nats": found, "tokens": TOKENS}, indent=1))


@torch.no_grad()
def costs(folder: Path) -> dict[str, float]:
    text = TEXT + (Path(__file__).parent / "texts/many_scripts.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(text, return_tensors="pt").input_ids[
        :, :TOKENS
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    head_VD = model.lm_head.weight.float()
    with quantised_once(model):
        hidden_TD = model.model(ids).last_hidden_state[0]
        exact_TV = distribution(hidden_TD, head_VD)
        codes_VD, scale_V = int8_rows(head_VD, head_VD.shape[1])
        result = {
            "int8 head": kl(exact_TV, distribution(hidden_TD, codes_VD * scale_V[:, None])),
            "bf16 head": kl(exact_TV, distribution(hidden_TD, head_VD.bfloat16().float())),
        }
        if isinstance(model, BitNetKDEForCausalLM):
            model.set_activation_bits(16)
            free_TV = distribution(model.model(ids).last_hidden_state[0], head_VD)
            result["8-bit activations"] = kl(free_TV, exact_TV)
    return {name: float(f"{value:.2g}") for name, value in result.items()}


def distribution(hidden_TD: Tensor, head_VD: Tensor) -> Tensor:
    return torch.log_softmax((hidden_TD @ head_VD.T).double(), -1)


def kl(ours_TV: Tensor, theirs_TV: Tensor) -> float:
    return float((ours_TV.exp() * (ours_TV - theirs_TV)).sum(1).mean())


if __name__ == "__main__":
    main()
