"""The local teacher on a tiny random Llama: every number against a plain forward pass."""

import asyncio
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    Sampling,
    ScoreRequest,
)
from bitnet_providers.teachers.local import scoring
from bitnet_providers.teachers.local.chat_template import prompt_ids
from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.teachers.local.teacher import LocalTeacher, open_local

TEXTS = ["The quick brown fox", "Paris", "naïve café 漢字 🙂 over the lazy dog, again and again and again."]


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def ask(teacher: Any, requests: Sequence[GenerateRequest | ScoreRequest]) -> list[Completion]:
    """All at once, so that they share batches."""

    async def main() -> list[Completion]:
        return await asyncio.gather(
            *(
                teacher.generate(request) if isinstance(request, GenerateRequest) else teacher.score(request)
                for request in requests
            )
        )

    return asyncio.run(main())


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer as anybody would load them."""
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval(), AutoTokenizer.from_pretrained(tiny_folder)


def direct_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """[T, V] of one sequence by one forward pass."""
    with torch.no_grad():
        logprobs_TV: torch.Tensor = model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    return logprobs_TV


def assert_agrees(completion: Completion, model: Any, top_k: int) -> None:
    """Token and candidate log-probabilities are those of a direct forward pass over prompt and response."""
    assert completion.prompt_ids is not None
    assert completion.token_ids is not None
    assert completion.candidate_ids is not None
    ids = [*completion.prompt_ids.tolist(), *completion.token_ids.tolist()]
    prompt = len(completion.prompt_ids)
    logprobs_TV = direct_logprobs(model, ids)
    first = 1 if prompt == 0 else 0
    assert completion.candidate_counts.tolist() == [0] * first + [top_k] * (len(completion.token_ids) - first)
    if first:
        assert np.isnan(completion.token_logprobs[0])
    before = logprobs_TV[prompt + first - 1 : -1]
    tokens = torch.tensor(ids[prompt + first :])
    np.testing.assert_allclose(completion.token_logprobs[first:], before.gather(-1, tokens[:, None])[:, 0], atol=1e-4)
    candidate_ids = completion.candidate_ids.reshape(-1, top_k)
    candidate_logprobs = completion.candidate_logprobs.reshape(-1, top_k)
    np.testing.assert_allclose(candidate_logprobs, before.topk(top_k).values, atol=1e-4)
    by_id = before.gather(-1, torch.from_numpy(candidate_ids).long())
    np.testing.assert_allclose(candidate_logprobs, by_id, atol=1e-4)


def test_scores_are_those_of_a_forward_pass(tiny_teacher: Any, plain: tuple[Any, Any]) -> None:
    """Texts of several lengths in one batch, plain and as answers."""
    requests = [ScoreRequest(text, 5) for text in TEXTS] + [ScoreRequest(text, 5, user("Say it")) for text in TEXTS]
    for request, completion in zip(requests, ask(tiny_teacher, requests), strict=True):
        assert_agrees(completion, plain[0], 5)
        assert completion.finish_reason == "scored"
        assert completion.text.decode() == request.text + ("<|im_end|>" if request.messages else "")


def test_a_plain_text_has_the_begin_token_before_it_that_the_model_knows(
    tiny_folder: Path, plain: tuple[Any, Any]
) -> None:
    model, tokenizer = plain[0], AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.bos_token = "<|im_start|>"
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, begin)]
    )
    assert tokenizer("Paris")["input_ids"][0] == begin
    teacher = LocalTeacher(model, tokenizer, tiny_folder, "tiny", 4)
    for text, completion in zip(TEXTS, ask(teacher, [ScoreRequest(text, 5) for text in TEXTS]), strict=True):
        assert completion.prompt_ids is not None
        assert completion.prompt_ids.tolist() == [begin]
        assert_agrees(completion, model, 5)
        assert completion.text.decode() == text
    asyncio.run(teacher.aclose())


def test_chunks_of_the_head_change_nothing(
    tiny_teacher: Any, plain: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "chunk_rows", lambda *_: 3)
    monkeypatch.setattr(scoring, "FORWARD_TOKENS_CPU", 30)
    for completion in ask(tiny_teacher, [ScoreRequest(text, 5) for text in TEXTS]):
        assert_agrees(completion, plain[0], 5)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_forward_passes_hold_every_row_once_and_not_too_much(lengths: list[int], tokens: int) -> None:
    rows = [scoring.ScoreRow(tuple(range(length)), 1) for length in lengths]
    groups = list(scoring._forward_groups(rows, tokens))
    assert list(itertools.chain.from_iterable(groups)) == rows
    for group in groups:
        assert len(group) == 1 or len(group) * max(len(row.token_ids) for row in group) <= tokens


def test_a_head_that_is_not_plain_takes_the_models_own_logits(tiny_folder: Path, plain: tuple[Any, Any]) -> None:
    model, _ = plain
    rows = [scoring.ScoreRow((5, 6, 7, 8), 1), scoring.ScoreRow((9, 10, 11), 2)]
    expected = scoring.score(model, rows, 4, plain_head=True, abandoned=lambda: False)
    found = scoring.score(model, rows, 4, plain_head=False, abandoned=lambda: False)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a.token_logprobs, b.token_logprobs, atol=1e-5)
        np.testing.assert_array_equal(a.candidate_ids, b.candidate_ids)


def test_a_capped_head_is_recognised(plain: tuple[Any, Any]) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    capped = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.5,
            initializer_range=0.5,
        )
    ).eval()
    assert scoring.has_plain_head(plain[0])
    assert not scoring.has_plain_head(capped)


def test_the_prompt_is_the_template_and_the_answer_ends_its_turn(tiny_teacher: Any, plain: tuple[Any, Any]) -> None:
    tokenizer = plain[1]
    (completion,) = ask(tiny_teacher, [ScoreRequest("Paris", 2, user("What is the capital of France?"))])
    assert completion.prompt_ids is not None
    assert completion.token_ids is not None
    assert tokenizer.decode(completion.prompt_ids) == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert completion.token_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert completion.prompt_tokens == len(completion.prompt_ids)


def test_a_text_that_is_cut_does_not_end_its_turn(tiny_teacher: Any, plain: tuple[Any, Any]) -> None:
    (completion,) = ask(tiny_teacher, [ScoreRequest(TEXTS[2], 3, user("?"), max_tokens=4)])
    assert completion.token_ids is not None
    assert completion.token_ids.tolist() == plain[1](TEXTS[2])["input_ids"][:4]
    assert_agrees(completion, plain[0], 3)


def test_a_text_of_one_token_has_no_distribution(tiny_teacher: Any) -> None:
    alone, beside = ask(tiny_teacher, [ScoreRequest("x", 3)])[0], ask(tiny_teacher, [ScoreRequest(t, 3) for t in "xy"])
    for completion in (alone, *beside):
        assert completion.candidate_counts.tolist() == [0]
        assert np.isnan(completion.token_logprobs).all()
        assert len(completion.candidate_logprobs) == 0


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.5, 0.8)])
def test_sampled_distributions_are_before_temperature(
    tiny_teacher: Any, plain: tuple[Any, Any], temperature: float, top_p: float
) -> None:
    """Prompts of several lengths in one batch, so rows are padded and leave at different times."""
    requests = [
        GenerateRequest(user(text), Sampling(temperature, top_p, max_new_tokens=24, seed=seed), 4)
        for seed, text in enumerate(TEXTS * 2)
    ]
    completions = ask(tiny_teacher, requests)
    for completion in completions:
        assert_agrees(completion, plain[0], 4)
    if temperature > 0:
        assert len({completion.text for completion in completions}) > 3


def test_a_batch_gives_what_single_requests_give(tiny_teacher: Any) -> None:
    """Also the sampled tokens: a request's draws are its seed's, whoever shares the batch."""
    requests = [
        GenerateRequest(user(text), Sampling(1.0, 0.95, max_new_tokens=16, seed=seed), 4)
        for seed, text in enumerate(TEXTS * 2)
    ]
    together = ask(tiny_teacher, requests)
    alone = list(itertools.chain.from_iterable(ask(tiny_teacher, [request]) for request in requests))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=1e-4)
        np.testing.assert_allclose(one.candidate_logprobs, other.candidate_logprobs, atol=1e-4)


def test_prompts_of_one_length_take_the_quick_attention_too(tiny_teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mask transformers takes a kernel that needs five times as long for a step."""
    masks = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spied(*arguments: Any, **options: Any) -> Any:
        masks.append(options.get("attn_mask"))
        return attention(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
    ask(tiny_teacher, [GenerateRequest(user("hello"), Sampling(1.0, 1.0, max_new_tokens=3, seed=0), 4)])
    assert masks
    assert all(mask is not None for mask in masks)


def test_greedy_is_the_argmax_of_each_step(tiny_teacher: Any, plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    (completion,) = ask(tiny_teacher, [GenerateRequest(user("Paris"), Sampling(0.0, max_new_tokens=12), 1)])
    inputs = tokenizer.apply_chat_template(
        list(user("Paris")), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert completion.token_ids is not None
    assert completion.token_ids.tolist() == expected.tolist()


def test_the_stopping_token_is_recorded_with_its_distribution(tiny_folder: Path, plain: tuple[Any, Any]) -> None:
    """Half of the vocabulary stops: rows leave the batch at different steps, each with its last token."""
    teacher = open_local(LocalTeacherConfig(model=str(tiny_folder), device="cpu", dtype="fp32", batch_size=16))
    teacher._stop_ids = frozenset(range(0, 400, 8))
    requests = [
        GenerateRequest(user(text), Sampling(max_new_tokens=20, seed=seed), 3) for seed, text in enumerate(TEXTS * 5)
    ]
    completions = ask(teacher, requests)
    lengths = set()
    for completion in completions:
        assert completion.token_ids is not None
        stopping = [token % 8 == 0 for token in completion.token_ids.tolist()]
        assert not any(stopping[:-1])
        assert stopping[-1] == (completion.finish_reason == "stop")
        lengths.add(len(stopping))
        assert_agrees(completion, plain[0], 3)
    assert len(lengths) > 3
    asyncio.run(teacher.aclose())


def test_more_candidates_than_tokens_gives_the_whole_vocabulary(tiny_teacher: Any, plain: tuple[Any, Any]) -> None:
    scored, sampled = ask(
        tiny_teacher,
        [ScoreRequest("Paris", 1000, user("?")), GenerateRequest(user("?"), Sampling(max_new_tokens=2), 1000)],
    )
    vocabulary = plain[0].config.vocab_size
    for completion in (scored, sampled):
        assert set(completion.candidate_counts.tolist()) == {vocabulary}
        sums = np.exp(completion.candidate_logprobs.reshape(-1, vocabulary)).sum(-1)
        np.testing.assert_allclose(sums, 1.0, atol=1e-4)


def test_no_candidates_asked_none_given(tiny_teacher: Any) -> None:
    for completion in ask(
        tiny_teacher, [ScoreRequest("Paris", 0), GenerateRequest(user("?"), Sampling(max_new_tokens=3), 0)]
    ):
        assert completion.candidate_counts.sum() == 0
        assert len(completion.candidate_logprobs) == 0
        assert np.isfinite(completion.token_logprobs[1:]).all()


def test_what_can_not_be_asked_says_why(tiny_teacher: Any) -> None:
    def refusal(request: GenerateRequest | ScoreRequest) -> str:
        with pytest.raises(ProviderError) as caught:
            ask(tiny_teacher, [request])
        return str(caught.value)

    assert refusal(GenerateRequest(user("x"), Sampling(max_new_tokens=300), 1)) == (
        "the prompt and max_new_tokens have 312 tokens, tiny-llama reads 256  → shorten the prompt, "
        "or lower max_new_tokens"
    )
    assert refusal(ScoreRequest("x " * 300, 1)).endswith("reads 256  → shorten the prompt, or lower max_text_tokens")
    assert refusal(ScoreRequest("x", 2000)) == (
        "2000 candidates per position were asked for, the local teacher gives at most 1024  → lower collect.top_k"
    )
    assert refusal(ScoreRequest("", 1)) == "a text to score has no tokens  → give it at least one character"


def test_a_ternary_model_of_others_is_a_teacher(tiny_folder: Path, tmp_path: Path) -> None:
    """In BitNet's format, packed: transformers' own layers, without compiling them."""
    from safetensors.torch import load_file, save_file
    from transformers.integrations.bitnet import pack_weights

    folder = shutil.copytree(tiny_folder, tmp_path / "ternary")
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.endswith("_proj.weight")]:
        codes = (state[name] / state[name].abs().mean()).round().clamp(-1, 1)
        state[name], state[f"{name}_scale"] = pack_weights(codes), state[name].abs().mean()[None].bfloat16()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    section = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    teacher = open_local(LocalTeacherConfig(model=str(folder), device="cpu", dtype="fp32", batch_size=8))
    completions = ask(teacher, [ScoreRequest(text, 5) for text in TEXTS])
    asyncio.run(teacher.aclose())
    assert not torch._dynamo.utils.counters["frames"]
    with torch.compiler.set_stance("force_eager"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for completion in completions:  # in a batch another order of float32 sums: now and then another rounding
            ids = torch.tensor(completion.token_ids)[None].long()
            with torch.no_grad():
                expected = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            np.testing.assert_allclose(completion.token_logprobs[1:], expected, atol=0.05)


def test_a_tokenizer_of_another_model_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    rows = config["vocab_size"]
    tensors = {name: value[:40].clone() if len(value) == rows else value for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    small = open_local(LocalTeacherConfig(model=str(folder), device="cpu", dtype="fp32"))
    for request in (ScoreRequest("Paris, café", 5), GenerateRequest(user("café"), Sampling(max_new_tokens=1), 5)):
        with pytest.raises(RequestRefusedError, match=r"small's tokenizer gives token .*, and the model knows 40"):
            ask(small, [request])
    asyncio.run(small.aclose())


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[0].content + none }}", "{% for %}",
     {"rag": "a", "tool_use": "b"}],
    ids=str,
)  # fmt: skip
def test_a_template_that_fails_is_told(tiny_teacher: Any, template: Any) -> None:
    tiny_teacher._tokenizer.chat_template = template
    with pytest.raises(ProviderError, match=r"tiny-llama's chat template refuses this conversation: \w+: "):
        prompt_ids(tiny_teacher._tokenizer, [{"role": "user", "content": "?"}], "tiny-llama")


