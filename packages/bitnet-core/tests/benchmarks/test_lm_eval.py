"""lm-evaluation-harness on students: in this process, through any runtime, and by its own command on an export."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from bitnet_core.benchmarks.contract import AggregateScore, NotMeasured, Result
from bitnet_core.benchmarks.lm_eval import SHIPPED, check, load_lm_eval
from bitnet_core.benchmarks.lm_eval_model import RuntimeLM, language_model
from bitnet_core.benchmarks.lm_eval_tasks.bitnet_json.bitnet_json import load_data, process_results
from bitnet_core.config.evaluate import LMEvalOptions
from bitnet_core.config.export import HFOptions
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.benchmark_scores import measure
from bitnet_core.export.folder import export
from bitnet_core.export.hf import hf_exporter
from bitnet_core.runtime.contract import Ending, Runtime
from bitnet_core.runtime.packed.packed_runtime import open_packed
from bitnet_core.runtime.torch_runtime import TorchRuntime, open_torch

CHOICE = """
task: tea_choice
custom_dataset: !function tea.load_data
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
"""
ROLLING = """
task: tea_text
custom_dataset: !function tea.load_data
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
DATA = """
from datasets import Dataset

def load_data(**_):
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "tea"], "answer": 0},
        {"question": "Water boils at", "choices": ["12.50", "100 degrees"], "answer": 1},
        {"question": "Names:", "choices": ["José", "return"], "answer": 0},
    ]
    return {"test": Dataset.from_list(rows)}
"""


@attrs.frozen(eq=False)
class Written:
    """A runtime of text alone, which says what it was told to, in pieces."""

    text: str
    description: str = "a script"

    def stream(self, prompt: Any, sampling: Any) -> Iterator[str]:
        yield from self.text
        return Ending("stop", 1, len(self.text))


@attrs.frozen(eq=False)
class WithLogits:
    """What a runtime of this project offers beside text."""

    inner: TorchRuntime
    description: str = "logits"
    context: int = 64

    @property
    def tokenizer(self) -> Any:
        return self.inner.tokenizer

    def stream(self, prompt: Any, sampling: Any) -> Any:
        return self.inner.stream(prompt, sampling)

    def logits(self, ids: Sequence[int], last: int | None = None) -> torch.Tensor:
        with torch.no_grad():
            found = self.inner.model(torch.tensor([list(ids)])).logits[0].float()
        return found if last is None else found[-last:]


@attrs.frozen(eq=False)
class Student:
    of: Runtime
    role: str = "student"
    name: str = "step_7"

    def runtime(self) -> Runtime:
        return self.of


@pytest.fixture(scope="module")
def runtime(make_checkpoint: Callable[..., Path]) -> Iterator[TorchRuntime]:
    with open_torch(make_checkpoint(activation_bits=16), precision="fp32") as opened:
        yield opened


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, text in (("choice.yaml", CHOICE), ("text.yaml", ROLLING), ("tea.py", DATA)):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(options: LMEvalOptions, runtime: Any) -> Result:
    return load_lm_eval(options)(Student(runtime))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shipped_data_is_answered_by_its_own_answers() -> None:
    data = load_data()
    assert (len(data["train"]), len(data["test"])) == (3, 20)
    for split in data.values():
        for doc in split:
            assert process_results(doc, [doc["answer"]]) == {"parsed": 1.0, "valid": 1.0, "exact": 1.0}
            assert process_results(doc, ["{}"]) == {"parsed": 1.0, "valid": 0.0, "exact": 0.0}
            assert process_results(doc, ["no"])["parsed"] == 0.0
    doc = {"schema": '{"properties": {"open": {"type": "boolean"}}}', "answer": '{"open": true}'}
    assert process_results(doc, ['{"open": 1}']) == {"parsed": 1.0, "valid": 0.0, "exact": 0.0}


def test_the_shipped_task_scores_what_a_runtime_says() -> None:
    first = load_data()["test"][0]
    found = run(LMEvalOptions(limit=4), Written(f" {first['answer']}\n\nText: and so on"))
    values = {name: measure(score, 50, 0) for name, score in found.scores.items()}
    assert values["bitnet_json.parsed"]["value"] == 1.0
    assert values["bitnet_json.exact"] == {"value": 0.25, "interval_95": values["bitnet_json.exact"]["interval_95"],
                                           "items": 4}  # fmt: skip
    assert found.details["task_versions"] == {"bitnet_json": 1.0}


def test_a_student_in_torch_answers_the_shipped_task(runtime: TorchRuntime) -> None:
    found = run(LMEvalOptions(limit=2, batch_size=2), runtime)
    assert set(found.scores) == {"bitnet_json.parsed", "bitnet_json.valid", "bitnet_json.exact"}
    assert all(measure(score, 20, 0)["items"] == 2 for score in found.scores.values())


def test_log_likelihoods_are_the_harnesss_own(runtime: TorchRuntime, tasks: Path) -> None:
    options = LMEvalOptions(tasks=("tea_choice", "tea_text"), include_path=str(tasks), batch_size=1)
    theirs = run(options, runtime)
    ours = run(options, WithLogits(runtime))
    assert isinstance(language_model(WithLogits(runtime), 1), RuntimeLM)
    assert {"tea_choice.acc", "tea_choice.acc_norm", "tea_text.byte_perplexity"} <= set(theirs.scores)
    perplexity = theirs.scores["tea_text.byte_perplexity"]
    assert isinstance(perplexity, AggregateScore)
    assert perplexity.quality == "inverse"
    assert theirs.scores["tea_choice.acc"].quality == "value"
    for name, score in theirs.scores.items():
        found = measure(score, 50, 0)
        assert found["items"] == 3
        assert math.isfinite(found["value"])
        assert measure(ours.scores[name], 50, 0)["value"] == pytest.approx(found["value"], rel=1e-4), name


