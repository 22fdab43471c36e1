"""Where traces lie: a run folder holds them in ``data/``."""

from pathlib import Path

from bitnet_core.errors import CoreError
from bitnet_core.traces.parquet import shard_files
from bitnet_core.traces.schema import MADE_BY, SHARDS


def trace_files(run_or_folder: Path) -> list[Path]:
    """The KD shards of a run folder, of a folder of shards, or the one file given, by name.

    Raises CoreError where there is none.
    """
    if run_or_folder.is_file():
        return [run_or_folder]
    data = run_or_folder / "data"
    folder = data if data.is_dir() and not list(run_or_folder.glob(SHARDS)) else run_or_folder
    return shard_files(folder, SHARDS, MADE_BY)


def traces_tokenizer(run_or_folder: Path, raw: object) -> Path:
    """A folder with the traces' tokenizer: the run's newest checkpoint, else the local teacher's own folder.

    raw: the traces' raw metadata. Raises CoreError where neither is there.
    """
    candidates = sorted(
        run_or_folder.glob("checkpoints/step_*/tokenizer.json"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    if candidates:
        return candidates[0].parent
    teacher = raw.get("teacher") if isinstance(raw, dict) else None
    folder = teacher.get("model_folder") if isinstance(teacher, dict) else None
    if folder and Path(folder).is_dir():
        return Path(folder)
    raise CoreError(f"{run_or_folder}: no tokenizer is known for these traces; name its folder with --tokenizer")
