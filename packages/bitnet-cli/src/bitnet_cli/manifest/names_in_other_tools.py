"""What settings are called elsewhere (transformers, TRL, Axolotl), and where they are here."""

from collections.abc import Sequence

from bitnet_cli.wording.did_you_mean import did_you_mean

_EPOCHS = "train.steps counts batches: an epoch has documents / train.batch_size of them"
ELSEWHERE = {
    "lr": "train.learning_rate",
    "learning_rate": "train.learning_rate",
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "num_train_epochs": _EPOCHS,
    "max_steps": "train.steps",
    "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "max_seq_length": "train.max_seq_len",
    "max_length": "train.max_seq_len",
    "sequence_len": "train.max_seq_len",
    "max_grad_norm": "train.clip_norm",
    "warmup_ratio": "train.warmup_steps",
    "lr_scheduler_type": "train.schedule",
    "bf16": 'train.precision = "bf16"',
    "fp16": 'train.precision = "fp16"',
    "report_to": "train.track",
    "logging_steps": "train.log_every",
    "eval_steps": "train.validate_every",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.keep_checkpoints",
    "temperature": "collect.temperature for answers, loss.tau for the loss",
    "loss.temperature": "loss.tau",
    "loss.alpha": "loss.ce_weight",
    "seed": "run.seed",
    "output_dir": "store.root and run.name",
    "model_name_or_path": "teacher.model",
    "base_model": "teacher.model",
    "dataset_name": "collect.dataset.name",
    "datasets": "collect.prompts, collect.texts or [collect.dataset]",
}
"""A key as others write it → the key here, or what there is in its place."""


def hint(name: str, known: Sequence[str], section: str = "") -> str:
    """The fix for a key that is unknown in `section`: a near name, where it is here, or what there is."""
    plain = name.casefold().replace("-", "_")
    here = ELSEWHERE.get(f"{section}.{plain}", ELSEWHERE.get(plain))
    if here is None:
        return did_you_mean(name, known)
    return here if here is _EPOCHS else f"here it is {here}"
