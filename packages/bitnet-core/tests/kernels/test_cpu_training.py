"""The C++ against the same in torch: values and gradients, on every instruction set that this machine has."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from bitnet_core.config.loss import KDLossConfig, ReverseKLConfig, SampledConfig, TopKOtherConfig
from bitnet_core.kernels import cpu_training
from bitnet_core.kernels.compile import NoCompilerError, instruction_sets
from bitnet_core.losses.batch_from_teacher import batch_from_topk
from bitnet_core.losses.chunked import load_loss
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM, RMSNorm, _rotated
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.bitlinear import BitLinear
from bitnet_core.ternary.ternary_linear import ternary_weight

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
"""Of a difference's norm, relative: some roundings of the dtype."""


@pytest.fixture(autouse=True, params=instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(cpu_training.SWITCH, raising=False)
    monkeypatch.setattr(cpu_training, "load_library", functools.partial(cpu_training.load_library, request.param))
    assert cpu_training.takes(torch.zeros(1))
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], tuple[Tensor, ...]], *, name: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What `work` gives in C++, where it must call the function of that name, and in torch."""
    called: list[str] = []
    call = cpu_training._call
    with monkeypatch.context() as patch:
        patch.setattr(cpu_training, "_call", lambda name, *arguments: (called.append(name), call(name, *arguments)))
        ours = work()
    assert name in called
    with monkeypatch.context() as patch:
        patch.setenv(cpu_training.SWITCH, "0")
        patch.setattr(cpu_training, "_call", None)
        return ours, work()


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """The function's value, and the gradients by its inputs of a random weighting of it, which bfloat16 holds."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = function(*leaves)
    weights = random(*value.shape, seed=9, dtype=torch.bfloat16).to(value.dtype)
    return (value, *torch.autograd.grad(value, leaves, weights))


def assert_alike(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        assert distance(our, their) <= TOLERANCE[dtype]


def distance(our: Tensor, their: Tensor) -> float:
    return float((our.detach().double() - their.detach()).norm() / their.detach().double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [None, 0.3, 0.8])
def test_ternary_weights_are_torchs_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, share: float | None
) -> None:
    layer = BitLinear(33, 7)
    layer.ternary_share = None if share is None else torch.tensor(share)
    with torch.no_grad():  # halves of the scale, on both sides of a tie
        layer.log_scale.zero_()
        layer.weight[0, :6] = torch.tensor([0.5, -0.5, 0.5000001, -0.49999997, 1.5, 0.0])
        layer.log_scale[1:] = random(6)
        scale = layer.log_scale.exp()[1:, None]
        layer.weight[1:, :4] = torch.cat([scale / 2, torch.nextafter(scale / 2, scale), scale, -scale / 2], 1)
    x = torch.eye(33, dtype=dtype)
    name = "bitnet_ternarise"
    ours, theirs = both_ways(monkeypatch, lambda: (layer(x).detach(), layer.quantised_weight(dtype)), name=name)
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    assert ours[1][0, :6].tolist() == [0, 0, 1, 0, 1, 0]


def test_a_weight_that_is_no_number_stays_one() -> None:
    assert ternary_weight(torch.tensor([[torch.nan, 1.0]]), torch.zeros(1)).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantiser", ["lsq", "lsq_clip", "seq", "absmean_row", "absmean_tensor"])
@pytest.mark.parametrize("share", [None, 0.3])
def test_ternary_linear(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, quantiser: str, share: float | None
) -> None:
    layer = BitLinear(70, 9, quantiser=quantiser)
    with torch.no_grad():
        layer.weight[:, ::7] *= 4  # beyond every range
        layer.weight[:, ::5] = layer.quantised_weight()[:, ::5]  # at a range's very end, where a ternary start lies
    layer.ternary_share = None if share is None else torch.tensor(share)
    x = random(2, 5, 70).to(dtype).requires_grad_()

    def work() -> tuple[Tensor, ...]:
        y = layer(x)
        wanted = [x, *layer.parameters()]
        return (y, *torch.autograd.grad(y, wanted, random(*y.shape, seed=1).to(dtype)))

    assert_alike(*both_ways(monkeypatch, work, name="bitnet_ternary_gradients"), dtype)


