"""The whole calibration: against a slow reference, over all kinds of students, stopped and gone on with."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bitnet_core.calibration import calibrate as module
from bitnet_core.calibration import fit_group
from bitnet_core.calibration.calibrate import Calibration, calibrate
from bitnet_core.calibration.documents import choose_batches
from bitnet_core.config.calibration import CalibrationConfig, calibrated_student
from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.dry_run.calibration_memory import peak_bytes
from bitnet_core.dry_run.live_bytes import LiveBytes
from bitnet_core.errors import CoreError
from bitnet_core.model import BitNetKDEForCausalLM, build_student
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.traces.batch_order import epoch_batches
from bitnet_core.traces.dataset import KDTraceDataset
from training_fixtures import VOCABULARY, Traces

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True, "initializer_range": 0.2,
}  # fmt: skip
MakeJob = Callable[..., Calibration]


def llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SHAPE | changes)))


def write(folder: Path, make: Callable[[], PreTrainedModel], **save: Any) -> Path:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif "norm" in name:
                parameter.mul_(1 + 0.4 * torch.rand_like(parameter))
    model.save_pretrained(folder, **save)
    return folder


@pytest.fixture
def make_job(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    monkeypatch.setattr(module, "best_device", lambda: torch.device("cpu"))

    def make(checkpoint: Path, out: str = "calibration", **student: Any) -> Calibration:
        return Calibration(
            data_folder=traces.data, tokenizer_folder=traces.tokenizer, checkpoint=checkpoint,
            folder=tmp_path / out, student=StudentConfig(init_from=str(checkpoint), **student),
            config=CalibrationConfig(tokens=200), max_seq_len=512, precision="fp32", seed=0, fingerprint="f",
        )  # fmt: skip

    return make


def quiet(*_: object) -> None:
    pass


def fitted_codes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The codes that will be chosen, group by group."""
    codes: list[Tensor] = []
    fit = fit_group.fit

    def keep(*arguments: Any) -> Any:
        fitted = fit(*arguments)
        codes.append(fitted.codes_OI)
        return fitted

    monkeypatch.setattr(fit_group, "fit", keep)
    return codes


