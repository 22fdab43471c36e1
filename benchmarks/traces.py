"""How fast, and how far, do a teacher's tokens become a student's?

    python -m benchmarks.traces [--batches 8 --k 20 --rounds 3 | --coverage]

`projection_speedup`: KD positions per second of the byte-aligned projection over those of the plain way (encode every
candidate string with the student's tokenizer, merge in a dictionary), on hosted-style traces: bytes, K candidates. The
plain way runs on a part of the same completions, before and after in each round, and the median ratio of the rounds is
given with its range; in CPU seconds too (of all threads: the tokenizers library uses as many as there are cores, unless
TOKENIZERS_PARALLELISM=false). Candidates are other tokens of the same teacher, so that they repeat as real ones do: by
Zipf's law.

`coverage`: for pairs of real tokenizers (benchmarks/real_tokenizers.py) over the texts beside this file, how many of
the student's positions have a distribution, why the others have none, and how often a student token spans several of
the teacher's, where the bare first-subtoken rule would teach a token that does not stand in the text.
The last line is one JSON object.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.real_tokenizers import tokenizer_folder
from bitnet_core.projection.by_bytes import Aligner
from bitnet_core.projection.read_raw_shards import RawAnswers
from bitnet_core.projection.student_text import Student
from bitnet_core.projection.top_k_other import TopK, top_k_with_other
from bitnet_core.traces.tokenizer import id_to_bytes, load_tokenizer
from bitnet_core.traces.write_shards import ROW_GROUP_ROWS

PAIRS: tuple[tuple[str, str], ...] = (
    *(("deepseek", "smollm2"), ("tekken", "smollm2"), ("mistral", "smollm2")),
    *(("smollm2", "deepseek"), ("smollm2", "mistral"), ("deepseek", "nfkc"), ("smollm2", "smollm2")),
)
_TOKENS = 400
_DISTINCT = 30_000
"""SmolLM2's own traces name 27,000 different tokens among the first million candidates."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batches", type=int, default=8, help="of 65,536 teacher tokens, as the project stage has them"
    )
    parser.add_argument("--plain-positions", type=int, default=1_000, help="teacher tokens for the plain way")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="deepseek")
    parser.add_argument("--student", default="smollm2")
    parser.add_argument("--coverage", action="store_true", help="the table of docs/projection.md alone")
    options = parser.parse_args()
    text = sample_text()
    with tempfile.TemporaryDirectory() as folder:
        under = Path(folder)
        speed = {} if options.coverage else projection_speed(options, text, under)
        rows = [coverage(teacher, student, text, under) for teacher, student in PAIRS]
    print(coverage_table(rows))
    parallel = os.environ.get("TOKENIZERS_PARALLELISM", "true") != "false"
    machine = {
        "cores": os.cpu_count(),
        "tokenizer_threads": os.cpu_count() if parallel else 1,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    print(json.dumps({**speed, "coverage": rows, "machine": machine}))


# --- speed -----------------------------------------------------------------------------------------------------------


def projection_speed(options: argparse.Namespace, text: str, under: Path) -> dict[str, Any]:
    teacher = load_tokenizer(tokenizer_folder(options.teacher, under))
    student_folder = tokenizer_folder(options.student, under)
    batches = [hosted(teacher, text, ROW_GROUP_ROWS, options.k, seed) for seed in range(options.batches)]
    part = hosted(teacher, text, options.plain_positions, options.k)
    student, tokenizer = Student(student_folder), load_tokenizer(student_folder)
    clocks = (time.perf_counter, time.process_time)
    ratios: dict[str, list[float]] = {"wall": [], "cpu": [], "first": []}
    rates: dict[str, list[float]] = {"fast": [], "plain": []}
    for number in range(options.rounds):
        aligner = Aligner(student, None, "product")  # an empty dictionary in each round: its filling is counted
        # The plain way before and after, so that what else the machine does hits both.
        slow, plain = timed(clocks, plain_projection, part, tokenizer, student.bytes_by_id, options.k)
        once, top = timed(clocks, fast_projection, aligner, batches[0], options.k)
        fast, done = once, len(top.other)
        first_rate = done / once
        for batch in batches[1:]:
            seconds, top = timed(clocks, fast_projection, aligner, batch, options.k)
            fast, done = fast + seconds, done + len(top.other)
        seconds, plain = timed(clocks, plain_projection, part, tokenizer, student.bytes_by_id, options.k)
        check_agreement(plain, fast_projection(aligner, part, options.k))
        slow_rate, fast_rate = 2 * len(plain) / (slow + seconds), done / fast
        ratios["wall"].append(float((fast_rate / slow_rate)[0]))
        ratios["cpu"].append(float((fast_rate / slow_rate)[1]))
        ratios["first"].append(float((first_rate / slow_rate)[0]))
        rates["fast"].append(float(fast_rate[0]))
        rates["plain"].append(float(slow_rate[0]))
        print(
            f"round {number + 1}/{options.rounds}: {fast_rate[0]:,.0f} and {slow_rate[0]:,.0f} positions/s: "
            f"{ratios['wall'][-1]:.0f}×, in CPU seconds {ratios['cpu'][-1]:.0f}×"
        )
    return {
        "projection_speedup": round(statistics.median(ratios["wall"]), 1),
        "projection_speedup_range": [round(min(ratios["wall"]), 1), round(max(ratios["wall"]), 1)],
        "projection_speedup_in_cpu_seconds": round(statistics.median(ratios["cpu"]), 1),
        "projection_speedup_in_cpu_seconds_range": [round(min(ratios["cpu"]), 1), round(max(ratios["cpu"]), 1)],
        "projection_speedup_of_the_first_batch": round(statistics.median(ratios["first"]), 1),
        "projection_positions_per_s": round(statistics.median(rates["fast"])),
        "plain_positions_per_s": round(statistics.median(rates["plain"])),
        "distinct_candidates": len(aligner.candidates.first_subtoken),
        "rounds": options.rounds,
        "shape": {name: getattr(options, name) for name in ("teacher", "student", "batches", "plain_positions", "k")},
    }


def timed(clocks: Sequence[Callable[[], float]], work: Callable[..., Any], *given: Any) -> tuple[np.ndarray, Any]:
    """Seconds by each clock, and what `work` makes of what it is given."""
    start = [clock() for clock in clocks]
    result = work(*given)
    return np.array([clock() for clock in clocks]) - start, result


def fast_projection(aligner: Aligner, answers: RawAnswers, k: int) -> TopK:
    """As the project stage does it."""
    targets = aligner.align(answers, Counter(), no_mass())
    return top_k_with_other(targets.candidate_counts, targets.candidate_ids, targets.candidate_logprobs, k)


def no_mass() -> dict[str, float]:
    return {"span": 0.0, "unmapped": 0.0}


def hosted(teacher: Any, text: str, positions: int, k: int, seed: int = 0) -> RawAnswers:
    """Completions as a hosted API gives them: bytes, K candidates, the sampled token among them.

    The strings are a dictionary, as raw shards are read (bitnet_core.projection.read_raw_shards).
    """
    rng = np.random.default_rng(seed)
    table = np.array(id_to_bytes(teacher), dtype=object)
    ids = np.array(teacher(text, add_special_tokens=False, verbose=False)["input_ids"])
    ids = np.resize(ids, positions)
    special = set(teacher.all_special_ids) | set(teacher.get_added_vocab().values())
    usual = np.flatnonzero([id_ not in special and is_text(each) for id_, each in enumerate(table)])
    usual = np.random.default_rng(0).permutation(usual)[:_DISTINCT]
    # Ranks by Zipf's law, one from each of K-1 strata, so that a position names a token once.
    strata = (np.arange(k - 1) + rng.random((positions, k - 1))) / (k - 1)
    others = usual[np.minimum(len(usual) ** strata + np.arange(k - 1), len(usual) - 1).astype(np.int64)]
    others = np.concatenate([ids[:, None], others], axis=1)
    logprobs = np.sort(rng.standard_exponential((positions, k + 1)) ** 3, axis=1)[:, ::-1]
    logprobs = np.log(logprobs / logprobs.sum(axis=1, keepdims=True))[:, :k].astype(np.float32)
    lengths = np.diff([*range(0, positions, _TOKENS), positions])
    texts = [b"".join(table[part]) for part in np.split(ids, np.cumsum(lengths)[:-1])]
    # A cut may fall into a character; the text of a provider ends before it.
    return RawAnswers(
        text=texts,
        messages=["[]"] * len(texts),
        finish_reason=["length"] * len(texts),
        response_lengths=lengths,
        tokens=pa.array(table[ids].tolist(), pa.binary()).dictionary_encode(),
        token_logprobs=logprobs[:, 0],
        candidate_counts=np.full(positions, k, dtype=np.int64),
        candidates=pa.array(table[others.ravel()].tolist(), pa.binary()).dictionary_encode(),
        candidate_logprobs=logprobs.ravel(),
    )


def is_text(token: bytes) -> bool:
    """Pieces of characters go to other candidates than the plain way's: they are left out of the comparison."""
    try:
        return len(token.decode()) > 0
    except UnicodeDecodeError:
        return False


def plain_projection(
    answers: RawAnswers, tokenizer: Any, student_bytes: list[bytes], k: int
) -> list[tuple[int, list[tuple[int, float]], float]]:
    """The same rules as one writes them down: position by position, candidate by candidate.

    A list of (student id that stands there, candidates (id, log-probability) by falling probability, other).
    """
    tokens, candidates = answers.tokens.to_pylist(), answers.candidates.to_pylist()
    rows = []
    start = at = 0
    for text, length in zip(answers.text, answers.response_lengths.tolist(), strict=True):
        own = tokens[start : start + length]
        places, offset = {}, 0
        for number, token in enumerate(own):
            places[offset] = start + number
            offset += len(token)
        offset = 0
        for id_ in tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=False):
            end = offset + len(student_bytes[id_])
            if offset in places:
                t = places[offset]
                joint = sum(float(answers.token_logprobs[places[b]]) for b in range(offset + 1, end) if b in places)
                at = t * len(candidates) // len(tokens)
                masses: dict[int, float] = {}
                for place in range(at, at + k):
                    logprob = float(answers.candidate_logprobs[place])
                    if candidates[place] == tokens[t]:
                        target, logprob = id_, logprob + joint
                    else:
                        found = tokenizer.encode(candidates[place].decode("utf-8", "ignore"), add_special_tokens=False)
                        if not found:
                            continue
                        target = found[0]
                    if target in masses:
                        logprob = float(np.logaddexp(masses[target], logprob))
                    masses[target] = logprob
                kept = sorted(masses.items(), key=lambda pair: -pair[1])[:k]
                other = math.log(max(1e-8, 1 - sum(math.exp(value) for _, value in kept)))
                rows.append((id_, kept, other))
            offset = end
        start += length
    return rows