@pytest.mark.parametrize("frozen", ["weight", "log_scale"])
def test_a_frozen_part_of_a_ternary_layer_gets_no_gradient(frozen: str) -> None:
    layer = BitLinear(20, 4)
    layer.get_parameter(frozen).requires_grad_(False)
    layer(random(3, 20)).sum().backward()
    assert {name for name, value in layer.named_parameters() if value.grad is None} == {frozen}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("autocast", [False, True])
def test_activations(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bits: int, autocast: bool) -> None:
    quantise = FakeQuantActivation(bits, low_bits=True)
    x = random(3, 5, 77, dtype=dtype)
    x[0, 0] *= 1e-20
    x[0, 1] = 0
    x[0, 2, 5] = 400
    x[0, 3, 6] = torch.inf
    x[0, 4, 7] = torch.nan

    def work() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return with_gradients(quantise, x)

    ours, theirs = both_ways(monkeypatch, work, name="bitnet_fake_quantise")
    assert ours[0].dtype == theirs[0].dtype
    assert torch.equal(ours[1], theirs[1])
    finite = theirs[0].flatten(0, 1).isfinite().all(-1)
    assert finite.sum() == 13
    torch.testing.assert_close(ours[0].flatten(0, 1)[finite], theirs[0].flatten(0, 1)[finite], rtol=1e-6, atol=0)
    assert ours[0].flatten(0, 1)[~finite].isnan().any(-1).all()  # a loss that is no number is still seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 33, 70])
def test_rms_norm(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tokens: int) -> None:
    norm = RMSNorm(50, eps=1e-5)
    gain = random(50, seed=3)

    def function(x: Tensor, gain: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": gain}, x)

    def work() -> tuple[Tensor, ...]:
        return with_gradients(function, random(tokens, 50, dtype=dtype), gain)

    assert_alike(*both_ways(monkeypatch, work, name="bitnet_rms_norm_gradients"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    gate, up = 10 * random(2, 3, 45, dtype=dtype), random(2, 3, 45, seed=1, dtype=dtype)
    gate[0, 0, :4] = torch.tensor([-1e4, 1e4, 0.0, -90.0])

    def plain(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    assert_alike(with_gradients(cpu_training.swiglu, gate, up), with_gradients(plain, gate, up), dtype)
    assert cpu_training.swiglu(torch.full((1, 4), torch.nan, dtype=dtype), up[0, :1, :4]).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2])
def test_rotary_embedding(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int) -> None:
    angles = random(rows, 7, 12, seed=4)

    def function(query: Tensor, key: Tensor) -> Tensor:
        return torch.cat(_rotated(query, key, angles.cos(), angles.sin()), 2).to(dtype)

    def work() -> tuple[Tensor, ...]:
        return with_gradients(function, random(2, 7, 3, 12, dtype=dtype), random(2, 7, 1, 12, seed=1, dtype=dtype))

    assert_alike(*both_ways(monkeypatch, work, name="bitnet_rotate"), dtype)


def masks(kind: str) -> Tensor | None:
    """Of two sequences of 70 positions: causal, with padding on either side, or of three documents in a row."""
    if kind == "causal":
        return None
    document = torch.zeros(2, 70, dtype=torch.int64)
    if kind == "packed":
        document = torch.arange(70).expand(2, 70) // 25
    mask = (document[:, :, None] == document[:, None]) & torch.ones(70, 70, dtype=torch.bool).tril()
    if kind == "padded":
        mask[0, :, 60:] = False
        mask[1, :, :9] = False  # the first nine see nothing
    return mask[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["causal", "padded", "packed"])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 16), (3, 3, 20)])
def test_attention(dtype: torch.dtype, kind: str, heads: int, kv_heads: int, width: int) -> None:
    """Against the products and the softmax written out, in float64."""
    mask = masks(kind)
    counts = enumerate((heads, kv_heads, kv_heads))
    query, key, value = (random(2, 70, count, width, seed=seed, dtype=dtype) for seed, count in counts)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(heads // kv_heads, 2) for x in (key, value))
        scores = torch.einsum("bthe,bshe->bhts", query, key) * 0.3
        seen = torch.ones(70, 70, dtype=torch.bool).tril() if mask is None else mask
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
        return torch.einsum("bhts,bshe->bthe", weights, value)

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return cpu_training.attention(query, key, value, mask, 0.3)

    theirs = with_gradients(plain, *(x.double() for x in (query, key, value)))
    for our, their in zip(with_gradients(ours, query, key, value), theirs, strict=True):
        assert our.dtype == dtype
        assert distance(our, their) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [TopKOtherConfig(tau=1.5), ReverseKLConfig(), SampledConfig()])
