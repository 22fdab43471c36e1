"""Calibration of any architecture: on a Llama it must do what the calibration written for Llama does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from bitnet_core.calibration import calibrate as module
from bitnet_core.calibration.calibrate import Calibration, calibrate
from bitnet_core.calibration.documents import choose_batches
from bitnet_core.calibration.found_groups import found_groups
from bitnet_core.config.calibration import CalibrationConfig, calibrated_student
from bitnet_core.config.student import TEACHERS, StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.model.start_student import start_student
from bitnet_core.model.start_whole_model import open_whole_start
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.traces.dataset import KDTraceDataset
from training_fixtures import VOCABULARY, Traces

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
    "gemma3_text": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=8)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, residual_multiplier=0.5, logits_scaling=4.0)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, initializer_range=0.2, eos_token_id=2, bos_token_id=1)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED)),
}
CPU = torch.device("cpu")


def written(name: str, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MODELS[name]()
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms that aren't 1, biases that aren't 0
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


MakeJob = Callable[..., Calibration]


@pytest.fixture
def make_job(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    monkeypatch.setattr(module, "best_device", lambda: CPU)

    def make(checkpoint: Path, out: str = "calibration", **student: Any) -> Calibration:
        return Calibration(
            data_folder=traces.data, tokenizer_folder=traces.tokenizer, checkpoint=checkpoint, folder=tmp_path / out,
            student=StudentConfig(init_from=str(checkpoint), **({"architecture": TEACHERS} | student)),
            config=CalibrationConfig(tokens=200), max_seq_len=512, precision="fp32", seed=0, fingerprint="f",
        )  # fmt: skip

    return make


def quiet(*_: object) -> None:
    pass


def logits_error(model: PreTrainedModel, teacher: PreTrainedModel, job: Calibration) -> float:
    """Squared distance of the logits on the calibration documents, of the teacher's own squares."""
    gap = total = 0.0
    with torch.no_grad():
        for batch in choose_batches(KDTraceDataset(job.data_folder, split="train"), job.config.tokens, job.seed):
            for ids in batch.ids:
                ours, theirs = (each.eval()(ids[None], use_cache=False).logits for each in (model, teacher))
                gap, total = gap + float((ours - theirs).square().sum()), total + float(theirs.square().sum())
    return gap / total