def logits_error(model: nn.Module, teacher: nn.Module, job: Calibration) -> float:
    """Squared distance of the logits on the calibration documents, of the teacher's own squares."""
    documents = KDTraceDataset(job.data_folder, split="train")
    gap = total = 0.0
    with torch.no_grad():
        for batch in choose_batches(documents, job.config.tokens, job.seed):
            for ids in batch.ids:
                ours, theirs = (each(ids[None], use_cache=False).logits for each in (model, teacher))
                gap, total = gap + float((ours - theirs).square().sum()), total + float(theirs.square().sum())
    return gap / total


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "Llama": (llama, {}),
    "16 bits": (llama, {"activation_bits": 16}),
    "untied, a head width of its own": (lambda: llama(tie_word_embeddings=False, head_dim=16), {}),
    "biases everywhere": (lambda: llama(attention_bias=True, mlp_bias=True), {}),
    "Qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)), {}),
    "Qwen3": (lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)), {}),
    "SubLN": (llama, {"sublayer_norm": True}),
    "Hadamard": (llama, {"hadamard": True}),
    "seq": (llama, {"weight_quantiser": "seq", "start": "calibrated"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_student_starts_nearer_to_its_checkpoint(
    name: str, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, settings = MODELS[name]
    job = make_job(write(tmp_path / "teacher", make), **settings)
    codes = fitted_codes(monkeypatch)
    record = calibrate(job, quiet)
    assert [each["layer"] for each in record["layers"]] == [0, 1, 2]
    assert record["tokens"] >= 200

    start = job.folder / "start"
    student = build_student(calibrated_student(job.student, start), None, VOCABULARY).eval()
    written = torch.cat([layer.codes().flatten() for _, layer in ternary_layers(student)])
    assert torch.equal(written.float(), torch.cat([each.flatten() for each in codes]))  # not one differs
    for ours, theirs in zip(load_model(start).parameters(), student.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    teacher = make().from_pretrained(tmp_path / "teacher").eval()
    plain = build_student(attrs.evolve(job.student, start="least_squares"), None, VOCABULARY).eval()
    assert logits_error(student, teacher, job) < 0.7 * logits_error(plain, teacher, job)
    assert student.generation_config.eos_token_id == 2


def reference(teacher: BitNetKDEForCausalLM, documents: list[Tensor]) -> dict[str, Tensor]:
    """Steps 1 to 4 written out in float64 over whole models, whose linears are replaced one group after the other.

    Returns the ternary weights by name. No streams, no moments that are summed, no Cholesky.
    """
    student = copy.deepcopy(teacher)
    groups = [
        (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ""),
        (["self_attn.o_proj"], "input_layernorm"),
        (["mlp.gate_proj", "mlp.up_proj"], ""),
        (["mlp.down_proj"], "post_attention_layernorm"),
    ]
    result = {}
    for index in range(len(teacher.model.layers)):
        for names, stream in groups:
            seen = []
            for model in (student, teacher):
                layer = model.model.layers[index]
                x = inputs_of(model, layer.get_submodule(names[0]), documents)
                seen.append((x, inputs_of(model, layer.get_submodule(stream), documents) if stream else None))
            (ours, our_stream), (theirs, their_stream) = seen
            W = np.concatenate([teacher.model.layers[index].get_submodule(name).weight.numpy() for name in names])
            gaps = [(ours, 30), (theirs - ours, 20)]
            target = (theirs - ours) @ W.T
            if our_stream is not None and their_stream is not None:
                gaps.append((their_stream - our_stream, 20))
                target = target + their_stream - our_stream
            w = np.ones(len(ours))
            for values, cap in gaps:
                norms = (values**2).sum(1)
                median = np.sort(norms)[(len(norms) - 1) // 2]
                if median > 0:
                    w = np.minimum(w, cap * median / np.maximum(norms, 1e-300))
            H = (ours * w[:, None]).T @ ours / len(ours)
            ridge = 0.2 * np.diag(H).mean() * np.eye(len(H))
            wanted = W + np.linalg.solve(H + ridge, (ours * w[:, None]).T @ target / len(ours)).T
            quantised = torch.from_numpy(brain_surgeon(wanted, H))
            for name in names:
                linear = student.model.layers[index].get_submodule(name)
                linear.weight.copy_(quantised[: len(linear.weight)])
                result[f"model.layers.{index}.{name}"] = linear.weight.clone()
                quantised = quantised[len(linear.weight) :]
    return result


def inputs_of(model: nn.Module, part: nn.Module, documents: list[Tensor]) -> np.ndarray:
    found: list[Tensor] = []
    hook = part.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0][0]))
    for ids in documents:
        model(ids[None], use_cache=False)
    hook.remove()
    return torch.cat(found).numpy()


def brain_surgeon(weight: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Ternary weights s·t: codes for the scales that fit the weights, then for those that fitted the outputs."""
    codes, scale = surgery(weight, H, np.array([best_scale(row) for row in weight]))
    codes, scale = surgery(weight, H, scale)
    return scale[:, None] * codes


def surgery(weight: np.ndarray, H: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, a column at a time, each error spread over the columns left by their H's inverse; the best scales."""
    damped = H + 0.01 * np.diag(H).mean() * np.eye(len(H))
    order, left_weight, codes = np.argsort(-np.diag(H), kind="stable"), weight.copy(), np.zeros_like(weight)
    for position, column in enumerate(order):
        left = order[position:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        codes[:, column] = np.clip(np.round(left_weight[:, column] / scale), -1, 1)
        error = (left_weight[:, column] - codes[:, column] * scale) / inverse[0, 0]
        left_weight[:, left] -= np.outer(error, inverse[0])
    return codes, np.einsum("oi,ij,oj->o", codes, H, weight) / np.einsum("oi,ij,oj->o", codes, H, codes)


def best_scale(row: np.ndarray) -> float:
    """Least squares by alternation from the mean magnitude."""
    scale = np.abs(row).mean()
    for _ in range(20):
        codes = np.clip(np.round(row / scale), -1, 1)
        scale = (codes @ row) / (codes @ codes)
    return float(scale)


def test_it_is_the_slow_reference(make_job: MakeJob, tmp_path: Path) -> None:
    folder = write(tmp_path / "teacher", lambda: llama(num_hidden_layers=2, attention_bias=True))
    job = make_job(folder, activation_bits=16)
    calibrate(job, quiet)
    student = load_model(job.folder / "start")
    full = attrs.evolve(job.student, quantise_weights=False)
    teacher = build_student(full, None, VOCABULARY).double().eval().requires_grad_(False)
    traces = KDTraceDataset(job.data_folder, split="train")
    documents = [ids for batch in choose_batches(traces, 200, 0) for ids in batch.ids]
    with torch.no_grad():
        expected = reference(teacher, documents)
    for name, layer in ternary_layers(student):
        ours, theirs = layer.quantised_weight().double(), expected[name]
        same = (ours.sign() == theirs.sign()).double().mean()
        assert same > 0.98, name  # float32 tips a tie here and there, and its row goes another way from there
        rows = ((ours.sign() == theirs.sign()).double().mean(1) == 1).nonzero().flatten()
        assert len(rows) > 0.5 * len(ours), name
        if "layers.0." in name:  # what is after a tipped tie has other inputs
            torch.testing.assert_close(ours[rows], theirs[rows], rtol=2e-2, atol=1e-3)


def digests(folder: Path) -> dict[str, str]:
    record = json.loads((folder / "calibration.json").read_text())
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    return found | {"calibration.json": str(record["layers"])}  # its times differ


class StoppedError(Exception):
    pass


def test_a_stopped_calibration_goes_on_and_writes_the_same_bytes(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = write(tmp_path / "teacher", llama)
    whole = make_job(teacher, "whole")
    calibrate(whole, quiet)
    job, notes = make_job(teacher, "stopped"), []

    def stop_at(call: int) -> None:
        calls, fit = 0, fit_group.fit

        def stopping(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise StoppedError
            return fit(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(fit_group, "fit", stopping)
            with pytest.raises(StoppedError):
                calibrate(job, lambda done, *_: notes.append(done))

    stop_at(6)  # in the second layer
    stop_at(2)  # there again
    stop_at(8)  # at the last group of the third
    calibrate(job, lambda done, *_: notes.append(done))
    assert notes == [0, 1, 1, 1, 2, 2]
    assert digests(job.folder / "start") == digests(whole.folder / "start")
    assert [path.name for path in job.folder.iterdir()] == ["start"]

    def never(*_: object) -> None:
        raise AssertionError("it is done")

    assert calibrate(job, never)["tokens"] >= 200
    calibrate(attrs.evolve(job, fingerprint="another"), lambda done, *_: notes.append(done))
    assert notes[-3:] == [0, 1, 2]


@pytest.mark.parametrize(
    ("width", "inner", "keys", "precision"),
    [(256, 1024, 4, "fp32"), (512, 512, 2, "fp32"), (256, 1024, 2, "bf16"), (512, 512, 8, "bf16")],
)
def test_the_dry_run_predicts_a_layers_peak(
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    inner: int,
    keys: int,
    precision: str,
) -> None:
    """Wide enough that the fit is most of it, by the falling (512) and by the factor of a large H (1024)."""
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": 8, "num_key_value_heads": keys}
    checkpoint = write(tmp_path / "big", lambda: llama(**sizes, num_hidden_layers=1))
    job = attrs.evolve(make_job(checkpoint), precision=precision)
    meter, peaks, layer = LiveBytes(), [], module.calibrate_layer

    def metered(*arguments: Any) -> Any:
        meter.reset()
        before, result = meter.live, layer(*arguments)
        peaks.append(meter.peak() - before)
        return result

    monkeypatch.setattr(module, "calibrate_layer", metered)
    with meter:
        record = calibrate(job, quiet)
    config = DryRunConfig(vocab_size=VOCABULARY, num_hidden_layers=1, **sizes)
    predicted = peak_bytes(config, 4 if precision == "fp32" else 2, positions=record["tokens"])
    assert predicted == pytest.approx(peaks[0], rel=0.01)


def test_a_layer_of_zeros_stays_one(make_job: MakeJob, tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        model = llama()
        for name, parameter in model.model.layers[1].named_parameters():
            if "proj" in name:
                parameter.data.zero_()
        return model

    job = make_job(write(tmp_path / "teacher", make))
    record = calibrate(job, quiet)
    student = load_model(job.folder / "start")
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    assert not any(layer.codes().any() for name, layer in ternary_layers(student) if "layers.1.self_attn.q" in name)
    assert record["layers"][1]["stream_error"] < 1


def test_weights_in_several_files_and_16_bits_are_read(make_job: MakeJob, tmp_path: Path) -> None:
    one = write(tmp_path / "one", lambda: llama().bfloat16())
    many = write(tmp_path / "many", lambda: llama().bfloat16(), max_shard_size="10KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    for folder in (one, many):
        calibrate(make_job(folder, folder.name), quiet)
    assert {name: value for name, value in digests(tmp_path / "one" / "start").items() if "model" in name} == {
        name: value for name, value in digests(tmp_path / "many" / "start").items() if "model" in name
    }


def test_a_head_of_its_own_stays_one_where_the_config_says_tied(make_job: MakeJob, tmp_path: Path) -> None:
    folder = write(tmp_path / "teacher", lambda: llama(tie_word_embeddings=False))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    job = make_job(folder)
    calibrate(job, quiet)
    student = build_student(calibrated_student(job.student, job.folder / "start"), None, VOCABULARY)
    assert not student.config.tie_word_embeddings
    assert torch.equal(student.lm_head.weight, head)
    assert not torch.equal(student.model.embed_tokens.weight, head)


def test_only_the_files_of_the_index_are_read(make_job: MakeJob, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", llama, max_shard_size="10KB")
    beside = write(tmp_path / "beside", llama, max_shard_size="10KB")
    save_file({"lm_head.weight": torch.zeros(3)}, beside / "training.safetensors")  # an optimizer's, an adapter's
    for folder in (plain, beside):
        calibrate(make_job(folder, folder.name + "_out"), quiet)
    ours, theirs = (digests(tmp_path / name / "start") for name in ("beside_out", "plain_out"))
    assert {name: ours[name] for name in ours if "model" in name} == {
        name: theirs[name] for name in theirs if "model" in name
    }


def test_documents_are_others_than_the_loops_first(traces: Traces) -> None:
    dataset = KDTraceDataset(traces.data, split="train")
    chosen = choose_batches(dataset, 60, 0)
    found = [ids.tolist() for batch in chosen for ids in batch.ids]
    assert found == [ids.tolist() for batch in choose_batches(dataset, 60, 0) for ids in batch.ids]
    assert [len(ids) for ids in found] == sorted(map(len, found), reverse=True)
    assert 60 <= sum(map(len, found)) < 60 + 20
    first = epoch_batches(dataset.lengths, len(found), 0, 0)[0]
    assert sorted(found) != sorted(dataset[int(index)]["input_ids"].tolist() for index in first)
    assert len([ids for batch in choose_batches(dataset, 10**9, 0) for ids in batch.ids]) == len(dataset)


def test_what_cannot_be_calibrated_is_refused_with_a_fix(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(write(tmp_path / "teacher", llama))
    calibrate(job, quiet)
    ternary = tmp_path / "ternary"
    ternary.mkdir()
    (ternary / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitnet"}}))
    for student, checkpoint, told in (
        ({"quantise_weights": False}, job.checkpoint, "no codes to choose"),
        ({"weight_quantiser": "absmean_row"}, job.checkpoint, "computes its scales"),
        ({"layers": (0, 2)}, job.checkpoint, "keeps some of init_from's layers"),
        ({}, job.folder / "start", "is ternary already"),
        ({}, ternary, "is ternary already"),
    ):
        refused = attrs.evolve(job, student=StudentConfig(**student), checkpoint=checkpoint, fingerprint="g")
        with pytest.raises(CoreError, match=told) as error:
            calibrate(refused, quiet)
        assert 'start = "least_squares"' in str(error.value)
        if student:
            with pytest.raises(ValueError, match=told):
                StudentConfig(start="calibrated", **student)


def test_quantised_weights_are_refused(make_job: MakeJob, tmp_path: Path) -> None:
    folder = write(tmp_path / "teacher", llama)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CoreError, match=r"can't start a student: its config\.json has a quantization_config") as error:
        calibrate(make_job(folder), quiet)
    assert "name the unquantised checkpoint" in error.value.fix


def test_inputs_that_are_not_numbers_are_told(make_job: MakeJob, tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        model = llama()
        model.model.layers[1].post_attention_layernorm.weight.data[0] = float("inf")
        return model

    with pytest.raises(CoreError, match=r"mlp\.gate_proj, mlp\.up_proj are not finite"):
        calibrate(make_job(write(tmp_path / "teacher", make)), quiet)
