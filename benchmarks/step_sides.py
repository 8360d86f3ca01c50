"""The three sides of the benchmark: the product's step, the straightforward one, and an older commit's in its own process.

Each trains on one step's samples over and over: `step` makes one update and says what it took.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks import step_straightforward as plain
from benchmarks.step_samples import Step, portable
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.objectives.aligning import DISTANCES
from jala_ray.training.build import build_learner
from jala_ray.training.device import autocast, to_device
from jala_ray.training.learner import Learner
from jala_ray.training.pretraining import Pretraining

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "vla.backbone.vision.": "vlm.vision_tower.",
    "vla.backbone.projector.": "vlm.multi_modal_projector.",
    "vla.backbone.language.": "vlm.language_model.",
    "vla.backbone.output.": "lm_head.",
    "vla.motion_embedding.": "motion_embedding.",
    "vla.hand_embedding.": "hand_embedding.",
    "vla.motion_head.": "motion_head.",
    "encoder.model.": "encoder.",
    "objective.lsp.": "lsp.",
    "objective.lap.": "lap.",
}
"""How the learner's tensors begin, and the straightforward model's."""


class Side(Protocol):
    """One of those that are compared."""

    def step(self) -> dict[str, float]:
        """One update: `wall_s`, and `cpu_s` of all threads of its process."""
        ...


@contextlib.contextmanager
def seconds(device: torch.device) -> Iterator[dict[str, float]]:
    """`wall_s` and `cpu_s` of this process, filled when the context ends; the device's work included."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: dict[str, float] = {}
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    wait()
    taken |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def plain_name(name: str) -> str:
    """What the straightforward model calls a tensor of the learner. Raises `KeyError` for one that it has not."""
    start = next((start for start in NAMES if name.startswith(start)), None)
    if start is None:
        raise KeyError(f"the straightforward step has no {name}")
    return NAMES[start] + name.removeprefix(start)


class Ours:
    """`Pretraining.step` on the product's batches, which arrive as they do there."""

    def __init__(
        self,
        config: RunConfig,
        assets: Assets,
        step: Step,
        device: torch.device,
        learner: Learner | None = None,
        change: Callable[[Learner], None] | None = None,
    ) -> None:
        """`learner`: one that such a side has made, to go on with; else it is made, and `change` is what is done to it first."""
        self.config, self.device, self.share, self.done = config, device, step.share, 0
        made = learner
        if made is None:
            with device:  # weights are drawn where they stay: billions of them take minutes on a CPU
                made = build_learner(config, assets).to(device)
            if change is not None:
                change(made)
        self.learner = made.train()
        self.task = Pretraining(
            config=config,
            folder="",
            device=device,
            learner=made,
            total_steps=1000,
            assets=assets,
            steps_per_epoch=1000,
            shares=lambda first: itertools.repeat(step.share),
            validation={},
        )
        self.task.begin()
        if learner is None:
            self.task.settle()
        self.stream: Any = self.task.stream(0)

    def step(self) -> dict[str, float]:
        with seconds(self.device) as taken:
            self.task.clock.begin()
            self.task.step(self.learner, next(self.stream), self.done)
        self.done += 1
        return taken

    @property
    def needed_flops(self) -> float:
        """By the product's count, of the last step: no padding, no forbidden pair of tokens, nothing that nobody reads, nothing twice."""
        return self.task.meters.flops[-1]

    @property
    def peak_flops(self) -> float | None:
        """Dense bf16 FLOP/s of the device; None for a CPU and the unknown."""
        return None if self.task.peak is None else 1e12 * self.task.peak

    def close(self) -> None:
        """Nothing more is copied ahead."""
        self.stream.close()

    def losses(self, step: Step) -> Iterator[Tensor]:
        """Of each micro-batch, as parts of the mean over the step's samples."""
        micro = [to_device(batch, self.device) for batch in step.share.micro]
        count = sum(float(batch.weight.sum()) for batch in micro)
        for batch in micro:
            with autocast(self.device, self.config.train.precision):
                out = self.learner(batch)
            yield out.loss / count

    @torch.no_grad()
    def loss(self, step: Step) -> float:
        return sum(map(float, self.losses(step)))

    def gradients(self, step: Step) -> dict[str, Tensor]:
        """By the straightforward model's names."""
        for loss in self.losses(step):
            loss.backward()
        return {plain_name(name): gradient for name, gradient in taken_gradients(self.learner).items()}


