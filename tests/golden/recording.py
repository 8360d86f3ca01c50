"""What a run computed, written down bit by bit: every micro-batch, every output, the last weights and optimizer state, every metric.

It listens through torch's global hooks and knows of the project no more than the class name of the module that is trained, so that
the same file works in any tree, whatever its modules are called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOTS = ("Learner",)
"""Class names of the module whose input is a micro-batch and whose output holds its loss."""
INDEX = "record.json"
ENDED = "ended"
"""Name of the error that a run ended with, in its record."""
DIGITS = 4
"""Of step numbers in names: a record is in the order of its names' making, and reads well."""


class Record:
    """Named tensors and values in the order in which they came: an index of digests in memory, tensors on disk group by group."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.entries = folder, dict[str, dict[str, Any]]()
        folder.mkdir(parents=True)

    def add(self, group: str, value: object) -> None:
        """`value`, however nested, under `group/...`; the tensors of one call share a file."""
        tensors = dict[str, Tensor]()
        for name, leaf in flat(group, value):
            if name in self.entries:
                raise ValueError(f"{name} is recorded twice")
            if isinstance(leaf, Tensor):
                tensors[name] = leaf.detach().to("cpu", copy=True).contiguous()
                self.entries[name] = {"dtype": str(leaf.dtype), "shape": list(leaf.shape), "digest": digest(leaf)}
            else:
                self.entries[name] = {"value": leaf}
        if tensors:
            file = f"{len(self.entries):06d}.safetensors"
            safetensors.torch.save_file(tensors, self.folder / file)
            for name in tensors:
                self.entries[name]["file"] = file

    def fail(self, error: BaseException) -> None:
        self.entries[ENDED] = {"value": " ".join(f"{type(error).__name__}: {error}".split())}

    def close(self) -> None:
        (self.folder / INDEX).write_text(json.dumps(self.entries, indent=0))


def digest(tensor: Tensor) -> str:
    """Of the bytes: -0.0 is not 0.0, and equal NaN are equal."""
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(plain.numpy().tobytes(), digest_size=16).hexdigest()


def flat(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """Leaves of mappings, data classes and sequences: tensors, and plain values as JSON holds them."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray):
        yield name, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from flat(f"{name}/{key}", part)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from flat(f"{name}/{field.name}", getattr(value, field.name))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from flat(f"{name}/{i}", part)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, repr(value)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield name, value
    else:
        raise TypeError(f"{name}: a {type(value).__name__} cannot be recorded")


@contextlib.contextmanager
def recording(folder: Path, form: Callable[[Any], object] = lambda given: given) -> Iterator[Record]:
    """Record all that happens inside: `step 0003/train 1/in/...`, `.../out/...`, and at the end `weights/`, `optimizer/`, `steps`.

    `form` makes of a micro-batch what is recorded of it. What is added inside comes before these.
    Raises `ValueError` where no optimizer made a step: the hooks have missed the run.
    """
    record, steps, calls = Record(folder), 0, 0
    trained: nn.Module | None = None
    last: torch.optim.Optimizer | None = None

    def where(module: nn.Module) -> str:
        return f"step {steps:0{DIGITS}d}/{'train' if module.training else 'val'} {calls}"

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal trained
        if type(module).__name__ in ROOTS:
            trained = module
            record.add(f"{where(module)}/in", form(given[0]) if len(given) == 1 else given)

    def after(module: nn.Module, given: tuple[Any, ...], out: object) -> None:
        nonlocal calls
        if type(module).__name__ in ROOTS:
            record.add(f"{where(module)}/out", out)
            calls += 1

    def stepped(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal last, steps, calls
        last, steps, calls = optimizer, steps + 1, 0

    hooks = (
        register_module_forward_pre_hook(before),
        register_module_forward_hook(after),
        register_optimizer_step_post_hook(stepped),
    )
    try:
        yield record
        if trained is None or last is None:
            raise ValueError(f"no {' or '.join(ROOTS)} was trained in here: the recording saw nothing")
        record.add("weights", trained.state_dict())
        record.add("optimizer", optimizer_state(trained, last))
        record.add("steps", steps)
    except (Exception, SystemExit) as error:
        record.fail(error)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        record.close()


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Settings and moments by the parameter's name, whatever its number and its group."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        settings = {k: v for k, v in group.items() if k != "params"}
        for parameter in group["params"]:
            found[names[parameter]] = settings | dict(optimizer.state[parameter])
    return dict(sorted(found.items()))
