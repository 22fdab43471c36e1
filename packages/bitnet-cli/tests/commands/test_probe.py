"""`bitnet probe`, and the probe before a collection: what is asked, kept, said and refused."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from bitnet_cli.main import cli

PLUGIN = '''
    """Teachers of one word: a fair coin that says heads or tails, and one that hides what it says."""
    import numpy as np, attrs, pathlib
    from bitnet_providers.contract import Capabilities, Completion, ProviderError, TeacherPlugin
    from bitnet_providers.hookspecs import hookimpl
    from bitnet_providers.settings import setting

    @attrs.frozen(kw_only=True)
    class Coin:
        calls: str = setting(help="a file with a line for each call")
        biased: bool = setting(False, help="tells wrong log-probabilities")
        key_env: str = setting("COIN_KEY", help="not used")

    class Teacher:
        description = {"model": "coin"}

        def __init__(self, options):
            self.options, self.capabilities = options, CAPABILITIES

        async def generate(self, request):
            with open(self.options.calls, "a") as calls:
                calls.write(request.messages[-1]["content"] + "\\n")
            n, k = request.sampling.max_new_tokens, min(2, request.top_logprobs)
            logprobs = [-0.2, -0.3] if self.options.biased else list(np.log([0.6, 0.4]))
            return Completion(
                text=b"heads " * n, token_bytes=(b"heads ",) * n, token_logprobs=np.full(n, logprobs[0], np.float32),
                candidate_counts=np.full(n, k, np.int32), candidate_bytes=(b"heads ", b"tails ")[:k] * n,
                candidate_logprobs=np.array(logprobs[:k] * n, np.float32), finish_reason="length", model="coin-1",
                prompt_tokens=4, latency_s=0.5,
            )

        async def score(self, request):
            raise ProviderError("no scoring")

        async def aclose(self):
            pass

    CAPABILITIES = Capabilities(
        max_top_logprobs=2, token_ids=False, token_bytes=True, scoring=False, external=True,
        logprobs_before_temperature=None,
    )

    @hookimpl
    def bitnet_teachers():
        return [TeacherPlugin(name="coin", options=Coin, capabilities=CAPABILITIES, open=Teacher)]
'''

MANIFEST = """
manifest_version = 1
[run]
name = "coin"
stages = ["storage", "collect", "report"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "coin"
calls = "{folder}/calls.txt"
[collect]
prompts = "prompts.txt"
max_new_tokens = 3
top_k = 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A manifest, a plugin's distribution, and a cache of its own."""
    (tmp_path / "coin_teacher.py").write_text(textwrap.dedent(PLUGIN))
    info = tmp_path / "coin_teacher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: coin-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bitnet]\ncoin = coin_teacher\n")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "coin.toml").write_text(MANIFEST.format(folder=tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SKIP_EXTERNAL", raising=False)
    yield tmp_path
    sys.modules.pop("coin_teacher", None)


def bitnet(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def calls(folder: Path) -> list[str]:
    file = folder / "calls.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_the_command_says_what_it_costs_and_what_it_found(folder: Path) -> None:
    code, output, errors = bitnet("probe", "coin.toml")
    assert code == 0, output + errors
    assert errors.startswith("asking coin: 6 requests, at most ")
    assert "2 of 2 declared" in output
    assert "coin: coin-1" in output
    assert "trusted for KD\n" in output
    assert len(calls(folder)) == 6
    assert not (folder / "runs").exists()


def test_json_is_all_there_is_on_stdout(folder: Path) -> None:
    code, output, _ = bitnet("probe", "coin.toml", "--json")
    found = json.loads(output)
    assert (code, found["trusted_for_kd"], found["kind"], found["max_top_logprobs"]) == (0, True, "coin", 2)
    assert found["temperature"] == "before"


def test_an_untrusted_teacher_exits_with_2_and_says_why(folder: Path) -> None:
    code, output, _ = bitnet("probe", "coin.toml", "--set", "teacher.biased=true")
    assert code == 2
    assert "not trusted for KD" in output
    assert "because " in output
    assert "have a mass above 1" in output
    assert "set collect.top_k = 0 for sequence-level traces instead" in output


def test_skip_external_bars_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP_EXTERNAL", "1")
    code, _, errors = bitnet("probe", "coin.toml")
    assert code == 2
    assert 'SKIP_EXTERNAL=1 forbids calling teacher "coin"' in errors
    assert calls(folder) == []


def test_a_manifest_without_a_teacher_is_told(folder: Path) -> None:
    text = (folder / "coin.toml").read_text()
    start, end = text.index("[teacher]"), text.index("[collect]")
    (folder / "coin.toml").write_text(
        (text[:start] + text[end:]).replace('"storage", "collect", "report"', '"storage"').partition("[collect]")[0]
    )
    code, _, errors = bitnet("probe", "coin.toml")
    assert code == 2
    assert errors.startswith("error: bitnet probe needs a teacher")


def test_a_collection_probes_once_and_keeps_the_verdict(folder: Path) -> None:
    code, output, errors = bitnet("run", "coin.toml")
    assert code == 0, output + errors
    assert "probing the teacher first: 6 requests, at most " in output
    assert "probe: trusted for KD; 2 candidates" in output
    assert calls(folder)[6:] == ["one", "two"]
    run = folder / "runs" / "coin"
    assert json.loads((run / "reports" / "teacher_probe.json").read_text())["requests"] == 6
    metadata = json.loads(pq.read_schema(run / "raw" / "shard_000.parquet").metadata[b"bitnet_raw"])
    assert metadata["probe"]["trusted_for_kd"] is True
    assert "The teacher, probed" in (run / "report.md").read_text()
    shard = (run / "raw" / "shard_000.parquet").read_bytes()

    code, output, _ = bitnet("run", "coin.toml", "--from", "collect")  # another collection within the week
    assert code == 0
    assert "(known from 20" in output
    assert len(calls(folder)) == 8
    assert (run / "raw" / "shard_000.parquet").read_bytes() == shard


def age_the_verdict(folder: Path) -> None:
    (verdict,) = (folder / "cache" / "probes").glob("*.json")
    verdict.write_text(json.dumps(json.loads(verdict.read_text()) | {"probed": "2020-01-01T00:00:00+00:00"}))


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_where_nothing_is_left_to_ask_an_expired_verdict_is_not_asked_for_again(folder: Path, cached: bool) -> None:
    bitnet("run", "coin.toml")
    shard = folder / "runs" / "coin" / "raw" / "shard_000.parquet"
    before = shard.read_bytes()
    shard.unlink()
    if cached:
        age_the_verdict(folder)
    else:  # another machine's cache; the run folder knows
        shutil.rmtree(folder / "cache")
    code, output, errors = bitnet("run", "coin.toml", "--from", "collect")
    assert code == 0, output + errors
    assert ("(known from 2020" in output) == cached
    assert len(calls(folder)) == 8
    assert shard.read_bytes() == before
    assert (folder / "runs" / "coin" / "reports" / "teacher_probe.json").exists()

    age_the_verdict(folder) if cached else None
    (folder / "prompts.txt").write_text("one\ntwo\nthree\n")  # now there is something to ask
    bitnet("run", "coin.toml")
    assert len(calls(folder)) == 8 + 6 + 1


@pytest.mark.slow
def test_a_complete_journal_without_any_verdict_is_gone_on_with(folder: Path) -> None:
    bitnet("run", "coin.toml")
    shutil.rmtree(folder / "cache")
    (folder / "runs" / "coin" / "reports" / "teacher_probe.json").unlink()
    code, output, errors = bitnet("run", "coin.toml", "--from", "collect")
    assert code == 0, output + errors
    assert "nothing is left to ask the teacher, so it is not probed" in output
    assert len(calls(folder)) == 8
    metadata = pq.read_schema(folder / "runs" / "coin" / "raw" / "shard_000.parquet").metadata
    assert json.loads(metadata[b"bitnet_raw"])["probe"] is None


@pytest.mark.slow
def test_the_probe_counts_in_the_collections_budget(folder: Path) -> None:
    code, _, errors = bitnet("run", "coin.toml", "--set", "collect.budget.requests=6")
    assert code == 2
    assert "collect.budget.requests = 6 does not hold the probe (6 requests, " in errors
    assert "Traceback" not in errors
    assert calls(folder) == []
    code, output, errors = bitnet("run", "coin.toml", "--set", "collect.budget.requests=7")
    assert code == 0, output + errors
    assert calls(folder)[6:] == ["one"]
    collection = json.loads((folder / "runs" / "coin" / "reports" / "collection.json").read_text())
    assert collection["spent"]["requests"] == 7
    assert "collect.budget.requests = 7 is reached" in collection["stopped"]

    age_the_verdict(folder)  # nothing can be asked any more: what is there is gone on with, and not probed
    code, output, errors = bitnet("run", "coin.toml", "--from", "collect", "--set", "collect.budget.requests=7")
    assert code == 0, output + errors
    assert len(calls(folder)) == 7


def test_the_plan_and_the_question_before_say_what_the_probe_may_take(folder: Path) -> None:
    _, output, _ = bitnet("plan", "coin.toml")
    assert "probe before it" in output
    assert "6 requests, at most " in output
    code, _, errors = bitnet("run", "coin.toml", "--set", "collect.confirm_above_tokens=10")
    assert code == 2
    assert "requests: 8" in errors
    assert calls(folder) == []


def test_a_collection_uses_the_commands_verdict(folder: Path) -> None:
    bitnet("probe", "coin.toml")
    code, output, _ = bitnet("run", "coin.toml")
    assert code == 0
    assert "(known from 20" in output
    assert len(calls(folder)) == 6 + 2


def test_kd_is_refused_before_anything_else_is_spent_and_sequences_are_offered(folder: Path) -> None:
    code, _, errors = bitnet("run", "coin.toml", "--set", "teacher.biased=true")
    assert code == 2
    assert 'stage collect failed: [collect] KD is refused: the log-probabilities of teacher "coin"' in errors
    assert "set collect.top_k = 0 for sequence-level traces instead" in errors
    assert "nothing but the probe" in errors
    assert "Traceback" not in errors
    assert len(calls(folder)) == 6
    code, output, errors = bitnet("run", "coin.toml", "--set", "teacher.biased=true", "--set", "collect.top_k=0")
    assert code == 0, errors
    assert calls(folder)[6:] == ["one", "two"]
    assert "probing" not in output
    run = folder / "runs" / "coin"
    metadata = json.loads(pq.read_schema(run / "raw" / "shard_000.parquet").metadata[b"bitnet_raw"])
    assert metadata["probe"] is None
    assert not (run / "reports" / "teacher_probe.json").exists()
