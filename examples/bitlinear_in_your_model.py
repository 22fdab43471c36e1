"""Ternary weights in a model of your own: every nn.Linear becomes a BitLinear, then it is trained as before.

    uv run python examples/bitlinear_in_your_model.py

B is the batch, D the width. The model here is a small classifier; nothing in `ternarise` knows that.
"""

import torch
from torch import Tensor, nn

from bitnet_core import BitLinear, FakeQuantActivation
from bitnet_core.ternary.bitlinear import code_shares


def ternarise(model: nn.Module, keep: tuple[str, ...] = (), bits: int = 8) -> nn.Module:
    """Replace, in place, every linear layer but those named in `keep`; inputs get `bits` (8, 4, or 16: not quantised).

    Keep in full precision what the literature keeps: embeddings, norms, and the last layer. nn.MultiheadAttention
    holds its projections as bare parameters, which stay; nn.TransformerEncoderLayer reads the weights of its layers
    past them in evaluation, unless `torch.backends.mha.set_fastpath_enabled(False)` forbids it.
    """
    unknown = set(keep) - {name for name, _ in model.named_modules()}
    if unknown:
        raise ValueError(f"keep: no layer is called {', '.join(sorted(unknown))}")
    for name, linear in [each for each in model.named_modules() if type(each[1]) is nn.Linear and each[0] not in keep]:
        ternary = BitLinear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        ternary.weight, ternary.bias = linear.weight, linear.bias
        ternary.fit_scale()  # the scale of each row that is nearest to its weights
        quantised = nn.Sequential(FakeQuantActivation(bits, low_bits=True), ternary)
        model.set_submodule(name, quantised.to(linear.weight.device))
    return model


def optimizer_for(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW in two groups: scales and everything of one dimension without weight decay, scales with their own rate."""
    scales = [p for name, p in model.named_parameters() if name.endswith("log_scale")]
    vectors = [p for name, p in model.named_parameters() if p.ndim < 2 and not name.endswith("log_scale")]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0.0},
            {"params": scales, "weight_decay": 0.0, "lr": 3 * learning_rate},
        ],
        lr=learning_rate,
    )


def data(count: int) -> tuple[Tensor, Tensor]:
    """Points [B, 16] in four classes that no linear layer separates."""
    x_BD = torch.randn(count, 16)
    return x_BD, (x_BD[:, 0] * x_BD[:, 1] > 0).long() + 2 * (x_BD[:, 2] * x_BD[:, 3] > 0).long()


def main(steps: int = 150) -> tuple[float, float]:
    """Accuracy on unseen points before and after training with ternary weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 4))
    ternarise(model, keep=("4",))
    unseen_BD, labels_B = data(1000)

    def accuracy() -> float:
        with torch.no_grad():
            return (model(unseen_BD).argmax(-1) == labels_B).float().mean().item()

    before = accuracy()
    optimizer = optimizer_for(model, 1e-2)
    for _ in range(steps):
        x_BD, classes_B = data(256)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_BD), classes_B).backward()
        optimizer.step()
    after = accuracy()
    print(f"accuracy on unseen points: {before:.2f} untrained, {after:.2f} trained")
    for name, shares in code_shares(model).items():
        print(f"  {name}: {shares.minus:.0%} -1, {shares.zero:.0%} 0, {shares.plus:.0%} +1")
    return before, after


if __name__ == "__main__":
    main()
