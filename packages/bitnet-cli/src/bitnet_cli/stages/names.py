"""What the stages hand to each other: paths and globs within the run folder."""

STORAGE = "reports/storage.json"
DRY_RUN = "reports/dry_run_7b.json"
"""Of whatever size [dry_run] says; the name is the 7B one's, for which it is there."""
BASELINE = "reports/teacher_baseline.json"
PROBE = "reports/teacher_probe.json"
COLLECTION = "reports/collection.json"
RAW = "raw/shard_*.parquet"
TRACES = "data/kd_shard_*.parquet"
CHECKPOINTS = "checkpoints/**/*"
METRICS = "logs/metrics.jsonl"
EVALUATION = "reports/mini_evaluation_report.json"
EXPORT = "reports/export.json"
"""What was exported, with sizes and figures; the files themselves are in exports/, which also `bitnet export` fills."""
FIGURES = "reports/figures/*.png"
REPORT = "report.md"
REPORT_HTML = "report.html"

BASELINE_JOURNAL = "raw/baseline"
"""A folder with what a paid teacher answered for its baseline."""

TEACHER_SPEED = ("teacher.batch_size",)
"""Settings of built-in teachers that change how fast they answer, not what."""
