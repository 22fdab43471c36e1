"""The pipeline: one small module a stage, in the order in which they run."""

from bitnet_cli.stages.baseline import STAGE as BASELINE
from bitnet_cli.stages.calibrate import STAGE as CALIBRATE
from bitnet_cli.stages.collect import STAGE as COLLECT
from bitnet_cli.stages.dry_run import STAGE as DRY_RUN
from bitnet_cli.stages.evaluate import STAGE as EVALUATE
from bitnet_cli.stages.export import STAGE as EXPORT
from bitnet_cli.stages.project import STAGE as PROJECT
from bitnet_cli.stages.report import STAGE as REPORT
from bitnet_cli.stages.storage import STAGE as STORAGE
from bitnet_cli.stages.train import STAGE as TRAIN

PIPELINE = (STORAGE, DRY_RUN, BASELINE, COLLECT, PROJECT, CALIBRATE, TRAIN, EVALUATE, EXPORT, REPORT)

__all__ = [
    "BASELINE",
    "CALIBRATE",
    "COLLECT",
    "DRY_RUN",
    "EVALUATE",
    "EXPORT",
    "PIPELINE",
    "PROJECT",
    "REPORT",
    "STORAGE",
    "TRAIN",
]
