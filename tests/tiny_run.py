"""The quickstart with a teacher of a few thousand weights: a whole run in seconds, for documents and examples."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_teacher(folder: Path) -> Path:
    """A Llama with random weights and a byte-level tokenizer of SmolLM's kind, as a Hugging Face folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["What is the capital of France? Name three, as JSON."] * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(fast), hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.1,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_settings(root: Path, teacher: Path) -> dict[str, Any]:
    """What makes `manifests/quickstart.toml` tiny; its run folder is ``root/runs/quickstart``."""
    return {
        "store.root": root / "runs",
        "teacher.model": teacher,
        "teacher.dtype": "fp32",
        "baseline.max_prompts": 2,
        "baseline.max_new_tokens": 8,
        "collect.max_prompts": 8,
        "collect.max_texts": 8,
        "collect.max_new_tokens": 8,
        "collect.max_text_tokens": 48,
        "project.holdout_fraction": 0.2,
        "train.steps": 4,
        "train.batch_size": 4,
        "train.max_seq_len": 128,
        "train.validate_every": 2,
        "train.checkpoint_every": 2,
        "train.precision": "fp32",
        "evaluate.max_prompts": 2,
        "evaluate.max_new_tokens": 8,
        "evaluate.bootstrap_samples": 50,
    }