def test_what_the_model_can_not_read_is_left_out_of_a_collection(tiny_teacher: Any, tmp_path: Path) -> None:
    """Longer than its context, or turns that its template doesn't know: the others are asked all the same."""
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tiny_teacher._tokenizer.chat_template = template + "{{ m.content }}{% endfor %}"
    rows = [{"prompt": "Hi"}, {"prompt": "word " * 300}, {"prompt": "Hi", "system": "Be brief."}, {"prompt": "Ho"}]
    for name in ("prompts", "texts"):
        lines = [json.dumps(row | {"completion": "Yes."}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    config = CollectConfig(prompts=tmp_path / "prompts.jsonl", texts=tmp_path / "texts.jsonl", max_new_tokens=4)
    summary = asyncio.run(collect(tiny_teacher, config, tmp_path / "raw", "local", 0))
    assert summary["completions"] == 4
    reasons = sorted(each["reason"] for each in summary["refused"])
    assert len(reasons) == 4, reasons
    assert all("tiny-llama reads 256" in each for each in reasons[:2])
    assert all("chat template refuses this conversation: TemplateError: no system turn" in each for each in reasons[2:])


def test_a_model_without_template_scores_plain_text_only(tiny_teacher: Any) -> None:
    tiny_teacher._tokenizer.chat_template = None
    with pytest.raises(ProviderError, match="tiny-llama has no chat template, so it can't answer a conversation"):
        ask(tiny_teacher, [GenerateRequest(user("x"), Sampling(), 1)])
    assert len(ask(tiny_teacher, [ScoreRequest("Paris", 1)])) == 1


def test_the_description_is_of_the_model_as_loaded(tiny_teacher: Any, tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    description = tiny_teacher.description
    assert description["model"] == "tiny-llama"
    assert description["model_folder"] == str(tiny_folder)
    assert description["parameters"] == model.num_parameters()
    assert description["memory_bytes"] == 4 * model.num_parameters()
    assert description["vocab_size"] == model.config.vocab_size
    assert (description["device"], description["dtype"]) == ("cpu", "fp32")
    assert description["end_of_turn"] == "<|im_end|>"
    assert tiny_teacher.chat_template == tiny_teacher._tokenizer.chat_template
    assert description["template_sha256"] == hashlib.sha256(tiny_teacher.chat_template.encode()).hexdigest()
    assert tiny_teacher.chat_template not in description.values()


def test_a_device_that_is_not_there(tiny_folder: Path) -> None:
    with pytest.raises(ProviderError, match=r'teacher\.device: "nonsense" can\'t be used here'):
        open_local(LocalTeacherConfig(model=str(tiny_folder), device="nonsense"))


def test_every_token_has_its_bytes(plain: tuple[Any, Any]) -> None:
    from bitnet_providers.teachers.local.vocabulary_bytes import token_bytes

    table = token_bytes(plain[1])
    for text in [*TEXTS, "\x00\x7f\u2028 tabs\tand\r\n"]:
        assert b"".join(table[token] for token in plain[1](text)["input_ids"]) == text.encode()


def test_sentencepiece_tokens_have_their_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from bitnet_providers.teachers.local.vocabulary_bytes import token_bytes

    backend = Tokenizer(models.BPE({"▁the": 0, "<0xF0>": 1, "cat": 2, "▁": 3}, []))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert token_bytes(tokenizer) == (b" the", b"\xf0", b"cat", b" ", b"</s>")


@given(
    runs=st.lists(
        st.sampled_from(["▁" * 2, "▁" * 4, "▁x▁", "\n\n", "\t\t", "<0x41>", "7", "🦄"]), unique=True, min_size=1
    ),
    data=st.data(),
)
def test_added_tokens_have_the_bytes_that_the_tokenizer_decodes(runs: list[str], data: Any) -> None:
    """Gemma's runs of white space are added tokens that are not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from bitnet_providers.teachers.local.vocabulary_bytes import token_bytes

    letters = ["<unk>", "▁", *"abcdefx():\n\t"]
    backend = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(letters)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    table = token_bytes(tokenizer)
    ids = data.draw(st.lists(st.integers(1, len(table) - 1), min_size=1, max_size=12))
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = [id_ for id_ in ids if id_ not in special]
    assert b"".join(table[id_] for id_ in ids).decode() == tokenizer.decode(ids)
