"""Two processes (gloo on the CPU) train as one does: gradients, tokens, the flip, checkpoints either way."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

import training_process
from bitnet_core import ternarise
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.model.choose_checkpoint import latest_checkpoint
from bitnet_core.model.read_checkpoint import SHARDED, read_record, read_state
from training_process import train_as


@pytest.fixture(scope="module")
def pair() -> Iterator[list["subprocess.Popen[str]"]]:
    """Two processes that train together, whatever they are told; started once, for they import for seconds."""
    world = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(training_process.__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    yield started
    for process in started:
        process.communicate()


@pytest.fixture
def train_on(traces: Any, tmp_path: Path, pair: list["subprocess.Popen[str]"]) -> Any:
    def run(processes: int, name: str, student: StudentConfig, settings: TrainConfig, **more: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        spec = {
            "data": str(traces.data), "tokenizer": str(traces.tokenizer), "folder": str(folder),
            "student": attrs.asdict(student), "train": attrs.asdict(settings),
            **more,
        }  # fmt: skip
        if processes == 1:
            train_as(spec)
            return folder
        (folder / "spec.json").write_text(json.dumps(spec))
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun makes it so
        for process in pair:
            print(store.port, folder / "spec.json", file=process.stdin, flush=True)
        assert [process.stdout.readline() for process in pair] == ["done\n"] * 2
        return folder

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same_gradients(one: Path, two: Path) -> None:
    moments = [load_file(folder / "checkpoints/step_1/training.safetensors") for folder in (one, two)]
    assert moments[0].keys() == moments[1].keys()
    for name, value in moments[0].items():
        if name.endswith("exp_avg"):
            assert (10 * value - 10 * moments[1][name]).abs().max() <= 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("quantiser", ["lsq", "absmean_tensor"])
def test_two_processes_have_the_gradients_of_one(
    train_on: Any, student: StudentConfig, settings: TrainConfig, quantiser: str
) -> None:
    """AdamW's first moments after one step are a tenth of the clipped gradients; accumulation and uneven shares too."""
    student = attrs.evolve(student, weight_quantiser=quantiser)
    settings = attrs.evolve(settings, steps=1, batch_size=7, accumulation=3, flip_fraction=1.0)
    one, two = (train_on(n, f"{n}", student, settings) for n in (1, 2))
    check_same_gradients(one, two)
    assert rows(one)[0]["loss"] == pytest.approx(rows(two)[0]["loss"], rel=1e-5)

    health = [json.loads((f / "checkpoints/step_1_health.json").read_text())["layers"] for f in (one, two)]
    assert health[0].keys() == health[1].keys()
    for name, layer in health[0].items():  # of whole layers, not of a process's rows
        assert layer == pytest.approx(health[1][name], abs=2e-3)


def plain_llama(folder: Path) -> StudentConfig:
    """Stored in bfloat16, with more rows than two processes share evenly."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 33}
    config = LlamaConfig(hidden_size=32, intermediate_size=51, tie_word_embeddings=False, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return StudentConfig(init_from=str(folder))


def layers_twice_and_rotated(folder: Path) -> StudentConfig:
    plain_llama(folder)
    config = LlamaConfig.from_pretrained(folder)
    config.intermediate_size = 64
    LlamaForCausalLM(config).save_pretrained(folder)
    return StudentConfig(init_from=str(folder), layers=(2, 0, 2), hadamard=True, sublayer_norm=True)


def ternary_gemma(folder: Path) -> StudentConfig:
    """As calibration leaves another architecture: with buffers that a model on the meta device has not got."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 33}
    config = Gemma3TextConfig(num_attention_heads=4, num_key_value_heads=1, eos_token_id=1, **sizes)
    model = Gemma3ForCausalLM(config)
    ternarise(model)
    model.save_pretrained(folder)
    return StudentConfig(init_from=str(folder), architecture="gemma3_text")


@pytest.mark.slow
def test_validation_is_of_ternary_weights_while_they_become_so(
    train_on: Any, student: StudentConfig, settings: TrainConfig
) -> None:
    settings = attrs.evolve(settings, steps=1, ternary_warmup_steps=4, flip_fraction=1.0)
    one, two = (rows(train_on(n, f"{n}", student, settings))[0]["validation_kl"] for n in (1, 2))
    assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [plain_llama, layers_twice_and_rotated, ternary_gemma])
