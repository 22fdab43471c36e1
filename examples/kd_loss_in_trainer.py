"""The KD loss in transformers' `Trainer`: one method, and a collator that asks the teacher.

    uv run python examples/kd_loss_in_trainer.py

With traces on the disk (a hosted teacher, or one that was asked before) the collator is `bitnet_core.collate_fn` over
`KDTraceDataset`, as in traces_to_tensors.py, and no teacher is loaded at all.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from kd_loss_in_a_loop import OPTIONS, VOCABULARY, kd_batch, tiny_llama  # the file beside this one
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from bitnet_core import chunked_combined_loss

PROMPT = 4


class KDTrainer(Trainer):
    """A `Trainer` whose loss is bitnet-core's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Ours is divided by the tokens of all accumulated batches; Trainer must not divide it once more.
        self.loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        # The last position's logits are all that the head computes here; the loss does the rest, chunk by chunk.
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
            output_hidden_states=True, logits_to_keep=1,
        )  # fmt: skip
        head = self.accelerator.unwrap_model(model).lm_head.weight
        loss, _ = chunked_combined_loss(outputs.hidden_states[-1], head, inputs, OPTIONS, normaliser=num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class Collator:
    """Examples to a batch with the teacher's targets. `labels` is only counted: −100 where nothing is learnt."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher

    def __call__(self, examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids_BT = torch.stack([example["input_ids"] for example in examples])
        batch = kd_batch(self.teacher, ids_BT, torch.ones_like(ids_BT), PROMPT)
        return batch | {"labels": torch.where(batch["has_kd"] | ~batch["is_prompt"], ids_BT, -100)}


def main(steps: int = 12) -> list[float]:
    """The loss of every logged step."""
    teacher, student = tiny_llama(0, width=64).eval(), tiny_llama(1, width=32)
    examples = [{"input_ids": ids} for ids in torch.randint(0, VOCABULARY, (16, 24))]
    with tempfile.TemporaryDirectory() as folder:
        trainer = KDTrainer(
            model=student,
            args=TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                learning_rate=1e-2, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True,
                remove_unused_columns=False,  # the targets are none of the model's arguments
                use_cpu=True,  # leave this out to train on a GPU
            ),
            train_dataset=examples,
            data_collator=Collator(teacher),
        )  # fmt: skip
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} nats a token after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
