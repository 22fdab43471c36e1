"""calibrate: a full-precision checkpoint becomes the ternary student that training starts from."""

from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.environment import cpu_name
from bitnet_cli.manifest.stage_needs import CALIBRATE
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest


def run(context: Context) -> dict[str, Any]:
    manifest = context.manifest
    assert manifest.student is not None
    assert manifest.calibration is not None
    assert manifest.train is not None
    from bitnet_core.calibration.calibrate import Calibration, calibrate

    checkpoint = tokenizer_and_start.starting_weights(context)
    assert checkpoint is not None
    record = calibrate(
        Calibration(
            data_folder=context.folder / "data",
            tokenizer_folder=tokenizer_and_start.tokenizer_folder(context),
            checkpoint=checkpoint,
            folder=(context.folder / run_folder.CALIBRATED_FOLDER).parent,
            student=tokenizer_and_start.student_config(manifest),
            config=manifest.calibration,
            max_seq_len=manifest.train.max_seq_len,
            precision=manifest.train.precision,
            seed=context.seed,
            fingerprint=context.fingerprint,
        ),
        context.on_progress,
    )
    run_folder.write_json(
        context.folder / run_folder.CALIBRATION, record | {"machine": cpu_name(), "start": start_of(manifest)}
    )
    error = record["layers"][-1]["stream_error"]
    return {
        "headline": f"{record['tokens']:,} tokens, {len(record['layers'])} layers, relative error {error:.3f}",
        "tokens": record["tokens"],
        "documents": record["documents"],
        "stream_error": error,
        "cpu_seconds": round(record["cpu_seconds"], 1),
    }


def start_of(manifest: "Manifest") -> str:
    """What is calibrated, as the manifest names it."""
    assert manifest.student is not None
    if manifest.student.init_from != tokenizer_and_start.TEACHER or manifest.teacher is None:
        return manifest.student.init_from
    return f"{manifest.teacher.kind} {getattr(manifest.teacher.options, 'model', '')}"


STAGE = Stage(
    facts=CALIBRATE,
    run=run,
    reads=(run_folder.TRACES,),
    writes=(run_folder.CALIBRATED, run_folder.CALIBRATION),
    sections=("calibration", "train.max_seq_len", "train.precision", "project.tokenizer", "run.seed"),
    check=tokenizer_and_start.student_problems,
    idle=tokenizer_and_start.why_not_calibrated,
    dependencies=tokenizer_and_start.teacher_of_start,
    ignores=(*run_folder.TEACHER_SPEED, "teacher.device", "teacher.dtype", "student.freeze_embeddings"),
    formats={"KD shard": 2, "calibration": 2},
    goes_on_from="calibration/.work/calibration.json",
    keeps_former=True,
)
