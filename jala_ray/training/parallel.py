"""How the ranks of a run share its model: one process, whole copies (DDP), or shards (FSDP2), behind one interface.

    kind     a rank holds                                      a step sends
    Alone    everything                                        nothing
    Ddp      everything                                        a sum of gradients
    Fsdp     a part of what learns, its gradients and its      weights to all ranks before they are read, gradients back to whom they
             moments; what rests, whole                        belong to

Under `Fsdp` blocks of the language model, and of a vision tower that learns, are gathered and reduced one by one while others compute; what
else learns is one group around them. Between two steps parameters are `DTensor`s. All objective's modules are sharded, also those that
rest: perceivers follow each other part by part, which is exact (method.md 5). Towers and other weights that rest are whole on each rank:
they have neither gradients nor moments, and held in bf16 would be gathered for nothing.

All of a step's collectives come in the same order on all ranks, whatever their batches hold. Without `train.reshard` weights are gathered
once a step and stay until its last backward pass, so that ranks may cut their shares into different numbers of micro-batches. A tower may
see no picture on one rank alone: its blocks are gathered before a pass and reduced after the last one, not while it goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from jala_ray.config import TrainConfig
from jala_ray.training.ddp import distributed
from jala_ray.types import ConfigError

if TYPE_CHECKING:
    from jala_ray.training.learner import Learner


@dataclass
class Alone:
    """One process; the interface of all kinds. Methods are collective: all ranks call them in the same order."""

    @property
    def repeats(self) -> bool:
        """A rank may run passes of a step again, or more of them, without the others."""
        return True

    def shard(self, learner: Any) -> None:
        """Called once, before there is an optimizer: parameters may be others afterwards, under the same names."""

    def wrap(self, learner: nn.Module) -> nn.Module:
        """Called once, before the first step: what is called with a batch in training."""
        return learner

    def agreed(self, passes: int) -> int:
        """How many passes this rank makes in a step that has so many micro-batches for it."""
        return passes

    def accumulates(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch's forward and backward pass: gradients are summed over ranks in a step's last one alone."""
        return contextlib.nullcontext()

    def reduce(self) -> None:
        """After the last backward pass: gradients are those of the step from here on."""

    def whole(self) -> contextlib.AbstractContextManager[Any]:
        """Within, between two steps: a rank may use the learner alone, without gradients."""
        return contextlib.nullcontext()


@dataclass
class Ddp(Alone):
    """Whole copies, gradients summed while the backward pass goes on."""

    device: torch.device
    model: Any = None

    def wrap(self, learner: nn.Module) -> nn.Module:
        self.model = distributed(learner, self.device)
        return self.model

    def accumulates(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.model.no_sync()


@dataclass
class Fsdp(Alone):
    """Shards over all ranks of the default process group."""

    device: torch.device
    reshard: bool = False
    """Weights of blocks are given back after each pass over them, and gathered again."""
    learner: Any = None
    always: list[Any] = field(default_factory=list)
    """Units that each pass of each rank runs over."""
    sometimes: list[Any] = field(default_factory=list)

    @property
    def repeats(self) -> bool:
        return False

    def shard(self, learner: Learner) -> None:
        """Raises `ConfigError` where torch is too old."""
        if not hasattr(FSDPModule, "set_manual_backward_finalization"):
            remedy = "Upgrade torch to 2.15 or later, or pass --train.parallel ddp."
            raise ConfigError(
                "train.parallel", "fsdp", f"a torch that reduces when asked, not {torch.__version__}", remedy
            )
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        resting = {p for part in (learner.vla, learner.encoder) for p in part.parameters() if not p.requires_grad}
        always, sometimes = learner.units()

        def unit(module: nn.Module, reshard: bool) -> Any:
            return fully_shard(module, mesh=mesh, reshard_after_forward=reshard, ignored_params=resting)

        self.sometimes = [unit(module, False) for module in sometimes]
        self.always = [unit(module, self.reshard) for module in always]
        self.learner = unit(learner, False)
        self.learner.set_manual_backward_finalization(True)
        self.learner.set_reduce_scatter_unused_params(True)
        # Units join the root's streams with the first forward pass through it, and some are asked for weights before that.
        self.learner._get_fsdp_state()._lazy_init()

    def agreed(self, passes: int) -> int:
        """As many as any rank, where each of them gathers weights."""
        if not self.reshard:
            return passes
        most = torch.tensor(passes, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    @contextlib.contextmanager
    def accumulates(self, *, last: bool) -> Iterator[None]:
        self.learner.set_requires_gradient_sync(last)
        self.learner.set_reshard_after_backward(last)
        for unit in self.always if self.reshard else ():
            unit.set_reshard_after_backward(True)
        for unit in self.sometimes:
            unit.set_requires_gradient_sync(False)
            unit.unshard()
        yield

    def reduce(self) -> None:
        self.learner.set_requires_gradient_sync(True)
        self.learner.finalize_backward()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Every weight is on every rank, so that no forward pass has to ask others for any."""
        units = [*self.always, *self.sometimes, self.learner]
        self.learner.set_reshard_after_forward(False)
        for unit in units:
            unit.unshard()
        try:
            yield
        finally:
            self.learner.reset_iter_state()  # also after a pass that failed; weights are shards again
            for unit in self.always:
                unit.set_reshard_after_forward(self.reshard)


def parallel(train: TrainConfig, world: int, device: torch.device) -> Alone:
    """The kind that a run's settings ask for."""
    if world == 1:
        return Alone()
    return Fsdp(device, train.reshard) if train.parallel == "fsdp" else Ddp(device)
