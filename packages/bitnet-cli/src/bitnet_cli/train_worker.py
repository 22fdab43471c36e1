"""One process of a training on several devices: ``torchrun ... -m bitnet_cli.train_worker RUN/stages/train/job.json``.

The file names the resolved manifest and holds the rest of the training's `Job`. The first process prints JSON lines:
progress, then the summary or an error.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.errors import UserError, problem_of
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.load import load_plugins
from bitnet_cli.stages.train import job_settings


def main(job_file: str) -> int:
    from bitnet_core.errors import CoreError
    from bitnet_core.training.job import Job
    from bitnet_core.training.loop import train

    stored: dict[str, Any] = json.loads(Path(job_file).read_text())
    reports = os.environ.get("RANK", "0") == "0"

    def report(**event: Any) -> None:
        if reports:
            print(json.dumps(event), flush=True)

    try:
        plugins = load_plugins(os.environ)
        manifest = load_manifest(Path(stored.pop("manifest")), (), plugins, os.environ)
        job = Job.from_json(stored, **job_settings(manifest, plugins))
        summary = train(job, lambda done, total, note: report(progress=[done, total, note]))
    except (CoreError, UserError) as error:
        report(error=attrs.asdict(problem_of(error)))
        return 2
    report(summary=summary)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads have been seen to abort the interpreter's own way out
