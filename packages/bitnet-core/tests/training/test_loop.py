import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import CHECKPOINT_START, TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.hardware import autocast_dtype, half_dtype
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.choose_checkpoint import checkpoints, latest_checkpoint
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.read_checkpoint import read_state
from bitnet_core.training import data_checks, loop, save_and_resume, setup
from bitnet_core.training import metrics as metrics_file
from bitnet_core.training.metrics import progress_note


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_student_learns_and_flips(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    summary = run("a", attrs.evolve(settings, steps=60, flip_fraction=0.75))
    metrics = rows(tmp_path / "a/metrics.jsonl")
    assert metrics[-1]["validation_kl"] < 0.5 * metrics[3]["validation_kl"]
    bits = [row["bits"] for row in metrics]
    assert set(bits) == {8, 4}
    first = bits.index(4)  # the first step that ran at A4 is the one after the mark was reached
    assert metrics[first - 2]["seen_tokens"] < 0.75 * summary["budget_tokens"] <= metrics[first - 1]["seen_tokens"]
    assert summary["flip"] == f"step {metrics[first]['step']}"
    assert summary["seen_tokens"] == summary["budget_tokens"]
    newest = latest_checkpoint(tmp_path / "a/checkpoints")
    assert BitNetKDEForCausalLM.from_pretrained(newest).config.activation_bits == 4
    health = json.loads((tmp_path / "a/checkpoints/step_60_health.json").read_text())
    assert health["seen_tokens"] == summary["seen_tokens"]
    for layer in health["layers"].values():
        assert layer["minus"] + layer["zero"] + layer["plus"] == pytest.approx(1)
    assert max(layer["flipped"] for layer in health["layers"].values()) > 0


class KilledError(Exception):
    """Stands for a kill at any place: nothing after it runs."""


@pytest.mark.slow
@pytest.mark.parametrize(("killed_at", "packing"), [(5, False), (7, False), (11, False), (7, True)])
def test_going_on_gives_the_same_weights_bit_for_bit(
    run: Any, settings: TrainConfig, tmp_path: Path, killed_at: int, packing: bool
) -> None:
    settings = attrs.evolve(settings, packing=packing, max_seq_len=45)

    def kill(done: int, total: int, note: str) -> None:
        if done == killed_at:
            raise KilledError

    run("whole", settings)
    with pytest.raises(KilledError):
        run("killed", settings, on_progress=kill)
    summary = run("killed", settings)
    assert (summary["resumed_from"] is None) == (killed_at == 5)  # step 5 is saved after its line of progress
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints/step_12/model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name

    def comparable(name: str) -> list[dict[str, Any]]:
        return [row | {"tokens_per_second": 0} for row in rows(tmp_path / name / "metrics.jsonl")]

    assert comparable("whole") == comparable("killed")


def test_packing_changes_nothing_but_the_padding(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    one_step = attrs.evolve(settings, steps=1, batch_size=9, flip_fraction=1.0, max_seq_len=45)
    run("alone", one_step)
    run("packed", attrs.evolve(one_step, packing=True))
    alone, packed = (rows(tmp_path / name / "metrics.jsonl")[0] for name in ("alone", "packed"))
    assert packed["seen_tokens"] == alone["seen_tokens"]
    for name in ("loss", "kd", "ce", "grad_norm"):
        assert packed[name] == pytest.approx(alone[name], rel=1e-4), name


def test_a_finished_training_is_not_repeated(run: Any, settings: TrainConfig) -> None:
    first = run("a", settings)
    steps = []
    second = run("a", settings, on_progress=lambda done, total, note: steps.append(done))
    assert steps == []
    assert second["last"] == first["last"]


def test_other_settings_start_over(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", settings)
    summary = run("a", attrs.evolve(settings, steps=4), fingerprint="other settings")
    assert summary["resumed_from"] is None
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_4"]
    assert not (tmp_path / "a/checkpoints/step_12_health.json").exists()
    aside = tmp_path / "a/set_aside/these se/checkpoints"
    assert [path.name for path in checkpoints(aside)] == ["step_10", "step_12"]
    assert (aside / "step_12_health.json").exists()
    assert f"step_12 is of a training with other settings: it is set aside in {aside}" in summary["warnings"]
    assert len(rows(tmp_path / "a/metrics.jsonl")) == 4


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "two_stage"])
def test_a_training_whose_steps_are_raised_goes_on_from_its_last_checkpoint(
    run: Any, settings: TrainConfig, tmp_path: Path, schedule: str
) -> None:
    short = attrs.evolve(settings, steps=4, schedule=schedule, checkpoint_every=2)
    run("a", short, lineage="alike")
    summary = run("a", attrs.evolve(short, steps=7), fingerprint="more steps", lineage="alike")
    assert (summary["resumed_from"], summary["steps"]) == ("step_4", 7)
    assert summary["warnings"][0].startswith("goes on at step 4 ")
    assert ("its learning rate goes from" in summary["warnings"][0]) == (schedule != "wsd")
    assert "its activations stay at 4 bits" in summary["warnings"][0]
    assert summary["flip"] == "by step 4, in the shorter training that this one goes on from"
    assert "step_4" in [path.name for path in checkpoints(tmp_path / "a/checkpoints")]
    assert not (tmp_path / "a/set_aside").exists()
    assert run("a", attrs.evolve(short, steps=7), fingerprint="more steps", lineage="alike")["resumed_from"] == "step_7"
    # step 7 of 7 is no step of a training of 5, but step 4 of 4 is; another lineage is another training
    summary = run("a", attrs.evolve(short, steps=5), fingerprint="fewer steps", lineage="alike")
    assert summary["resumed_from"] == "step_4"
    assert "step_7" in [path.name for path in checkpoints(tmp_path / "a/set_aside/more ste/checkpoints")]
    assert run("a", attrs.evolve(short, steps=9), fingerprint="another", lineage="b")["resumed_from"] is None


def test_a_constant_learning_rate_goes_on_as_if_more_had_been_planned_at_first(
    run: Any, settings: TrainConfig, tmp_path: Path
) -> None:
    """Stopped before its decay, a training of more steps is bit for bit the one that had them from the first."""
    constant = attrs.evolve(
        settings, steps=6, schedule="wsd", decay_fraction=0.2, warmup_steps=1, checkpoint_every=2, flip_fraction=1.0
    )
    more = attrs.evolve(constant, steps=8)

    class KilledError(Exception):
        pass

    def kill(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run("a", constant, lineage="alike", on_progress=kill)
    summary = run("a", more, fingerprint="more", lineage="alike")
    assert summary["warnings"][0] == "goes on at step 4 as if train.steps had been 8 from the first"
    run("whole", more, fingerprint="more")
    grown, whole = (load_file(tmp_path / name / "checkpoints/step_8/model.safetensors") for name in ("a", "whole"))
    assert all(torch.equal(tensor, grown[name]) for name, tensor in whole.items())


def test_weights_that_are_ternary_do_not_go_back_where_steps_are_raised(
    run: Any, settings: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm-up that nobody set grows with the steps, but not that of a training that has begun."""
    shares: list[float] = []
    monkeypatch.setattr(loop, "set_ternary_share", lambda model, share: shares.append(share))
    monkeypatch.setattr(setup, "kind_of_start", lambda job: CHECKPOINT_START)
    five = attrs.evolve(settings, steps=5, checkpoint_every=1, flip_fraction=1.0)
    run("a", five, lineage="alike")
    assert shares == [0, 0.5, 1, 1, 1]
    summary = run("a", attrs.evolve(five, steps=8), fingerprint="more", lineage="alike")
    assert shares[5:] == [1, 1, 1]
    assert "its ternary warm-up stays 2 steps, not 3" in summary["warnings"][0]
    run("a", attrs.evolve(five, steps=10), fingerprint="still more", lineage="alike")
    assert shares[8:] == [1, 1]

    def kill(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run("b", five, lineage="alike", on_progress=kill)
    del shares[:]
    run("b", attrs.evolve(five, steps=10), fingerprint="more", lineage="alike")
    assert shares[:3] == [0.5, 1, 1]
    set_by_hand = attrs.evolve(five, ternary_warmup_steps=4)
    del shares[:]
    run("c", set_by_hand, lineage="alike")
    run("c", attrs.evolve(set_by_hand, steps=8), fingerprint="more", lineage="alike")
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_a_training_at_4_bits_from_the_start_speaks_of_no_flip(
    run: Any, settings: TrainConfig, student: StudentConfig
) -> None:
    notes: list[str] = []
    student = attrs.evolve(student, activation_bits=4)
    settings = attrs.evolve(settings, steps=2)
    summary = run("a", settings, student=student, on_progress=lambda done, total, note: notes.append(note))
    assert summary["flip"] == "never: activations have 4 bits from the start"
    assert summary["flip"] in notes[0]


def test_documents_beyond_the_students_context_are_told(
    run: Any, settings: TrainConfig, student: StudentConfig
) -> None:
    student = attrs.evolve(student, max_position_embeddings=8)
    settings = attrs.evolve(settings, steps=1, warmup_steps=1)
    (said,) = run("a", settings, student=student)["warnings"]
    assert said.startswith("training documents have up to 19 tokens and the student a context of 8, ")
    assert run("b", attrs.evolve(settings, max_seq_len=8), student=student)["warnings"][-1] != said


def test_a_raised_budget_goes_on(run: Any, settings: TrainConfig) -> None:
    small = attrs.evolve(settings, budget_tokens=150)
    first = run("a", small, lineage="alike")
    more = run("a", attrs.evolve(small, budget_tokens=300), fingerprint="more", lineage="alike")
    assert more["resumed_from"] == first["checkpoint"]
    assert more["seen_tokens"] >= 300


def test_accumulation_is_the_big_batch(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    """Two batches of 3 that accumulate are one batch of 6: the same documents, one gradient, one normaliser."""
    one_epoch = attrs.evolve(settings, steps=1, batch_size=18, flip_fraction=1.0)
    run("big", one_epoch)
    run("small", attrs.evolve(one_epoch, batch_size=3, accumulation=6))
    big, small = (load_file(tmp_path / name / "checkpoints/step_1/training.safetensors") for name in ("big", "small"))
    for name in big:
        if name.endswith("exp_avg"):
            torch.testing.assert_close(big[name], small[name], rtol=1e-3, atol=1e-7)
    assert rows(tmp_path / "big/metrics.jsonl")[0]["kd"] == pytest.approx(
        rows(tmp_path / "small/metrics.jsonl")[0]["kd"], rel=1e-5
    )


def test_only_the_newest_checkpoints_are_kept(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", attrs.evolve(settings, checkpoint_every=2, keep_checkpoints=3))
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_8", "step_10", "step_12"]


def test_a_budget_ends_the_training(run: Any, settings: TrainConfig) -> None:
    summary = run("a", attrs.evolve(settings, budget_tokens=150))
    assert 150 <= summary["seen_tokens"] < 300
    assert summary["steps"] < 12


def test_non_finite_loss_stops_and_keeps_the_batch(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    plain = load_loss(TopKOtherConfig())

    def poisoned(hidden: Any, head: Any, batch: Any, normaliser: Any) -> Any:
        value, metrics = plain(hidden, head, batch, normaliser)
        steps = rows(tmp_path / "a/metrics.jsonl") if (tmp_path / "a/metrics.jsonl").exists() else []
        return (value * float("nan") if len(steps) == 6 else value), metrics

    with pytest.raises(CoreError, match=r"became nan at step 6.*checkpoint is intact  → lower train\.learning_rate"):
        run("a", settings, loss=poisoned)
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_5"]
    batch = load_file(tmp_path / "a/nonfinite_batch_step_6.safetensors")
    assert batch["topk_ids"].shape[-1] == 4


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:50])


def flip_header(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 0xFF
    content[7] ^= 0xFF
    file.write_bytes(content)


def rename_a_tensor(file: Path) -> None:
    """A damaged name in the header: transformers alone would put random numbers in the tensor's place."""
    file.write_bytes(file.read_bytes().replace(b"embed_tokens", b"embed_tokenz", 1))


DAMAGE = [
    ("model.safetensors", truncate),
    ("model.safetensors", flip_header),
    ("model.safetensors", rename_a_tensor),
    ("model.safetensors", Path.unlink),
    ("training.safetensors", truncate),
    ("training.safetensors", Path.unlink),
    ("config.json", truncate),
    ("training.json", truncate),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_checkpoint_is_stepped_over(
    run: Any, settings: TrainConfig, tmp_path: Path, name: str, damage: Any
) -> None:
    first = run("a", settings)
    folder = tmp_path / "a/checkpoints"
    good = (folder / "step_12/model.safetensors").read_bytes()
    damage(folder / "step_12" / name)
    second = run("a", settings)
    assert second["resumed_from"] == "step_10"
    (said,) = second["damaged"]
    assert f"step_12/{name}: not a complete checkpoint" in said
    assert said in second["warnings"]
    assert (folder / "step_12/model.safetensors").read_bytes() == good
    assert second["last"] | {"tokens_per_second": 0} == first["last"] | {"tokens_per_second": 0}


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_without_a_whole_checkpoint_the_damaged_one_is_named(
    run: Any, settings: TrainConfig, tmp_path: Path, name: str, damage: Any
) -> None:
    run("a", attrs.evolve(settings, steps=1))
    damage(tmp_path / "a/checkpoints/step_1" / name)
    with pytest.raises(CoreError, match=rf"step_1.{name}: not a complete checkpoint.*delete the folder .*step_1 and"):
        run("a", attrs.evolve(settings, steps=1))


def test_a_checkpoint_of_another_version_is_refused(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", settings)
    state = tmp_path / "a/checkpoints/step_12/training.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 99}))
    with pytest.raises(CoreError, match="checkpoint format 99, this version reads 1 and 2"):
        read_state(state.parent)


def test_bf16_autocast(run: Any, settings: TrainConfig) -> None:
    exact, rounded = run("a", settings), run("b", attrs.evolve(settings, precision="bf16"))
    assert rounded["autocast"] == "bfloat16"
    assert rounded["last"]["loss"] == pytest.approx(exact["last"]["loss"], rel=0.2)
    assert rounded["last"]["loss"] != exact["last"]["loss"]


def test_frozen_embeddings_stay(run: Any, settings: TrainConfig, student: StudentConfig, tmp_path: Path) -> None:
    frozen = attrs.evolve(student, freeze_embeddings=True)
    run("a", attrs.evolve(settings, steps=1), student=frozen)
    start = load_file(tmp_path / "a/checkpoints/step_1/model.safetensors")["model.embed_tokens.weight"]
    run("b", settings, student=frozen)
    end = load_file(tmp_path / "b/checkpoints/step_12/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(start, end)


def test_flip_from_the_first_step(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    summary = run("a", attrs.evolve(settings, steps=2, flip_fraction=0.0))
    assert [row["bits"] for row in rows(tmp_path / "a/metrics.jsonl")] == [4, 4]
    assert summary["flip"] == "step 1"


def test_no_flip_after_the_last_step(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    """The student ends as it was trained: the mark is reached by the last step, and none is left to run at A4."""
    summary = run("a", attrs.evolve(settings, steps=3, flip_fraction=0.99))
    assert [row["bits"] for row in rows(tmp_path / "a/metrics.jsonl")] == [8, 8, 8]
    assert read_state(tmp_path / "a/checkpoints/step_3").bits == summary["bits"] == 8
    assert summary["flip"].startswith("never: the run sees ")
    assert "no step is left" in summary["flip"]


def test_a_run_too_short_for_its_flip_says_so_at_its_start(run: Any, settings: TrainConfig) -> None:
    notes: list[str] = []
    summary = run(
        "a",
        attrs.evolve(settings, steps=2, budget_tokens=100_000),
        on_progress=lambda done, total, note: notes.append(note),
    )
    assert summary["flip"] == f"never: the run sees {summary['seen_tokens']:,} of 100,000 tokens"
    assert summary["flip"] in notes[0]


def test_max_seq_len_below_every_prompt(run: Any, settings: TrainConfig) -> None:
    with pytest.raises(CoreError, match=r"train\.max_seq_len = 3: the prompts are 3 tokens long  → set train\.max"):
        run("a", attrs.evolve(settings, max_seq_len=3))


def test_documents_that_lose_all_targets_are_counted(
    run: Any, settings: TrainConfig, traces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = data_checks.KDTraceDataset.batch

    def longer_prompts(self: Any, documents: Any, *rest: Any) -> Any:
        batch = whole(self, documents, *rest)
        first_two = torch.tensor([int(document) < 2 for document in documents])
        batch["is_prompt"][first_two] = True
        batch["has_kd"][first_two] = False
        return batch

    monkeypatch.setattr(data_checks.KDTraceDataset, "batch", longer_prompts)
    summary = run("a", attrs.evolve(settings, steps=1, max_seq_len=6, warmup_steps=1))
    cut, nothing = summary["warnings"]
    assert cut == "18 training documents lose their end: train.max_seq_len = 6 cuts 60% of all positions off"
    assert nothing == "2 training documents teach nothing: their prompts fill train.max_seq_len = 6"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, b"junk\n", b'{"step": 12}\n{"loss": 1}\n[]\n{"step": "x"}\n\xff}\n'])
def test_damaged_metrics_do_not_stop_a_finished_training(
    run: Any, settings: TrainConfig, tmp_path: Path, damage: bytes | None
) -> None:
    first = run("a", settings)
    metrics = tmp_path / "a/metrics.jsonl"
    if damage is None:
        metrics.unlink()
    else:
        metrics.write_bytes(metrics.read_bytes() + damage)
    assert run("a", settings)["last"] == first["last"]
    if damage is not None:
        assert [row["step"] for row in rows(metrics)][:12] == list(range(1, 13))


def test_metrics_are_cut_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        metrics_file.append_row(file, {"step": step})
    before = file.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        metrics_file.keep_rows_up_to(file, 2)
    assert file.read_bytes() == before
    monkeypatch.undo()
    metrics_file.keep_rows_up_to(file, 2)
    assert [row["step"] for row in rows(file)] == [1, 2]


def test_a_full_disk_leaves_no_partial_checkpoint(
    run: Any, settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, file: Path) -> None:
        if "step_10" in str(file):
            raise OSError("No space left on device")
        save_file(tensors, file)

    monkeypatch.setattr(save_and_resume, "save_file", full)
    with pytest.raises(CoreError, match=r"step_10: .*No space left.*free some space"):
        run("a", settings)
    folder = tmp_path / "a/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_5", "step_5_health.json"]


def test_partials_of_a_killed_run_are_removed(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    left = tmp_path / "a/checkpoints/.step_99.partial"
    left.mkdir(parents=True)
    run("a", attrs.evolve(settings, steps=1))
    assert not left.exists()


def test_the_time_left_is_to_the_steps_or_the_budget() -> None:
    row = {"step": 10, "seen_tokens": 1_000, "loss": 2.0, "kd": 1.5, "bits": 8, "tokens_per_second": 50.0}
    assert progress_note(row, 4_000, 40) == "loss 2.000  kd 1.500  A8  50 tok/s  60 s left"
    assert progress_note(row, 4_000, 15).endswith("  10 s left"), "the steps end first"
    assert progress_note(row, 31_000, 1_000).endswith("  10 min left"), "the budget ends first"
    assert progress_note(row, 1_000, 40).endswith("  0 s left")


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(CoreError, match="use bf16 or fp32 on a CPU"):
        autocast_dtype("fp16", torch.device("cpu"))
    assert autocast_dtype("fp16", torch.device("cuda")) is torch.float16


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bf16_trains_in_fp16(
    has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4, which emulates it."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert autocast_dtype("auto", torch.device("cuda")) is half_dtype(torch.device("cuda")) is expected
    assert half_dtype(torch.device("cpu")) is torch.bfloat16


def test_neither_teacher_distributions_nor_cross_entropy(run: Any, settings: TrainConfig, sequence_traces: Any) -> None:
    silent = load_loss(TopKOtherConfig(ce_weight=0.0, format_weight=0.0))
    with pytest.raises(CoreError, match=r"no KD positions, and loss\.ce_weight is 0"):
        run("a", settings, data_folder=sequence_traces.data, loss=silent)