def test_losses(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, options: KDLossConfig) -> None:
    """Candidates among which the target is, and is not; unused slots; a row whose candidates are the vocabulary."""
    options = attrs.evolve(options, ce_weight=0.3, format_weight=0.2, chunk_tokens=5)
    ids = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(3))
    candidates = (ids[..., None] + torch.arange(40)) % 40
    candidates[1] = candidates[1].roll(-1, -1)
    logprobs = random(2, 9, 40, seed=4).log_softmax(-1)
    logprobs[:, :7, 6:] = -torch.inf
    batch = batch_from_topk(ids, candidates, logprobs)
    batch |= {"log_z": torch.zeros(2, 9), "entropy": torch.ones(2, 9), "is_struct_token": ids % 3 == 0}
    hidden, head = 2 * random(2, 9, 12, dtype=dtype), random(40, 12, seed=1, dtype=dtype)

    def work() -> tuple[Tensor, ...]:
        leaves = (hidden.requires_grad_(), head.requires_grad_())
        value, parts = load_loss(options)(*leaves, batch)
        return (value, parts["kd"], parts["ce"], *torch.autograd.grad(value, leaves))

    assert_alike(*both_ways(monkeypatch, work, name="bitnet_exponentiate"), dtype)


def tiny_model(**switches: Any) -> BitNetKDEForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return BitNetKDEForCausalLM(BitNetKDEConfig(**shape, **heads, **switches)).train()


def gradients_of(model: BitNetKDEForCausalLM, autocast: bool) -> tuple[Tensor, ...]:
    ids = torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 30:] = False
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = model.model(ids, attention_mask=mask).last_hidden_state
    loss = (hidden * random(*hidden.shape, seed=5))[mask].sum()
    return (hidden.detach()[mask], *torch.autograd.grad(loss, list(model.model.parameters())[1:]))


@pytest.mark.parametrize("switches", [{}, {"sublayer_norm": True, "qk_norm": True}, {"hadamard": True}])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_whole_model(monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any], autocast: bool) -> None:
    """Without quantised activations: rounding to integers makes jumps of tiny differences."""
    model = tiny_model(activation_bits=16, **switches)

    def work() -> tuple[Tensor, ...]:
        return (*gradients_of(model, autocast), *gradients_of(model, autocast=False))

    ours, theirs = both_ways(monkeypatch, work, name="bitnet_swiglu_gradients")
    count = len(ours) // 2
    exact = theirs[count:]
    assert max(map(distance, ours[count:], exact)) <= 1e-5
    if autocast:  # as far from float32 as torch's, not a fifth more
        errors = [sum(map(distance, found[:count], exact)) for found in (ours, theirs)]
        assert errors[0] <= 1.2 * errors[1]


def test_threads_change_nothing(threads: None) -> None:
    model = tiny_model()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(gradients_of(model, autocast=True))
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # renamed in transformers 5.23
def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = tiny_model(), tiny_model()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    for one, two in zip(gradients_of(plain, True), gradients_of(checkpointed, True), strict=True):
        assert torch.equal(one, two)


def test_what_it_does_not_take() -> None:
    assert not cpu_training.takes(torch.zeros(1, dtype=torch.float64))
    assert not cpu_training.takes(torch.zeros(1, device="meta"))
    assert not cpu_training.takes(torch.zeros(1), dtype=torch.float16)
    with torch._subclasses.FakeTensorMode():
        assert not cpu_training.takes(torch.zeros(1))


def test_without_a_compiler_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*_: object) -> None:
        raise NoCompilerError("no C++ compiler", "install one")

    uncached = cpu_training.load_library.func.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(cpu_training, "load_library", uncached)
    monkeypatch.setattr(cpu_training, "compiled", no_compiler)
    assert not cpu_training.takes(torch.zeros(1))
    assert "no C++ compiler" in caplog.text
    assert BitLinear(8, 4)(torch.ones(2, 8)).shape == (2, 4)
