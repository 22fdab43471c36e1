"""The processes that train together: one on a laptop, N under torchrun. The loop is the same for both.

Many share parameters, gradients and moments by FSDP2 (`fully_shard`), each its rows of a matrix and the scales of these
rows. Masters are gathered in float32: quantising bfloat16 copies would change the codes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bitnet_core.errors import CoreError
from bitnet_core.hardware import best_device

Result = TypeVar("Result")
Items = TypeVar("Items", bound=Any)


@attrs.frozen
class ProcessGroup:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def mine(self, items: Items) -> Items:
        """This process's part of what all share; may be empty."""
        part: Items = items[self.rank :: self.size]
        return part

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def rows(self, count: int) -> slice:
        """Which of a matrix's rows this process has (`fully_shard` cuts so): all but the last have as many."""
        each = -(-count // self.size)
        first = min(self.rank * each, count)
        return slice(first, min(first + each, count))

    def everyones(self, item: Result) -> list[Result]:
        """What each process has here, in the order of their ranks. Plain values only: they are pickled."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A CoreError that one process raises in the body is raised by all, after the body."""
        fault: CoreError | None = None
        try:
            yield
        except CoreError as error:
            if self.size == 1:
                raise
            fault = error
        found = self.everyones(None if fault is None else (fault.why, fault.fix))
        for why, fix in filter(None, found):
            raise CoreError(why, fix) from fault

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """The body runs on the first process, then on the others: what it tidies up, they find tidy."""
        if not self.is_first:
            self.wait_for_all()
        yield
        if self.is_first:
            self.wait_for_all()


ALONE = ProcessGroup(0, 1, torch.device("cpu"))


@contextmanager
def join_process_group() -> Iterator[ProcessGroup]:
    """The processes that torchrun's environment variables describe; without them, this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(0, 1, best_device())
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), size, device)
        dist.barrier()  # none leaves while another still talks to it
    finally:
        dist.destroy_process_group()


class Root(nn.Module):
    """Runs work on the model inside a forward pass: where parameters are sharded, they are whole in there only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return work(self.model, *arguments)


def shard(model: nn.Module, layers: Sequence[nn.Module], group: ProcessGroup) -> Root:
    """The model, sharded over the processes by layer; for one process, just wrapped."""
    root = Root(model)
    if group.size > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(group.device.type, (group.size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(root, mesh=mesh)
    return root


def on_meta(model: nn.Module) -> bool:
    """Whether its parameters have shapes and no values yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def make_room(root: nn.Module, device: torch.device) -> None:
    """Give every parameter and buffer on the meta device memory on `device`, a sharded one its own rows' alone."""
    owners: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((module, name))
    root.to_empty(device=device)
    for first, *others in owners.values():  # tied ones are one parameter again
        for module, name in others:
            module._parameters[name] = first[0]._parameters[first[1]]


def reshard(root: Root) -> None:
    """Let go of what a forward pass without a backward one has gathered."""
    free: Callable[[], None] | None = getattr(root, "reshard", None)  # of FSDPModule, which a sharded root is
    if free is not None:
        free()


def own_rows(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's rows of what is computed from a parameter row by row."""
    if not isinstance(tensor, DTensor):
        return tensor
    assert isinstance(parameter, DTensor)
    return tensor.redistribute(placements=parameter.placements).to_local()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (all processes must ask); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor, placed and sharded as the parameter that it belongs to; scalars are whole everywhere."""
    if isinstance(value, DTensor):
        return value
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)
