"""Counting the bytes of the tensors that are alive, real or fake."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Within it, counts the storages that operations return, until they are freed; `peak` is the most at a time.

    The same for real tensors and, inside a FakeTensorMode, for fake ones. Scratch space within a kernel isn't seen.
    Fake tensors have no values: questions about them are answered by `_ANSWERS`.
    """

    def __init__(self, *, fake: bool = False) -> None:
        super().__init__()
        self.fake = fake
        self.live = 0
        self._peak = 0
        self._known: dict[int, int] = {}

    def reset(self) -> None:
        """The peak is counted from here on."""
        self._peak = self.live

    def peak(self) -> int:
        """Bytes."""
        return self._peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _ANSWERS.get(func) if self.fake else None
        result = answer(args) if answer is not None else func(*args, **(kwargs or {}))
        in_a_file = func is torch.ops.aten.from_file.default  # the system may drop its pages at any time
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), 0 if in_a_file else tensor.untyped_storage().nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = size
        self.live += size
        self._peak = max(self._peak, self.live)
        weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)


def _every_index(arguments: Sequence[Any]) -> Tensor:
    mask: Tensor = arguments[0]
    return mask.new_empty(mask.numel(), mask.dim(), dtype=torch.int64)


def _yes(arguments: Sequence[Any]) -> bool:
    return True


_ANSWERS: dict[Any, Callable[[Sequence[Any]], Any]] = {
    torch.ops.aten.nonzero.default: _every_index,
    torch.ops.aten.equal.default: _yes,
}
"""What fake tensors can't say, as a full batch would have it: every mask is true everywhere, what may be equal is."""
