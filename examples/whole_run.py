"""A whole run from Python: the same as `bitnet run`, with the figures at hand afterwards.

    uv run python examples/whole_run.py manifests/quickstart.toml

What is done is skipped, as always; so a second call, or one with more stages, goes on from the first.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet_cli import run


def main(manifest: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The figures of the evaluation."""
    folder = run(manifest, {"run.seed": 1} | dict(settings or {}))
    figures: dict[str, Any] = json.loads((folder / "reports/mini_evaluation_report.json").read_text(encoding="utf-8"))
    print(f"{folder}: KL to the teacher {figures['heldout_kl']:.3f} nats a token, QEI {figures['qei']:.3f}")

    # The student is a transformers model once bitnet_core.model is imported.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import bitnet_core.model  # noqa: F401

    checkpoint = max(folder.glob("checkpoints/step_*/"), key=lambda path: int(path.name.removeprefix("step_")))
    student: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = student.generate(**prompt, max_new_tokens=8, do_sample=False)
    print(repr(tokenizer.decode(answer[0])))
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "manifests/quickstart.toml"))
