"""A checkpoint's format: every file in it is named and digested, what was written is what is read, version 1 too."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.read_checkpoint import OPTIMIZER, RECORD, load_model, read_state
from bitnet_core.runtime.torch_runtime import open_torch
from bitnet_core.traces.tokenizer import load_tokenizer
from bitnet_core.training import setup
from bitnet_core.training.save_and_resume import load_moments


class StoppedError(Exception):
    pass


@pytest.fixture
def written(run: Any, settings: TrainConfig, tmp_path: Path) -> Path:
    run("a", attrs.evolve(settings, steps=2))
    return tmp_path / "a/checkpoints/step_2"


def test_the_record_names_every_other_file(written: Path) -> None:
    record = json.loads((written / RECORD).read_text())
    there = {file.relative_to(written).as_posix(): file for file in written.rglob("*") if file.name != RECORD}
    assert record["version"] == 2
    assert record["layout"] == "one"
    assert record["files"] == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in there.items()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", OPTIMIZER} <= there.keys()
    assert record["scaler"] is None


@examples(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_byte_anywhere_is_found(written: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(json.loads((written / RECORD).read_text())["files"])))
    file = written / name
    good = file.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    file.write_bytes(good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :])
    try:
        with pytest.raises(CoreError, match=rf"{name}: not a complete checkpoint \(the file has changed"):
            load_moments(written, load_model(written))
    finally:
        file.write_bytes(good)
    load_moments(written, load_model(written))


def test_a_model_is_read_without_its_optimizer(written: Path) -> None:
    (written / OPTIMIZER).unlink()
    (written / "notes.txt").write_text("mine")
    model = load_model(written)
    with pytest.raises(CoreError, match=f"{OPTIMIZER}: not a complete checkpoint"):
        load_moments(written, model)


def test_version_1_is_gone_on_from(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 6:
            raise StoppedError

    run("whole", settings)
    with pytest.raises(StoppedError):
        run("old", settings, on_progress=stop)
    file = tmp_path / "old/checkpoints/step_5" / RECORD
    record = json.loads(file.read_text())
    for name in ("layout", "files", "scaler", "start"):
        del record[name]
    file.write_text(json.dumps(record | {"version": 1}))
    assert read_state(file.parent).start is None
    assert run("old", settings)["resumed_from"] == "step_5"
    whole, old = (load_model(tmp_path / name / "checkpoints/step_12").state_dict() for name in ("whole", "old"))
    assert all(torch.equal(whole[name], old[name]) for name in whole)


def test_another_layout_is_refused(written: Path) -> None:
    file = written / RECORD
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layout": "stacked"}))
    with pytest.raises(CoreError, match="layout 'stacked', this version reads 1 and 2, whole or sharded"):
        load_model(written)


def test_the_start_is_recorded(run: Any, settings: TrainConfig, written: Path, student: Any, tmp_path: Path) -> None:
    """The same seed, the same first weights; another start has another digest, and all checkpoints say the first's."""
    random = read_state(written).start
    assert random is not None
    assert random["kind"] == "random"
    run("again", attrs.evolve(settings, steps=6))
    assert [read_state(tmp_path / f"again/checkpoints/step_{step}").start for step in (5, 6)] == [random, random]
    folder = shutil.copytree(written, tmp_path / "start")
    run("b", attrs.evolve(settings, steps=1), student=StudentConfig(init_from=str(folder)), teacher_folder=None)
    start = read_state(tmp_path / "b/checkpoints/step_1").start
    assert start == {"kind": "checkpoint", "digest": setup.weights_sha256(load_model(folder))}
    assert start["digest"] != random["digest"]


@pytest.mark.parametrize("stopped_at", [3, 5])
def test_the_gradient_scale_goes_on(
    run: Any, settings: TrainConfig, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """float16 needs a GPU; the scaler alone, switched on by hand, doubles its scale at every second step anywhere."""
    scales: list[float] = []
    plain = torch.amp.GradScaler

    class Scaler(plain):  # type: ignore[misc,valid-type]
        def __init__(self, device: str, enabled: bool = True) -> None:
            super().__init__("cpu", init_scale=4.0, growth_interval=2, enabled=True)

        def update(self, new_scale: Any = None) -> None:
            super().update(new_scale)
            scales.append(self.get_scale())

    def stop(done: int, total: int, note: str) -> None:
        if done == stopped_at:
            raise StoppedError

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    each = attrs.evolve(settings, steps=8, checkpoint_every=1, flip_fraction=1.0)
    run("whole", each)
    whole, scales[:] = scales[:], []
    assert whole == [4, 8, 8, 16, 16, 32, 32, 64]
    with pytest.raises(StoppedError):
        run("stopped", each, on_progress=stop)
    done, scales[:] = scales[: stopped_at - 1], []  # the step of the last line of progress is not saved yet
    run("stopped", each)
    assert done + scales == whole


def test_the_template_that_was_learned_and_its_end_are_in_the_checkpoint(
    run: Any, settings: TrainConfig, bpe_traces: Any, tmp_path: Path
) -> None:
    """A tokenizer without a template, whose end of sequence is not what the template of the traces ends turns with."""
    bare = shutil.copytree(bpe_traces.tokenizer, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    file = bare / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": "<|endoftext|>"}))
    (bare / "generation_config.json").write_text('{"eos_token_id": [0, 3]}')
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}")
    job = {"data_folder": bpe_traces.data, "tokenizer_folder": bare, "chat_template": template}
    for steps in (1, 2):  # the second goes on from the first
        run("a", attrs.evolve(settings, steps=steps), **job)
    checkpoint = tmp_path / "a/checkpoints/step_2"
    assert load_tokenizer(checkpoint).chat_template == template.read_text()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((checkpoint / name).read_text())["eos_token_id"] == [0, 2, 3]
    with open_torch(checkpoint) as runtime:
        assert runtime.end == {0, 2, 3}
        assert runtime.decode(runtime.encode([{"role": "user", "content": "tea"}])) == "user: tea"