def test_each_process_reads_its_rows_of_the_start(
    train_on: Any, settings: TrainConfig, tmp_path: Path, make: Callable[[Path], StudentConfig]
) -> None:
    """The digest is of all weights before the first step, the scales among them."""
    student = make(tmp_path / "start")
    settings = attrs.evolve(settings, steps=1, flip_fraction=1.0)
    one, two = (train_on(n, f"{n}", student, settings) for n in (1, 2))
    check_same_gradients(one, two)
    starts = [read_state(folder / "checkpoints/step_1").start for folder in (one, two)]
    assert starts[0] == starts[1]
    assert rows(one)[0]["loss"] == pytest.approx(rows(two)[0]["loss"], rel=1e-5)
    for name in ("config.json", "generation_config.json"):
        assert (one / "checkpoints/step_1" / name).read_text() == (two / "checkpoints/step_1" / name).read_text()


@pytest.mark.slow
def test_terms_on_inner_layers_too(train_on: Any, student: StudentConfig, settings: TrainConfig) -> None:
    """Hooked layers whose weights are sharded; the teacher is a student that has learnt a little."""
    teacher = latest_checkpoint(train_on(1, "teacher", student, attrs.evolve(settings, steps=5)) / "checkpoints")
    more = {"teacher": str(teacher), "intermediate": {"hidden_weight": 3.0, "relation_weight": 3.0}}
    settings = attrs.evolve(settings, steps=1, batch_size=7, accumulation=3, flip_fraction=1.0)
    one, two = (train_on(n, f"{n}", student, settings, **more) for n in (1, 2))
    check_same_gradients(one, two)
    for name in ("loss", "hidden", "relation"):
        assert rows(one)[0][name] > 1e-4
        assert rows(one)[0][name] == pytest.approx(rows(two)[0][name], rel=1e-5)


@pytest.mark.slow
def test_the_counters_are_the_same_and_checkpoints_go_both_ways(
    train_on: Any, student: StudentConfig, settings: TrainConfig
) -> None:
    whole = train_on(1, "whole", student, settings)
    for first, then in ((2, 1), (1, 2)):
        folder = train_on(first, f"{first} then {then}", student, attrs.evolve(settings, steps=5))
        train_on(then, f"{first} then {then}", student, settings)
        state, expected = (read_state(latest_checkpoint(f / "checkpoints")) for f in (folder, whole))
        assert (state.step, state.batches, state.seen_tokens, state.bits) == (
            expected.step, expected.batches, expected.seen_tokens, expected.bits,
        )  # fmt: skip
        assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(whole)]
        # Not the same: the learning rate's schedule depends on the number of steps, which was 5 at first.
        assert rows(folder)[-1]["validation_kl"] == pytest.approx(rows(whole)[-1]["validation_kl"], rel=0.1)


@pytest.mark.slow
def test_parts_that_two_processes_left_are_gone_on_from(
    train_on: Any, student: StudentConfig, settings: TrainConfig
) -> None:
    """By one process; and by two that find the newest damaged, from the one before. As if nothing had happened."""
    settings = attrs.evolve(settings, keep_checkpoints=3)
    whole = train_on(1, "whole", student, settings)
    left = train_on(2, "left", student, settings, leave_parts=True)
    places = [left / f"checkpoints/step_{step}" for step in (5, 10, 12)]
    assert [read_record(place)["layout"] for place in places] == [SHARDED] * 3
    shutil.rmtree(places[-1])
    damaged = shutil.copytree(left, left.with_name("damaged"))
    part = next((damaged / "checkpoints/step_10/sharded").glob("shard-00002-*.safetensors"))
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    train_on(1, "left", student, settings)
    train_on(2, "damaged", student, settings)
    assert [file.name for file in (damaged / "checkpoints").glob("*.damaged")] == ["step_10.damaged"]
    assert not list((left / "checkpoints").glob("*.damaged"))
    expected = read_state(whole / "checkpoints/step_12")
    for folder, first_redone in ((left, 11), (damaged, 6)):
        assert (folder / "checkpoints/step_12/training.json").exists()
        state = read_state(folder / "checkpoints/step_12")
        assert (state.step, state.batches, state.seen_tokens, state.bits, state.start) == (
            expected.step, expected.batches, expected.seen_tokens, expected.bits, expected.start,
        )  # fmt: skip
        assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(whole)]
        assert rows(folder)[first_redone - 1]["loss"] == pytest.approx(rows(whole)[first_redone - 1]["loss"], rel=1e-2)
        assert rows(folder)[-1]["validation_kl"] == pytest.approx(rows(whole)[-1]["validation_kl"], rel=1e-2)
