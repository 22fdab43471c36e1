"""What a step does between its matrix products on a CPU, each in one pass over memory instead of torch's several.

``cpu_training.cpp``, with gradients. `takes` says whether it does a piece of work; where it doesn't (a GPU, sharded or
fake tensors, torch.compile, which fuses by itself, no compiler, ``BITNET_FUSED=0`` in the environment), the callers
have the same in torch, which is also what the tests compare with.

Shapes: N tokens (any leading dimensions), I input width, O output width, H heads, E head width; B sequences, T
positions, K heads of keys and values.
"""

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_core.kernels.compile import (
    EXPONENTIAL,
    INSTALL,
    NoCompilerError,
    chosen_instruction_set,
    compiled,
    loaded,
    pointer,
)

SWITCH = "BITNET_FUSED"
"""The environment variable that leaves all of this to torch, at 0."""
SOURCE = Path(__file__).with_name("cpu_training.cpp")
_DTYPES = (torch.float32, torch.bfloat16)
_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "bitnet_ternarise": (_P, _P, _P, _I, _I, _I, _I, _P),
    "bitnet_ternary_gradients": (_P, _P, _P, _F, _F, _P, _I, _I, _I, _I, _P, _P),
    "bitnet_fake_quantise": (_P, _I, _I, _I, _I, _I, _I, _P),
    "bitnet_rms_norm": (_P, _P, _F, _I, _I, _I, _I, _P, _P),
    "bitnet_rms_norm_gradients": (_P, _P, _P, _P, _I, _I, _I, _I, _P, _P),
    "bitnet_swiglu": (_P, _P, _I, _I, _I, _I, _P),
    "bitnet_swiglu_gradients": (_P, _P, _P, _I, _I, _I, _I, _P, _P),
    "bitnet_rotate": (_P, _P, _P, _F, _I, _I, _I, _I, _I, _I, _P),
    "bitnet_softmax_parts": (_P, _I, _I, _I, _I, _P, _P),
    "bitnet_exponentiate": (_P, _P, _P, _I, _I, _I, _I),
    "bitnet_attend": (_P, _P, _P, _P, _F, _I, _I, _I, _I, _I, _I, _I, _P, _P),
    "bitnet_attend_gradients": (_P,) * 7 + (_F, _I, _I, _I, _I, _I, _I, _I, _P, _P, _P),
}
_ROWS = 32
"""kRows"""
_log = logging.getLogger(__name__)