def taken_gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name, on the host; they are gone then."""
    found = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


class Plain:
    """`step_straightforward` with the learner's weights, on padded rows of the same samples."""

    def __init__(self, ours: Ours, assets: Assets, step: Step) -> None:
        config, learner, vocab = ours.config, ours.learner, assets.spec.vocab
        perceiver, tap = config.objective.perceivers, config.objective.aligned_layer
        assert perceiver is not None and tap is not None
        sizes = (perceiver.width, perceiver.layers, perceiver.heads, tap)
        facts = plain.Facts(vocab.text, vocab.slots, vocab.codes, vocab.token_slots, learner.encoder.grid, *sizes)
        architectures = (learner.vla.backbone.hf_config_dict(), learner.encoder.hf_config_dict())
        self.model = plain.Straightforward(*architectures, facts)
        self.model.load_state_dict({plain_name(name): value for name, value in learner.state_dict().items()})
        self.model.to(ours.device).train()
        self.optim, self.precision, self.device = config.optim, config.train.precision, ours.device
        self.optimizer = plain.make_optimizer(self.model, self.optim.lr, self.optim.betas, self.optim.weight_decay)
        self.resize(step, config.train.micro_batch)

    def resize(self, step: Step, size: int) -> None:
        """Take so many samples into a micro-batch."""
        self.model.zero_grad(set_to_none=True)
        self.size = size
        self.micro = self.collated(step)

    def collated(self, step: Step) -> list[dict[str, Tensor]]:
        samples = [portable(laid) for laid in step.laid]
        return [plain.collate(samples[i : i + self.size]) for i in range(0, len(samples), self.size)]

    def moved(self, micro: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """To the device."""
        if self.device.type == "cpu":
            return micro
        return [{k: v.pin_memory().to(self.device, non_blocking=True) for k, v in b.items()} for b in micro]

    def step(self) -> dict[str, float]:
        with seconds(self.device) as taken:
            plain.backward(self.model, self.moved(self.micro), self.precision)
            plain.update(self.model, self.optimizer, self.optim.clip)
        return taken

    @torch.no_grad()
    def loss(self, step: Step) -> float:
        micro = self.moved(self.collated(step))
        with autocast(self.device, self.precision):
            return sum(float(self.model(batch)) for batch in micro) / len(step.laid)

    def gradients(self, step: Step) -> dict[str, Tensor]:
        plain.backward(self.model, self.moved(self.collated(step)), self.precision)
        return taken_gradients(self.model)


@contextlib.contextmanager
def smooth() -> Iterator[None]:
    """Both sides align by squares. The derivative of |h - z| jumps at 0: rounding turns a sign now and then, and a gradient by 1 %."""
    kept = DISTANCES["l1"], plain.distance
    DISTANCES["l1"] = plain.distance = lambda h, z: ((h - z) ** 2).mean(-1)
    try:
        yield
    finally:
        DISTANCES["l1"], plain.distance = kept


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two sides, relative."""

    loss: float
    gradient: float = 0.0
    """|a - b| / |b| of all gradients as one vector."""
    worst: float = 0.0
    """The same of the tensor that differs most, over its own norm or a thousandth of the whole, whichever is larger."""
    name: str = ""


def difference(ours: Ours, other: Ours | Plain, step: Step, theirs: Step | None = None) -> Difference:
    """Of loss, and of gradients with `smooth`; `theirs`: the other's batches of the same samples, where they are not `step`'s.

    Where one side has no gradient for a tensor, the other's must be zero to be equal.
    """
    theirs = theirs or step
    loss = abs(ours.loss(step) / other.loss(theirs) - 1)
    with smooth():
        mine, reference = ours.gradients(step), other.gradients(theirs)
    apart = {n: float((_at(mine, n, reference) - _at(reference, n, mine)).norm()) for n in mine.keys() | reference}
    norms = {name: float(_at(reference, name, mine).norm()) for name in apart}
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    relative = {name: apart[name] / max(norms[name], 1e-3 * whole) for name in apart}
    name = max(relative, key=lambda n: relative[n])
    return Difference(loss, sum(value**2 for value in apart.values()) ** 0.5 / whole, relative[name], name)


def _at(gradients: dict[str, Tensor], name: str, other: dict[str, Tensor]) -> Tensor:
    return gradients[name] if name in gradients else torch.zeros_like(other[name])


class Before:
    """An older commit's step, on the same samples with the same weights. A context: its process ends with it."""

    def __init__(self, commit: str, ours: Ours, assets: Assets, step: Step) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log = (Path(self.folder.name) / "log").open("w+")
        place = Path(self.folder.name)
        unpack(commit, place / "tree")
        (place / "settings.json").write_text(json.dumps(settings(ours, assets) | {"tree": str(place / "tree")}))
        torch.save([portable(laid) for laid in step.laid], place / "samples.pt")
        torch.save({k: v.float().cpu() for k, v in ours.learner.state_dict().items()}, place / "weights.pt")
        environment = os.environ | {"PYTHONPATH": str(place / "tree"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(ROOT / "benchmarks/step_before.py"), str(place)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, env=environment, cwd=place, text=True, **pipes)
        self._answer()

    def __enter__(self) -> Before:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()

    def step(self) -> dict[str, float]:
        return self.ask("step")

    def ask(self, what: str) -> dict[str, Any]:
        """Raises `RuntimeError` with what the process said where it has ended."""
        pipe: IO[str] | None = self.process.stdin
        assert pipe is not None
        pipe.write(f"{what}\n")
        pipe.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"the older commit's step ended:\n{self.log.read()[-4000:]}")
        return json.loads(line)


def settings(ours: Ours, assets: Assets) -> dict[str, Any]:
    """What `step_before.py` builds its model of."""
    model, objective = ours.config.model, ours.config.objective
    perceivers = objective.perceivers
    assert perceivers is not None
    sizes = {"align.layer": objective.aligned_layer} | {
        f"perceiver.{name}": getattr(perceivers, name) for name in ("width", "layers", "heads")
    }
    return {
        "device": ours.device.type,
        "threads": torch.get_num_threads(),
        "precision": ours.config.train.precision,
        "micro_batch": ours.config.train.micro_batch,
        "vision": dataclasses.asdict(model.backbone.vision),
        "language": dataclasses.asdict(model.backbone.language),
        "encoder": dataclasses.asdict(model.encoder.sizes),
        "image_size": model.backbone.image_size,
        "frame_size": model.encoder.image_size,
        "vocab": dataclasses.asdict(assets.spec.vocab),
        "objective": sizes,
        "optim": {name: getattr(ours.config.optim, name) for name in ("lr", "weight_decay", "betas", "warmup", "clip")},
    }


def unpack(commit: str, place: Path) -> None:
    """A commit's package. Raises `RuntimeError` with what git says where the commit is not in this clone."""
    words = ["git", "-C", str(ROOT), "archive", commit, "jala_ray"]
    try:
        done = subprocess.run(words, capture_output=True)
    except FileNotFoundError as error:
        raise RuntimeError("git is not installed") from error
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(place, filter="data")


def turns(sides: dict[str, Side], count: int) -> dict[str, list[dict[str, float]]]:
    """What each side's steps took, measured in turns, so that a slow moment of the machine meets all of them."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(count):
        for name, side in sides.items():
            taken[name].append(side.step())
    return taken


def syncs(run: Callable[[], object]) -> int:
    """How often the host waits for the GPU unasked, as far as torch warns of it; `torch.cuda.synchronize` is none of them."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told)
