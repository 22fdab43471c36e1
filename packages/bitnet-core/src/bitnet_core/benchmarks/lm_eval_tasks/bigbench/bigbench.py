"""The data of the two BIG-bench tasks (Srivastava et al. 2022), which lie beside this file.

Taken from bigbench 1.0.0, Apache-2.0 (its repository: google/BIG-bench), questions with exactly one right choice; the
first line of each file is BIG-bench's canary, which keeps it out of training corpora.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any


def _load(name: str, **_: Any) -> dict[str, Any]:
    """Split → `datasets.Dataset`."""
    from datasets import Dataset

    lines = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines[1:]])}


general_knowledge = partial(_load, "general_knowledge")
phrase_relatedness = partial(_load, "phrase_relatedness")