@functools.cache
def load_library(instruction_set: str | None = None) -> ctypes.CDLL | None:
    """The compiled functions (see `chosen_instruction_set`); None, with a word in the log, where they can't be made."""
    try:
        library = loaded(compiled(SOURCE, chosen_instruction_set(instruction_set), (EXPONENTIAL,)))
        if not library.bitnet_has_openmp():  # torch's own threads may then be quicker
            raise NoCompilerError("the C++ compiler has no OpenMP", INSTALL)
    except NoCompilerError as error:
        _log.warning("torch does what compiled C++ would do quicker: %s", error)
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def takes(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the C++ takes these tensors, and puts out `dtype`."""
    if torch.compiler.is_compiling() or dtype not in _DTYPES or os.environ.get(SWITCH) == "0":
        return False
    plain = all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu and tensor.dtype in _DTYPES for tensor in tensors
    )
    return plain and load_library() is not None


def _call(name: str, *arguments: Any) -> None:
    """Tensors as their addresses."""
    function = getattr(load_library(), name)
    function(*(pointer(each) if isinstance(each, Tensor) else each for each in arguments))


def _is_low(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def _rows(tensor: Tensor) -> tuple[int, int]:
    """N and the last width."""
    width = tensor.shape[-1]
    return (tensor.numel() // width if width else 0), width


def ternarise(weight_OI: Tensor, scale_O: Tensor, share: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``w + share * (s t - w)`` in `dtype`, without gradient; `share` None is 1. Weight and scale are float32."""
    weight_OI = weight_OI.detach().contiguous()
    out_OI = torch.empty_like(weight_OI, dtype=dtype)
    threads = torch.get_num_threads()
    share = None if share is None else share.float()
    _call(
        "bitnet_ternarise", weight_OI, scale_O.contiguous(), share, *weight_OI.shape, threads, _is_low(out_OI), out_OI
    )
    return out_OI


def ternary_gradients(
    grad_OI: Tensor,
    weight_OI: Tensor,
    scale_O: Tensor,
    *,
    gradient_range: float,
    no_gradient_beyond: float | None,
    ternary_share: Tensor | None,
    want_weight: bool,
    want_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """d loss / d w and d loss / d log s of ``grad_OI`` = d loss / d (s t), float32: see `ternary_linear`.

    A float32 ``grad_OI`` becomes the gradient of w.
    """
    weight_OI, grad_OI = weight_OI.detach().contiguous(), grad_OI.contiguous()
    in_place = not _is_low(grad_OI)
    grad_weight = (grad_OI if in_place else torch.empty_like(weight_OI)) if want_weight else None
    grad_log_scale = torch.empty_like(scale_O) if want_scale else None
    limit = torch.inf if no_gradient_beyond is None else no_gradient_beyond
    share = None if ternary_share is None else ternary_share.float()
    _call(
        "bitnet_ternary_gradients",
        *(grad_OI, weight_OI, scale_O.contiguous(), gradient_range, limit, share, *weight_OI.shape),
        *(torch.get_num_threads(), _is_low(grad_OI), grad_weight, grad_log_scale),
    )
    return grad_weight, grad_log_scale


def fake_quantise(x_NI: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """`activation_codes` times their scale, in `dtype`, without gradient."""
    x_NI = x_NI.detach().contiguous()
    out_NI = torch.empty_like(x_NI, dtype=dtype)
    sizes = (*_rows(x_NI), torch.get_num_threads())
    _call("bitnet_fake_quantise", x_NI, bits, *sizes, _is_low(x_NI), _is_low(out_NI), out_NI)
    return out_NI


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, gain_I: Tensor, eps: float) -> Tensor:
        x_NI = x_NI.contiguous()
        out_NI, factor_N = (
            torch.empty_like(x_NI, dtype=torch.float32),
            x_NI.new_empty(x_NI.shape[:-1], dtype=torch.float32),
        )
        sizes = (*_rows(x_NI), torch.get_num_threads(), _is_low(x_NI))
        _call("bitnet_rms_norm", x_NI, gain_I, eps, *sizes, out_NI, factor_N)
        ctx.save_for_backward(x_NI, gain_I, factor_N)
        return out_NI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NI: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NI, gain_I, factor_N = ctx.saved_tensors
        tokens, width = _rows(x_NI)
        grad_x, gain_sums = torch.empty_like(x_NI), gain_I.new_empty(-(-tokens // _ROWS), width)
        sizes = (tokens, width, torch.get_num_threads(), _is_low(x_NI))
        _call("bitnet_rms_norm_gradients", grad_NI.contiguous(), x_NI, gain_I, factor_N, *sizes, grad_x, gain_sums)
        return grad_x, gain_sums.sum(0), None


def rms_norm(x_NI: Tensor, gain_I: Tensor, eps: float) -> Tensor:
    """Llama's: ``gain * x / sqrt(mean x² + eps)``, float32; a bfloat16 x is rounded before the (float32) gain."""
    out_NI: Tensor = _RMSNorm.apply(x_NI, gain_I, eps)
    return out_NI


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
        gate_NI, up_NI = gate_NI.contiguous(), up_NI.contiguous()
        ctx.save_for_backward(gate_NI, up_NI)
        out_NI = torch.empty_like(gate_NI)
        sizes = (*_rows(gate_NI), torch.get_num_threads(), _is_low(gate_NI))
        _call("bitnet_swiglu", gate_NI, up_NI, *sizes, out_NI)
        return out_NI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NI: Tensor) -> tuple[Tensor, Tensor]:
        gate_NI, up_NI = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate_NI), torch.empty_like(up_NI)
        sizes = (*_rows(gate_NI), torch.get_num_threads(), _is_low(gate_NI))
        _call("bitnet_swiglu_gradients", grad_NI.contiguous(), gate_NI, up_NI, *sizes, grad_gate, grad_up)
        return grad_gate, grad_up


def swiglu(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    """``silu(gate) * up`` of two tensors of one shape and dtype; silu is rounded to it, as torch does."""
    out_NI: Tensor = _SwiGLU.apply(gate_NI, up_NI)
    return out_NI


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NHE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TE, sin_TE)
        return _rotated(x_NHE, cos_TE, sin_TE, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor, None, None]:
        cos_TE, sin_TE = ctx.saved_tensors
        return _rotated(grad_NHE, cos_TE, sin_TE, -1.0), None, None


def _rotated(x_NHE: Tensor, cos_TE: Tensor, sin_TE: Tensor, sign: float) -> Tensor:
    x_NHE = x_NHE.contiguous()
    out_NHE = torch.empty_like(x_NHE)
    heads, width = x_NHE.shape[-2:]
    tokens, angles = x_NHE.numel() // (heads * width), cos_TE.numel() // width
    sizes = (sign, tokens, angles, heads, width, torch.get_num_threads(), _is_low(x_NHE))
    _call("bitnet_rotate", x_NHE, cos_TE.contiguous(), sin_TE.contiguous(), *sizes, out_NHE)
    return out_NHE


def rotate(x_NHE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Llama's rotary embedding of heads [N, H, E], in x's dtype: angles [T, E], float32, go round in the N tokens."""
    out_NHE: Tensor = _Rotate.apply(x_NHE, cos_TE, sin_TE)
    return out_NHE


def softmax_parts(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """The largest x of each row and ``sum e^(x - largest)``, float32 [N, 1]; -inf and 0 where all are -inf."""
    largest_N1, total_N1 = (x_NI.new_empty(len(x_NI), 1, dtype=torch.float32) for _ in range(2))
    _call("bitnet_softmax_parts", x_NI, *_rows(x_NI), torch.get_num_threads(), _is_low(x_NI), largest_N1, total_N1)
    return largest_N1, total_N1


def exponentiate_(x_NI: Tensor, largest_N1: Tensor, factor_N1: Tensor) -> Tensor:
    """x becomes ``factor * e^(x - largest)``."""
    factor_N1 = factor_N1.contiguous()
    _call("bitnet_exponentiate", x_NI, largest_N1, factor_N1, *_rows(x_NI), torch.get_num_threads(), _is_low(x_NI))
    return x_NI


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        batch, length, heads, width = query.shape
        out, log_sums = torch.empty_like(query), query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.sizes = (scale, batch, length, heads, key.shape[2], width)
        _call(
            "bitnet_attend", query, key, value, mask, *ctx.sizes, torch.get_num_threads(), _is_low(query), out, log_sums
        )
        ctx.save_for_backward(query, key, value, mask, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, log_sums = ctx.saved_tensors
        query_grad = torch.empty_like(query)
        # Of each query head by itself: so every head is one thread's.
        key_grads, value_grads = (torch.empty_like(query, dtype=torch.float32) for _ in range(2))
        _call(
            "bitnet_attend_gradients",
            *(grad.contiguous(), query, key, value, out, log_sums, mask, *ctx.sizes),
            *(torch.get_num_threads(), _is_low(query), query_grad, key_grads, value_grads),
        )
        key_grad, value_grad = (
            grads.unflatten(2, (key.shape[2], -1)).sum(3).to(key.dtype) for grads in (key_grads, value_grads)
        )
        return query_grad, key_grad, value_grad, None, None


def attention(
    query_BTHE: Tensor, key_BTKE: Tensor, value_BTKE: Tensor, mask_B1TT: Tensor | None, scale: float
) -> Tensor:
    """Attention within sequences, [B, T, H, E], of tensors of one dtype; grouped heads share keys and values.

    mask: bool, True where a position (second to last axis) sees another; None: causal. A position that sees nothing
    gets zeros. Scores and softmax are float32.
    """
    if mask_B1TT is not None:
        batch, length = query_BTHE.shape[:2]
        mask_B1TT = mask_B1TT.expand(batch, 1, length, length).contiguous()
    out_BTHE: Tensor = _Attention.apply(query_BTHE, key_BTKE, value_BTKE, mask_B1TT, scale)
    return out_BTHE
