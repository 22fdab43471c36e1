"""One process of a training on several devices: ``torchrun ... -m bitnet_cli.train_worker RUN/stages/train/job.json``.

The job names the resolved manifest and what the stage has found out; the first process prints JSON lines: progress,
then the summary or an error.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins import load_plugins
from bitnet_cli.stages.places import intermediate_terms


def main(job_file: str) -> int:
    from bitnet_core.errors import CoreError
    from bitnet_core.training.loop import train

    job: dict[str, Any] = json.loads(Path(job_file).read_text())
    talks = os.environ.get("RANK", "0") == "0"

    def tell(**event: Any) -> None:
        if talks:
            print(json.dumps(event), flush=True)

    try:
        plugins = load_plugins(os.environ)
        manifest = load_manifest(Path(job["manifest"]), (), plugins, os.environ)
        assert manifest.student is not None
        assert manifest.train is not None
        assert manifest.loss is not None
        paths: dict[str, Any] = {name: None if job[name] is None else Path(job[name]) for name in PATHS}
        summary = train(
            student=manifest.student,
            train=manifest.train,
            loss=plugins.require_loss(manifest.loss.kind).load(manifest.loss.options),
            intermediate=intermediate_terms(manifest),
            on_progress=lambda done, total, note: tell(progress=[done, total, note]),
            seed=job["seed"],
            fingerprint=job["fingerprint"],
            **paths,
        )
    except (CoreError, UserError) as error:
        tell(error=str(error))
        return 2
    tell(summary=summary)
    return 0


PATHS = (
    "data_folder",
    "tokenizer_folder",
    "teacher_folder",
    "intermediate_teacher",
    "checkpoint_folder",
    "metrics_file",
)
"""Entries of the job that are paths, by the names of `train`'s arguments."""

if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads have been seen to abort the interpreter's own way out
