"""A student trained in a loop of your own, then decoded from two-bit weights and written for llama.cpp.

    uv run python examples/own_loop_to_gguf.py

The runtime `packed` and the exports take this project's students: `build_student` makes one, of any size, from scratch
or from a Llama-shaped checkpoint. Its checkpoint is a transformers folder with the tokenizer in it. Here tokens are
bytes, and the targets come from counts of which byte follows which; yours are any teacher's candidates.
"""

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core import StudentConfig, TopKOtherConfig, batch_from_topk, build_student, chunked_combined_loss
from bitnet_core.config import GGUFOptions
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.runtime.open import open_runtime

TEXT = "the cat sat on the mat. the dog sat on the log. " * 8
OPTIONS = TopKOtherConfig(ce_weight=0.1, format_weight=0.0)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one for the end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def candidates(ids_BT: torch.Tensor, vocabulary: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities [B, T, K] of the token after each: smoothed counts of the pairs."""
    counts_VV = torch.full((vocabulary, vocabulary), 1e-3)
    counts_VV.index_put_((ids_BT[:, :-1], ids_BT[:, 1:]), torch.tensor(1.0), accumulate=True)
    top = counts_VV.div(counts_VV.sum(-1, keepdim=True)).log()[ids_BT].topk(k)
    return top.indices, top.values


def decode(folder: Path, text: str, count: int) -> str:
    """The likeliest `count` tokens after `text`. A loop that appends computes only what is new."""
    with open_runtime(folder, kind="packed") as model:
        ids = model.encode(text)
        start = len(ids)
        for _ in range(count):
            ids = [*ids, int(model.logits(ids, last=1)[0].argmax())]
        print(f"{model.description}: {model.decode(ids[start:])!r}")
        return model.decode(ids[start:])


def main(folder: Path, steps: int = 60) -> tuple[list[float], str]:
    """The KD term of every step, and what the student says after training."""
    tokenizer = byte_tokenizer()
    config = StudentConfig(
        init_from="", hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    student = build_student(config, None, len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    ids_BT = torch.tensor(tokenizer(TEXT).input_ids).view(8, -1)
    batch = batch_from_topk(ids_BT, *candidates(ids_BT, len(tokenizer), k=8))
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        hidden_BTD = student.model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        loss, parts = chunked_combined_loss(hidden_BTD, student.lm_head.weight, batch, OPTIONS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(parts["kd"].item())
    print(f"KD {losses[0]:.2f} nats at first, {losses[-1]:.2f} after {steps} steps")

    checkpoint = folder / "student"
    student.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    said = decode(checkpoint, "the cat", count=20)
    written = export(checkpoint, {"gguf": gguf_exporter(GGUFOptions())}, folder / "exports")
    print(f"{', '.join(written['exports'])} in {folder / 'exports'}")
    return losses, said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
