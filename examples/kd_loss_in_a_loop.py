"""The KD loss in a training loop of your own: any PyTorch model with a language-model head, any teacher's candidates.

    uv run python examples/kd_loss_in_a_loop.py

Shapes: B sequences, T positions, K candidates, V vocabulary, D hidden width. Losses are in nats a token.
Here teacher and student are tiny Llamas with random weights; yours come from `AutoModelForCausalLM.from_pretrained`.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bitnet_core import TopKOtherConfig, batch_from_topk, chunked_combined_loss

VOCABULARY, K = 200, 16
OPTIONS = TopKOtherConfig(tau=1.5, ce_weight=0.1, format_weight=0.0)


def tiny_llama(seed: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@torch.no_grad()
def kd_batch(teacher: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor, prompt_length: int) -> dict[str, Tensor]:
    """What the losses read, of a teacher with logits. If you have candidates already, `batch_from_topk` is all."""
    logprobs_BTV = teacher(input_ids=ids_BT, attention_mask=mask_BT).logits.float().log_softmax(-1)
    top = logprobs_BTV.topk(K, dim=-1)
    # The mass of all other tokens, from the tokens themselves: log(1 − Σp) would lose the digits of a small rest.
    other_BT = logprobs_BTV.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    is_prompt_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT) < prompt_length
    return batch_from_topk(
        ids_BT, top.indices, top.values, other_logprob_BT=other_BT, attention_mask_BT=mask_BT, is_prompt_BT=is_prompt_BT
    )


def main(steps: int = 30) -> list[float]:
    """The KD term of every step."""
    teacher, student = tiny_llama(0, width=64).eval(), tiny_llama(1, width=32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    ids_BT = torch.randint(0, VOCABULARY, (8, 24))
    batch = kd_batch(teacher, ids_BT, torch.ones_like(ids_BT), prompt_length=4)
    losses = []
    for step in range(steps):
        hidden_BTD = student.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        # The [B, T, V] logits of the student are never made: the loss takes hidden states and the head's weight.
        loss, parts = chunked_combined_loss(hidden_BTD, student.lm_head.weight, batch, OPTIONS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts["kd"].item())
        if step % 10 == 0:
            print(f"step {step:3d}  KD {parts['kd']:.3f}  CE {parts['ce']:.3f} nats")
    print(f"at the end  KD {losses[-1]:.3f} nats")
    return losses


if __name__ == "__main__":
    main()
