"""The data and the scores of ``bitnet_json``. bitnet-core must be installed; nothing of it but its JSON rules is used.

Scores of an answer: ``parsed`` (it is JSON), ``valid`` (JSON of the schema), ``exact`` (the very values).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_core.benchmarks.json_validity import conforms, parse_answer

DATA = Path(__file__).parent / "bitnet_json.jsonl"


def load_data(**_: Any) -> dict[str, Any]:
    """Split → `datasets.Dataset`. Schema and answer are texts there: a table's column is of one type."""
    from datasets import Dataset

    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    splits: dict[str, list[dict[str, str]]] = {}
    for record in records:
        keys = ", ".join(f"{name} ({kind['type']})" for name, kind in record["schema"]["properties"].items())
        splits.setdefault(record["split"], []).append(
            {
                "text": record["text"],
                "keys": keys,
                "schema": json.dumps(record["schema"]),
                "answer": json.dumps(record["answer"], ensure_ascii=False),
            }
        )
    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def process_results(doc: Mapping[str, str], results: list[str]) -> dict[str, float]:
    try:
        value = parse_answer(results[0])
    except ValueError:
        return {"parsed": 0.0, "valid": 0.0, "exact": 0.0}
    valid = conforms(value, json.loads(doc["schema"]))
    return {"parsed": 1.0, "valid": float(valid), "exact": float(valid and value == json.loads(doc["answer"]))}