def check_agreement(plain: list[tuple[int, list[tuple[int, float]], float]], top: TopK) -> None:
    """Both ways give the same mass to the likeliest candidate nearly everywhere (pieces of characters differ)."""
    assert len(plain) == len(top.other)
    best = np.array([kept[0][1] for _, kept, _ in plain])
    agreeing = np.isclose(best, top.logprobs[:, 0], atol=1e-4).mean()
    assert agreeing > 0.99, f"the two ways agree at {agreeing:.1%} of the positions only"


# --- coverage --------------------------------------------------------------------------------------------------------


def coverage(teacher_name: str, student_name: str, text: str, under: Path) -> dict[str, Any]:
    """One row of the table; each document is one completion with the sampled token as only candidate."""
    teacher = load_tokenizer(tokenizer_folder(teacher_name, under))
    student = Student(tokenizer_folder(student_name, under))
    table = id_to_bytes(teacher)
    rows = [
        [table[i] for i in teacher(part, add_special_tokens=False, verbose=False)["input_ids"]]
        for part in text.split("\n\n")
        if part
    ]
    tokens = [token for row in rows for token in row]
    logprobs = np.full(len(tokens), math.log(0.5), dtype=np.float32)
    answers = RawAnswers(
        text=[part.encode() for part in text.split("\n\n") if part],
        messages=["[]"] * len(rows),
        finish_reason=["length"] * len(rows),
        response_lengths=np.array([len(row) for row in rows], dtype=np.int64),
        tokens=pa.array(tokens, pa.binary()),
        token_logprobs=logprobs,
        candidate_counts=np.ones(len(tokens), dtype=np.int64),
        candidates=pa.array(tokens, pa.binary()),
        candidate_logprobs=logprobs,
    )
    counted: Counter[str] = Counter()
    aligned = Aligner(student, None, "product").align(answers, counted, no_mass())
    bare = Aligner(student, None, "first_subtoken").align(answers, Counter(), no_mass())
    spoilt = (bare.candidate_ids != bare.response_ids[bare.kd_rows]).sum()
    positions = len(aligned.response_ids)
    return {
        "teacher": teacher_name,
        "student": student_name,
        "teacher_tokens": len(tokens),
        "student_tokens": positions,
        "kd_coverage": round(len(aligned.kd_rows) / positions, 4),
        "spans_of_several": round(counted["spans_of_several_tokens"] / len(aligned.kd_rows), 4),
        "spoilt_by_the_bare_rule": round(int(spoilt) / len(aligned.kd_rows), 4),
        "inside": round(counted["ce_only_inside_a_teacher_token"] / positions, 4),
        "normalised": round(counted["ce_only_normalised"] / positions, 4),
        "text_differs": round(counted["ce_only_text_differs"] / positions, 4),
    }


def coverage_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| teacher | student | teacher tokens | student tokens | KD | inside | normalised | spans several |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{row[name]:.1%}" for name in ("kd_coverage", "inside", "normalised", "spans_of_several"))
        lines.append(
            f"| {row['teacher']} | {row['student']} | {row['teacher_tokens']:,} | {row['student_tokens']:,} "
            f"| {shares} |"
        )
    return "\n".join(lines)


def sample_text() -> str:
    """Prose, code, JSON and many scripts, in paragraphs: the quickstart's corpus and a text beside this file."""
    corpus = Path(__file__).parents[1] / "manifests" / "data" / "corpus.jsonl"
    prose = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    return "\n\n".join([*prose, (Path(__file__).parent / "texts" / "many_scripts.txt").read_text(encoding="utf-8")])


if __name__ == "__main__":
    main()
