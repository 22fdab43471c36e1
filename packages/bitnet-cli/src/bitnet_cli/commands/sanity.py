"""`bitnet sanity`: does this installation work? Imports, a tiny student forward and backward, a tiny trace, plugins."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet_core.model.modeling import BitNetKDEForCausalLM

Check = tuple[str, Callable[[], str]]


@click.command("sanity", short_help="Check in seconds that this installation works.")
def sanity_command() -> None:
    """Check this installation in seconds: imports, a tiny student, a tiny trace through the loss, the plugins.

    \b
    Example:
      bitnet sanity
    """
    from bitnet_cli.reporter.terminal import open_console

    sys.exit(1 if run_sanity(open_console()) else 0)


def run_sanity(console: "Console", checks: tuple[Check, ...] | None = None) -> int:
    """Run every check, one line each; returns how many failed."""
    failed = 0
    for name, check in checks if checks is not None else CHECKS:
        started = time.monotonic()
        try:
            mark, style, note = "✓", "green", check()
        except Exception as error:  # a check may fail in any way, and the others still say something
            mark, style, note = "✗", "bold red", f"{type(error).__name__}: {error}"
            failed += 1
        line = f"{mark} {name:<22} {time.monotonic() - started:6.2f} s  {note}"
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    return failed


def imports() -> str:
    from importlib import metadata

    names = ("torch", "transformers", "pyarrow", "attrs", "pluggy")
    for name in names:
        import_module(name)
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def plugins() -> str:
    from bitnet_cli.plugins.load import load_plugins

    rows = load_plugins().all
    broken = [row.name for row in rows if row.status not in ("ok", "disabled")]
    listed = ", ".join(f"{row.kind} {row.name}" for row in rows if row.status == "ok")
    return listed + (f"; with problems: {', '.join(broken)} (see `bitnet plugins`)" if broken else "")


def student_step() -> str:
    """A tiny ternary student, forward and backward, at 8 and at 4 bits."""
    import torch

    model = _tiny_student()
    ids_BT = torch.arange(16).reshape(2, 8)
    for bits in (8, 4):
        model.set_activation_bits(bits)
        logits_BTV = model(input_ids=ids_BT).logits
        logits_BTV.float().logsumexp(-1).mean().backward()
    missing = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    if missing or not torch.isfinite(logits_BTV).all():
        raise RuntimeError(f"no gradient for {missing}" if missing else "logits are not finite")
    return f"{sum(weight.numel() for weight in model.parameters()):,} parameters, A8 and A4"


def trace_loss() -> str:
    """A tiny trace whose teacher is the student itself: its KD loss must be zero, and a shifted one's must not."""
    import torch

    from bitnet_core.losses.reference import combined_loss

    model = _tiny_student().eval()
    ids_BT = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT).logits.double()
    probabilities_BTK, topk_ids = logits_BTV.softmax(-1).topk(4)
    batch = {
        "input_ids": ids_BT,
        "teacher_sample_id": ids_BT,
        "attention_mask": torch.ones_like(ids_BT, dtype=torch.bool),
        # row t holds the distribution that token t was drawn from: the prediction made at t − 1
        "topk_ids": topk_ids.roll(1, dims=1),
        "topk_logprobs": probabilities_BTK.log().roll(1, dims=1),
        "other_logprob": (1 - probabilities_BTK.sum(-1)).log().roll(1, dims=1),
        "is_struct_token": torch.zeros_like(ids_BT, dtype=torch.bool),
        "is_prompt": torch.zeros_like(ids_BT, dtype=torch.bool),
        "has_kd": torch.ones_like(ids_BT, dtype=torch.bool),
    }
    _, same = combined_loss(logits_BTV, batch, tau=1.3)
    _, other = combined_loss(logits_BTV.flip(-1), batch, tau=1.3)
    if abs(float(same["kd"])) > 1e-9 or not float(other["kd"]) > 1e-9:
        raise RuntimeError(f"KD of a student with itself is {float(same['kd'])}, with another one {float(other['kd'])}")
    return f"KD with itself {abs(float(same['kd'])):.1e} nats, with another {float(other['kd']):.3f}"


def _tiny_student() -> "BitNetKDEForCausalLM":
    from bitnet_core.config.student import StudentConfig
    from bitnet_core.model.init_from import build_student

    config = StudentConfig(
        init_from="", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return build_student(config, teacher_folder=None, vocab_size=32)


CHECKS: tuple[Check, ...] = (
    ("imports", imports),
    ("student step", student_step),
    ("trace through the loss", trace_loss),
    ("plugins", plugins),
)