def test_a_llama_is_calibrated_as_by_the_code_written_for_it(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoint = written("llama", tmp_path / "teacher")
    found, own = make_job(checkpoint, "found"), make_job(checkpoint, "own", architecture="llama")
    records = [calibrate(job, quiet) for job in (found, own)]
    for ours, theirs in zip(records[0]["layers"], records[1]["layers"], strict=True):
        assert ours["stream_error"] == pytest.approx(theirs["stream_error"], rel=1e-3)
    layers = [dict(ternary_layers(load_model(job.folder / "start"))) for job in (found, own)]
    for name, theirs in layers[1].items():
        same = (layers[0][name].codes() == theirs.codes()).float().mean()
        assert same > 0.999, name
        torch.testing.assert_close(layers[0][name].log_scale, theirs.log_scale, rtol=1e-3, atol=1e-3)


def test_outputs_that_are_multiplied_before_they_are_added_are_fitted_alike(make_job: MakeJob, tmp_path: Path) -> None:
    """Granite with twice its output projections and half of them added is the Llama that it was made of."""
    llama = AutoModelForCausalLM.from_pretrained(written("llama", tmp_path / "llama"))
    more = {"embedding_multiplier": 1.0, "attention_multiplier": 8**-0.5, "logits_scaling": 1.0}
    granite = GraniteForCausalLM(GraniteConfig(**GROUPED, residual_multiplier=0.5, **more))
    state = llama.state_dict()
    outputs = [name for name in state if name.endswith(("o_proj.weight", "down_proj.weight"))]
    granite.load_state_dict(state | {name: 2 * state[name] for name in outputs})
    granite.save_pretrained(tmp_path / "granite")
    with torch.no_grad():
        ids = torch.arange(9)[None]
        torch.testing.assert_close(granite.eval()(ids).logits, llama.eval()(ids).logits)
    records = [calibrate(make_job(tmp_path / name, f"of_{name}"), quiet) for name in ("llama", "granite")]
    for ours, theirs in zip(*(each["layers"] for each in records), strict=True):
        assert ours["stream_error"] == pytest.approx(theirs["stream_error"], rel=1e-3)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama"])
def test_it_starts_nearer_to_its_checkpoint(name: str, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(written(name, tmp_path / "teacher"))
    record = calibrate(job, quiet)
    assert [each["layer"] for each in record["layers"]] == [0, 1, 2]
    student = start_student(calibrated_student(job.student, job.folder / "start"), None, VOCABULARY)
    opened = load_model(job.folder / "start")
    for key, tensor in opened.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[key])
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    outside = {key for key in teacher.state_dict() if not any(key.startswith(n) for n, _ in ternary_layers(student))}
    assert all(torch.equal(teacher.state_dict()[key], student.state_dict()[key]) for key in outside)
    plain = start_student(attrs.evolve(job.student, start="least_squares"), None, VOCABULARY)
    assert logits_error(student, teacher, job) < 0.7 * logits_error(plain, teacher, job)


def test_the_groups_that_are_found(tmp_path: Path) -> None:
    def groups(name: str) -> list[tuple[tuple[str, ...], bool, float]]:
        start = open_whole_start(
            written(name, tmp_path / name), StudentConfig(init_from="x", architecture=TEACHERS), CPU
        )
        return [(each.linears, each.residual, round(each.scale, 3)) for each in found_groups(start, 1, CPU)]

    attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
    o, down = ("self_attn.o_proj",), ("mlp.down_proj",)
    assert groups("llama") == [(attention, False, 1), (o, True, 1), (mlp, False, 1), (down, True, 1)]
    assert groups("granite") == [(attention, False, 1), (o, True, 0.5), (mlp, False, 1), (down, True, 0.5)]
    # a norm stands between Gemma's outputs and the stream
    assert groups("gemma3_text") == [(attention, False, 1), (o, False, 1), (mlp, False, 1), (down, False, 1)]
    assert groups("gpt_neox") == [
        (("attention.query_key_value",), False, 1), (("attention.dense",), True, 1),
        (("mlp.dense_h_to_4h",), False, 1), (("mlp.dense_4h_to_h",), True, 1),
    ]  # fmt: skip


def test_what_is_left_out_stays_as_it_was(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(written("gpt_neox", tmp_path / "teacher"), leave_out=("*.attention.dense", "*.1.mlp.*"))
    calibrate(job, quiet)
    student, teacher = load_model(job.folder / "start"), AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    names = {name for name, _ in ternary_layers(student)}
    assert len(names) == 7
    for name, tensor in teacher.state_dict().items():
        same = torch.equal(tensor, student.state_dict()[name])
        assert same == (name.removesuffix(".weight").removesuffix(".bias") not in names or name.endswith("bias"))


def test_stopped_and_gone_on_with(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoint = written("gemma3_text", tmp_path / "teacher")
    whole, stopped = make_job(checkpoint, "whole"), make_job(checkpoint, "stopped")
    calibrate(whole, quiet)

    def stop_at(done: int, *_: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(stopped, stop_at)
    calibrate(stopped, quiet)
    for file in (whole.folder / "start").glob("*.safetensors"):
        assert file.read_bytes() == (stopped.folder / "start" / file.name).read_bytes()


def test_refused(make_job: MakeJob, tmp_path: Path) -> None:
    checkpoint = written("gpt_neox", tmp_path / "teacher")
    with pytest.raises(CoreError, match=r"its model_type is 'gpt_neox', not 'gpt2'"):
        calibrate(make_job(checkpoint, architecture="gpt2"), quiet)
    with pytest.raises(CoreError, match=r"leave_out: '\*\.o_proj' fits no linear layer"):
        calibrate(make_job(checkpoint, leave_out=("*.o_proj",)), quiet)
