"""`bitnet generate`, `bitnet chat` and `bitnet compare` on a tiny student in a run folder made by hand."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitnet_cli.commands.chat import converse
from bitnet_cli.commands.shared_options import Ask, shown_loading
from bitnet_cli.main import cli
from bitnet_core.errors import CoreError
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.runtime.contract import Ending, Prompt, Sampling

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tea"
    checkpoint = folder / "checkpoints/step_3"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["tea and more tea for the two of us"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    BitNetKDEForCausalLM(BitNetKDEConfig(**sizes, num_attention_heads=2)).save_pretrained(checkpoint)
    fast.save_pretrained(checkpoint)
    (folder / "manifest.resolved.toml").write_text(
        f'manifest_version = 1\n[run]\nname = "tea"\nstages = ["storage"]\n[store]\nkind = "local"\nroot = "."\n'
        f'[teacher]\nkind = "local"\nmodel = "{checkpoint}"\n'
    )
    return folder


def bitnet(*arguments: Any, stdin: str = "", **environment: str) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], input=stdin, env=environment)


@pytest.mark.slow
def test_the_packed_runtime_answers(run: Path, tmp_path: Path) -> None:
    asked = ("generate", run, "tea?", "--max-new-tokens", 6, "--json")
    packed = json.loads(bitnet(*asked, "--runtime", "packed", BITNET_CACHE=str(tmp_path)).stdout)
    assert packed["runtime"].startswith("packed, ")
    assert 1 <= packed["tokens"] <= 6  # bitnet-core tests that it says what torch says, but for ties
    gguf = tmp_path / "student.gguf"
    gguf.write_bytes(b"GGUF")
    said = bitnet("generate", gguf, "tea?", "--runtime", "packed")
    assert said.exit_code == 2
    assert "llama.cpp runs this file" in said.stderr


def test_generate_streams_what_its_json_holds(run: Path) -> None:
    said = bitnet("generate", run, "tea?", "--max-new-tokens", 6)
    assert said.exit_code == 0, said.output
    found = json.loads(bitnet("generate", run, "tea?", "--max-new-tokens", 6, "--json").stdout)
    assert said.stdout == "".join(sign for sign in found["text"] if sign >= " " or sign in "\t\n") + "\n"
    assert 1 <= found["tokens"] <= 6
    assert found["model"].endswith("step_3")
    assert "A8, fake quantisation" in found["runtime"]


def test_the_system_message_and_the_template_count_and_plain_leaves_them_out(run: Path) -> None:
    def prompt_tokens(*options: str) -> int:
        return int(
            json.loads(bitnet("generate", run, "tea", "--max-new-tokens", 1, "--json", *options).stdout)[
                "prompt_tokens"
            ]
        )

    assert prompt_tokens("--plain") < prompt_tokens() < prompt_tokens("--system", "more tea")


def test_a_prompt_comes_from_stdin_too_and_bits_are_chosen(run: Path) -> None:
    found = json.loads(bitnet("generate", run, "-", "--json", "--bits", 4, "--max-new-tokens", 2, stdin="tea\n").stdout)
    assert "A4" in found["runtime"]


def test_chat_from_a_pipe_answers_each_line(run: Path) -> None:
    done = bitnet("chat", run / "checkpoints/step_3", "--max-new-tokens", 3, stdin="tea\n\n/reset\ntea\n")
    assert done.exit_code == 0, done.output
    first, second = done.stdout[: len(done.stdout) // 2], done.stdout[len(done.stdout) // 2 :]
    assert first == second != "", "the same question after /reset has the same answer"


class Echo:
    """A runtime that remembers what it was asked."""

    description = "echo"

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        assert not isinstance(prompt, str)
        self.asked.append([dict(message) for message in prompt])
        if prompt[-1]["content"] == "too long":
            raise CoreError("the prompt is too long")
        yield f"<{prompt[-1]['content']}>"
        return Ending("stop", 1, 1)


ASK = Ask(max_new_tokens=4, temperature=0.0, top_p=1.0, seed=0, system="Be brief.", bits=None)
SYSTEM = {"role": "system", "content": "Be brief."}


def test_the_history_grows_is_reset_and_survives_a_turn_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    converse(echo, ASK, iter(["one", "too long", "two", "/rest", "/reset", "three"]), interactive=True)
    one = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "<one>"}]
    assert echo.asked[2] == [SYSTEM, *one, {"role": "user", "content": "two"}]
    assert echo.asked[3] == [SYSTEM, {"role": "user", "content": "three"}]
    said = capsys.readouterr()
    assert said.out == "<one>\n<two>\n<three>\n"
    assert "error: the prompt is too long; or start anew with /reset" in said.err
    assert "/rest: no such command" in said.err


def test_compare_puts_the_teacher_beside(run: Path) -> None:
    """The teacher is the same model at its own precision; here it matters that both are asked the same."""
    done = bitnet("compare", run, "tea?", "more tea", "--max-new-tokens", 4, "--json", SKIP_EXTERNAL="1")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)["answers"]
    assert (first["prompt"], second["prompt"]) == ("tea?", "more tea")
    for each in (first, second):
        assert each["student"]["tokens"] >= 1
        assert "<|end|>" not in each["teacher"]["text"]
    assert json.loads(done.stdout)["measured"] == [], "not evaluated"
    table = bitnet("compare", run, "--max-new-tokens", 4, stdin="tea?\n")
    assert "student" in table.stdout
    assert "teacher" in table.stdout
    assert "evaluation" not in table.stdout


def test_compare_tells_what_the_run_measured_and_ties_as_such(run: Path) -> None:
    def score(student: float, difference: list[float]) -> dict[str, Any]:
        return {"student": {"value": student}, "teacher": {"value": 0.5}, "difference_95": difference}

    scores = {"parsed": score(0.45, [-0.2, 0.1]), "valid": score(0.1, [-0.5, -0.3]), "lonely": {"student": {}}}
    file = run / "reports" / "mini_evaluation_report.json"
    file.parent.mkdir(exist_ok=True)
    report = {"checkpoint": "step_3", "benchmarks": {"json": {"scores": scores}}}
    try:
        file.write_text(json.dumps(report))
        said = bitnet("compare", run, "tea?", "--max-new-tokens", 1)
        lines = [line.split() for line in said.stdout.splitlines() if line.lstrip().startswith("json.")]
        assert lines == [
            ["json.parsed", "0.45", "0.5", "tie", "(-0.2", "to", "0.1)"],
            ["json.valid", "0.1", "0.5", "-0.5", "to", "-0.3"],
        ]
        file.write_text(json.dumps(report | {"checkpoint": "step_2"}))
        assert "json." not in bitnet("compare", run, "tea?", "--max-new-tokens", 1).stdout, "of another checkpoint"
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "nowhere", "tea"), "nowhere: nothing there"),
        (("generate", "{run}/manifest.resolved.toml", "tea"), "a file, and no .gguf"),
        (("generate", "{run}/stages", "tea"), "nothing there"),
        (("generate", "{run}/checkpoints", "tea"), "name one of them: step_3"),
        (("generate", "{run}", ""), "PROMPT is empty"),
        (("generate", "{run}", "tea", "--plain", "--system", "x"), "leave one of them out"),
        (("generate", "{run}", "tea", "--temperature", "-1"), "Invalid value for '--temperature'"),
        (("generate", "{run}", "tea", "--bits", "3"), "Invalid value for '--bits'"),
        (("chat", "nowhere"), "nowhere: nothing there"),
        (("compare", "nowhere", "tea"), "nowhere: nothing there"),
        (("compare", "{run}", "tea", "--manifest", "nowhere.toml"), "nowhere.toml"),
    ],
)
def test_what_is_wrong_is_told_without_a_traceback(run: Path, arguments: tuple[str, ...], said: str) -> None:
    done = bitnet(*(each.format(run=run) for each in arguments))
    assert done.exit_code == 2
    assert said in done.output
    assert "Traceback" not in done.output


def test_a_chat_line_that_is_no_command_ends_a_pipe(run: Path) -> None:
    done = bitnet("chat", run, stdin="/rest\n")
    assert done.exit_code == 2
    assert "/reset forgets" in done.output


def test_compare_needs_to_know_the_teacher(run: Path, tmp_path: Path) -> None:

    shutil.copytree(run / "checkpoints/step_3", tmp_path / "alone")
    done = bitnet("compare", tmp_path / "alone", "tea")
    assert done.exit_code == 2
    assert "name a manifest with --manifest" in done.output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "said"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_terminal_is_told_that_the_model_is_being_loaded(
    stream: io.StringIO, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with shown_loading():
        pass
    assert ("loading the model" in stream.getvalue()) == said