def test_a_text_longer_than_the_context_is_cut_where_the_harness_cuts_it(runtime: TorchRuntime) -> None:
    text = "The capital of France is Paris. Water boils at 100 degrees, and tea is made of it. " * 2
    theirs, ours = language_model(runtime, 1), RuntimeLM(WithLogits(runtime, context=16))
    theirs._max_length = 16
    requests = [Instance("loglikelihood_rolling", {}, (text[:end],), 0) for end in (20, 70, len(text), 0)]
    assert len(runtime.tokenizer(text).input_ids) > 3 * 16
    assert ours.loglikelihood_rolling(requests) == pytest.approx(
        theirs.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5
    )


def test_a_runtime_of_text_alone_has_no_log_likelihoods(tasks: Path) -> None:
    with pytest.raises(NotMeasured, match="a script gives no log-likelihoods"):
        run(LMEvalOptions(tasks=("tea_choice",), include_path=str(tasks)), Written("tea"))
    with pytest.raises(NotMeasured, match="keeps its chat template"):
        run(LMEvalOptions(limit=1, apply_chat_template=True), Written("tea"))


@pytest.mark.slow
def test_an_unknown_task_and_data_that_is_not_there_are_told(tasks: Path) -> None:
    with pytest.raises(CoreError, match='no task "bitnet_jsn"; did you mean "bitnet_json"'):
        load_lm_eval(LMEvalOptions(tasks=("bitnet_jsn",)))
    (tasks / "gone.yaml").write_text(CHOICE.replace("tea_choice", "gone").replace("tea.load_data", "tea.nothing"))
    with pytest.raises(CoreError, match=r"gone can't be loaded .*see that .* can be reached once"):
        load_lm_eval(LMEvalOptions(tasks=("gone",), include_path=str(tasks)))
    assert check(LMEvalOptions(include_path=str(tasks / "nowhere")))
    assert check(LMEvalOptions(include_path=str(tasks))) == []


@pytest.mark.slow
def test_the_harnesss_own_command_opens_the_hf_export(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """As docs/benchmarks.md has it, with nothing of the network."""
    export(make_checkpoint(), {"hf": hf_exporter(HFOptions())}, tmp_path / "exports")
    done = subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
            f"pretrained={tmp_path / 'exports/hf'}", "--tasks", "bitnet_json", "--include_path", str(SHIPPED),
            "--limit", "2", "--device", "cpu", "--output_path", str(tmp_path / "out"),
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]["bitnet_json"]
    assert {"parsed,none", "valid,none", "exact,none"} <= set(results)


BEGIN, SAID = "<|im_start|>", ("The capital", " of France", "12.50 ", "<|im_start|>user\n", "", " ", "東京")


@pytest.fixture(scope="module")
def adds_begin(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama's kind: a post-processor puts the begin token in front of every text."""
    folder = tmp_path_factory.mktemp("begin") / "step_7"
    shutil.copytree(checkpoint, folder)
    backend = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {BEGIN: {"id": BEGIN, "ids": [1], "tokens": [BEGIN]}}
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    (folder / "tokenizer.json").write_text(json.dumps(backend | {"post_processor": processor}))
    return folder


@pytest.fixture(scope="module", params=["begin", "none"])
def both(request: pytest.FixtureRequest, checkpoint: Path, adds_begin: Path) -> Iterator[tuple[Any, RuntimeLM]]:
    """The harness's own model and ours, of one student in torch and packed."""
    folder = adds_begin if request.param == "begin" else checkpoint
    with open_torch(folder, precision="fp32") as torch_runtime, open_packed(folder, head="bf16") as packed:
        yield language_model(torch_runtime, 2), RuntimeLM(packed)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.sampled_from(SAID), min_size=1, max_size=4), special=st.sampled_from([None, True, False]))
def test_one_text_has_one_encoding(both: tuple[Any, RuntimeLM], texts: list[str], special: bool | None) -> None:
    theirs, ours = both
    text = "".join(texts)
    assert ours.tok_encode(text, add_special_tokens=special) == theirs.tok_encode(text, add_special_tokens=special)
    if text:
        assert ours.runtime.encode(text) == theirs.tok_batch_encode([text])[0][0].tolist()


def test_one_score_in_torch_and_packed(both: tuple[Any, RuntimeLM]) -> None:
    theirs, ours = both
    assert (theirs.max_length, theirs.prefix_token_id) == (ours.max_length, ours.prefix_token_id)
    pairs = [("The capital of France is", " Paris"), ("", "Water boils"), (f"{BEGIN}user\ntea", " 12.50"), ("a ", "b")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    scores = [[score for score, _ in model.loglikelihood(requests, disable_tqdm=True)] for model in both]
    assert scores[0] == pytest.approx(scores[1], abs=0.4)  # packed: embedding and head in 8 bits
    whole = [Instance("loglikelihood_rolling", {}, ("The capital of France is Paris",), 0)]
    rolling = [model.loglikelihood_rolling(whole, disable_tqdm=True)[0] for model in both]
    assert rolling[0] == pytest.approx(rolling[1], abs=0.5)
