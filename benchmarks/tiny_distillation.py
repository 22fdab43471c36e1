"""Does the whole pipeline run on this device, and is its student near the teacher? One that is made here, in minutes.

    python -m benchmarks.tiny_distillation [--device cuda] [--teacher-steps 500] [--steps 300]

No network and no downloaded model: a Llama of 10 million weights learns the answers of ``manifests/data/corpus.jsonl``,
and is then distilled by the pipeline itself, all stages, as a manifest says it: baseline, collect, project, calibrate,
train, evaluate in the packed runtime, export, report. With ``--device cpu`` everything is tiny, and what is learnt
means nothing. The last line is one JSON object: the student's KL before and after, its perplexity beside the teacher's,
seconds by stage, tokens a second of training and of answers. The exit status is 1 where training left the student
further from the teacher than it began, and than a fifth of what the best unigram is.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitnet_core.hardware import autocast, autocast_dtype

DATA = Path(__file__).parents[1] / "manifests" / "data"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MANIFEST = """
manifest_version = 1
[run]
name = "gpu-check"
stages = ["storage", "baseline", "collect", "project", "calibrate", "train", "evaluate", "export", "report"]
[store]
kind = "local"
[teacher]
kind = "local"
[baseline]
max_new_tokens = 32
[collect]
top_k = 20
[project]
tokenizer = "teacher"
[student]
init_from = "teacher"
[calibration]
[loss]
kind = "topk_other"
ce_weight = 0.0
format_weight = 0.0
[train]
flip_fraction = 1.0
[evaluate]
benchmarks = ["heldout", "agreement"]
runtime = "packed"
runtime_positions = 0
[export]
kinds = ["packed", "hf"]
"""


@attrs.frozen
class Size:
    """Of the teacher, and of what it is asked."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    batch: int
    """Of the teacher's training: rows of `length` tokens."""
    length: int
    texts: int
    prompts: int
    new_tokens: int
    calibration_tokens: int


SIZES = {
    "cuda": Size(2048, 384, 1024, 6, 32, 256, 500, 100, 64, 15_000),
    "cpu": Size(300, 256, 256, 2, 4, 64, 16, 4, 8, 200),
}


def texts() -> list[tuple[list[dict[str, str]], str]]:
    """Messages and answer of each line of the corpus."""
    rows = map(json.loads, (DATA / "corpus.jsonl").read_text(encoding="utf-8").splitlines())
    return [(row["messages"], row["text"]) for row in rows]


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text for _, text in texts()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def make_teacher(folder: Path, size: Size, steps: int, device: torch.device) -> dict[str, Any]:
    """A model that has learnt the corpus, as a Hugging Face folder; how its own loss fell, in nats a token."""
    tokenizer = make_tokenizer(size)
    tokenizer.save_pretrained(folder)
    said = "".join(
        tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
        for messages, text in texts()
    )
    ids = torch.tensor(tokenizer(said, add_special_tokens=False)["input_ids"], device=device)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64, num_key_value_heads=size.width // 128, max_position_embeddings=1024,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    with device:
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast_dtype("auto", device) is torch.float16)
    started, losses = time.perf_counter(), []
    for _ in range(steps):
        first_B1 = torch.randint(0, len(ids) - size.length, (size.batch, 1), device=device)
        rows_BT = ids[first_B1 + torch.arange(size.length, device=device)]
        with autocast("auto", device):
            loss = model(input_ids=rows_BT, labels=rows_BT).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    found = torch.stack(losses).tolist()
    model.float().cpu().save_pretrained(folder)
    return {
        "parameters": sum(each.numel() for each in model.parameters()), "steps": steps,
        "first_loss": found[0], "last_loss": found[-1], "seconds": time.perf_counter() - started,
    }  # fmt: skip


def settings(root: Path, teacher: Path, size: Size, steps: int, device: str) -> dict[str, Any]:
    return {
        "store.root": root / "runs",
        "teacher.model": teacher,
        "teacher.device": device,
        "baseline.prompts": DATA / "eval_prompts.jsonl",
        "baseline.max_prompts": 6,
        "collect.prompts": DATA / "prompts.jsonl",
        "collect.max_prompts": size.prompts,
        "collect.texts": DATA / "corpus.jsonl",
        "collect.max_texts": size.texts,
        "collect.max_new_tokens": size.new_tokens,
        "project.holdout_fraction": 0.1,
        "calibration.tokens": size.calibration_tokens,
        "train.steps": steps,
        "train.batch_size": 4,
        "train.warmup_steps": min(10, steps),
        "train.validate_every": max(1, steps // 4),
        "train.checkpoint_every": steps,
        "evaluate.max_prompts": 6 if device == "cuda" else 1,
        "evaluate.max_new_tokens": size.new_tokens,
        "evaluate.bootstrap_samples": 100,
    }


def distil(root: Path, teacher: Path, size: Size, steps: int, device: str) -> dict[str, Any]:
    """Run the pipeline; what its report says of the student."""
    from bitnet_cli import run

    manifest = root / "gpu-check.toml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    folder = run(manifest, settings(root, teacher, size, steps, device))
    report = json.loads((folder / "reports" / "mini_evaluation_report.json").read_text())
    rows = [json.loads(line) for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    done = {file.parent.name: json.loads(file.read_text()) for file in folder.glob("stages/*/done.json")}
    names = (
        "untrained_kl", "heldout_kl", "unigram_kl", "top1_agreement", "perplexity", "teacher_perplexity",
        "tokens_per_second", "teacher_tokens_per_second", "runtime",
    )  # fmt: skip
    return {name: report[name] for name in names} | {
        "steps": steps,
        "training_tokens_per_second": rows[-1]["tokens_per_second"],
        "validation_kl": [row["validation_kl"] for row in rows if "validation_kl" in row],
        "seconds_by_stage": {name: record["seconds"] for name, record in done.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--teacher-steps", type=int)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    size, device = SIZES[options.device], torch.device(options.device)
    steps = {"cuda": (500, 300), "cpu": (3, 4)}[options.device]
    os.environ["SKIP_EXTERNAL"] = "1"
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        teacher = make_teacher(root / "teacher", size, options.teacher_steps or steps[0], device)
        print(f"teacher: {teacher}", flush=True)
        result = distil(root, root / "teacher", size, options.steps or steps[1], options.device)
    enough = max(result["untrained_kl"], result["unigram_kl"] / 5)  # a calibrated start may leave nothing to learn
    is_near = options.device == "cpu" or result["heldout_kl"] < enough
    print(
        json.dumps({"teacher": teacher, "is_near": is_near, "precision": str(autocast_dtype("auto", device)), **result})
    )
    raise SystemExit(0 if is_near else 1)


if __name__ == "__main__":
    main()
