"""``json_validity``: how many answers are JSON, and how many are JSON of the schema that was asked for."""

from bitnet_core.benchmarks.config import JSONValidityOptions
from bitnet_core.benchmarks.contract import Benchmark, Result, Score, Subject
from bitnet_core.benchmarks.json_answers import conforms, parse_answer
from bitnet_core.benchmarks.json_prompts import load_json_prompts


def load_json_validity(options: JSONValidityOptions) -> Benchmark:
    """Raises CoreError for a prompts file that can't be read."""
    prompts = load_json_prompts(options.prompts, options.max_prompts)

    def run(subject: Subject) -> Result:
        texts = subject.answers([prompt.messages for prompt in prompts], options.max_new_tokens)
        rows = []
        for prompt, text in zip(prompts, texts, strict=True):
            try:
                value = parse_answer(text)
            except ValueError:
                parsed = valid = False
            else:
                parsed, valid = True, conforms(value, prompt.schema)
            rows.append({"id": prompt.id, "text": text, "parsed": parsed, "valid": valid})
        scores = {
            name: Score(sums=[float(bool(row[name])) for row in rows], unit="share of answers")
            for name in ("parsed", "valid")
        }
        return Result(scores=scores, details={"max_new_tokens": options.max_new_tokens, "answers": rows})

    return run


def check(options: JSONValidityOptions) -> list[str]:
    """What is wrong with the prompts file, before anything else runs."""
    from bitnet_core.errors import CoreError

    try:
        load_json_prompts(options.prompts, options.max_prompts)
    except CoreError as error:
        return [str(error)]
    return []


def asks(options: JSONValidityOptions) -> tuple[int, int]:
    """(answers, tokens of each at most)."""
    return len(load_json_prompts(options.prompts, options.max_prompts)), options.max_new_tokens
