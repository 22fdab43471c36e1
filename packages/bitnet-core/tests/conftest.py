"""Tiny students with a real byte-level tokenizer, as checkpoints; made so lively that their distributions matter."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.real_tokenizers import tokenizer_folder as real_tokenizer_folder
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.packed_table import pack_table, unpack_table
from bitnet_core.traces.tokenizer_files import copy_tokenizer

TEXTS = [
    "The capital of France is Paris, and water boils at 100 degrees. Names: Zoë, José, 東京.",
    'def area(r):\n    return 3.14159 * r ** 2\n\n{"name": "tea", "price": 12.50}',
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 400
MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM's kind: single digits, GPT-2's splitting, bytes; ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return folder


def lively(**changes: Any) -> BitNetKDEForCausalLM:
    """A student with random weights whose norms, biases and head say something."""
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = BitNetKDEForCausalLM(BitNetKDEConfig(**(sizes | changes)))
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.4 * torch.rand_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            if name == "model.norm.weight":
                parameter.mul_(6)  # logits with a spread of some 2 nats
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(20)  # the layers outweigh the embedding, with which the head is tied
    for _, layer in ternary_layers(model):
        layer.fit_scale()
    return model.eval()


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> MakeCheckpoint:
    """``make_checkpoint(hidden_size=...)``: the folder of a lively student with the tokenizer.

    `tables_in_8_bits`: its embedding holds the values that exports hold.
    """

    def make(tables_in_8_bits: bool = False, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / "step_7"
        model = lively(**changes)
        if tables_in_8_bits:
            table = model.get_input_embeddings().weight
            table.data.copy_(unpack_table(*pack_table(table)))
        model.save_pretrained(folder)
        copy_tokenizer(tokenizer_folder, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint()


@pytest.fixture(scope="session")
def real_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of real tokenizers, by the names in ``benchmarks/real_tokenizers.py``: to be read only."""
    under = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        under = under.parent  # each is made once for all processes
    return lambda name: real_tokenizer_folder(name, under / "real-tokenizers")
