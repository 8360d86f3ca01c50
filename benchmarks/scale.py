"""What 8, 64 and 512 GPUs ask of a store, of the driver and of one coordinator. All of it is computed, from the sizes of a preset and the
code's own settings; what is assumed stands in `Assumed`.

    python -m benchmarks.scale [PRESET] [--store-mb-s 200] ...
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from jala_ray.config import RunConfig
from jala_ray.data.blocks import BLOCKS_PER_READ
from jala_ray.presets import PRESETS
from jala_ray.training.estimate import Data, RunEstimate, compute

GPUS = (8, 64, 512)
SAMPLES = 7.5e6
"""Of an epoch (method.md 6)."""
CLIP_S = 5.0
WAIT_LIMIT, STORE_LIMIT = 0.02, 1.0


@dataclass(frozen=True)
class Assumed:
    """Rates of machines, none of them measured on a cluster."""

    tflops: float = 400.0
    """Sustained by a GPU."""
    gpus_per_node: int = 8
    store_mb_s: float = 200.0
    """Of one process to the store or from it."""
    node_mb_s: float = 1000.0
    """Of all processes of a node together."""
    hash_mb_s: float = 400.0
    """Written to disk and hashed, by one process."""
    stage_mb_s: float = 5000.0
    """From a GPU into the host's memory, a rank."""
    prefix_gets: float = 5500.0
    """Requests a second that S3 takes below one prefix."""
    coordinator: float = 300.0
    """Blocks a second that one actor hands out."""
    put_s: float = 0.4e-3
    """Of one `ray.put` of a read task: 937,600 took 6 minutes."""
    put_bytes: float = 3.8e3
    """And 3.6 GB."""
    requests_per_sample: float = 2.0
    """Of a prepared set."""


@dataclass(frozen=True)
class Scale:
    """A run on so many GPUs."""

    gpus: int
    batch: int
    step_s: float
    interval_s: float
    """Between two checkpoints, trained."""
    idle: int
    """Ranks without a sample in a step."""
    one_writer: float
    """Share of the time that all would wait while rank 0 alone wrote, hashed, uploaded and read back the checkpoint."""
    staged: float
    """The same as it is: every rank copies its part into memory."""
    written_s: float
    """Seconds that the parts take in the background."""
    resume_each: float
    """Bytes from the store at a start, if every rank fetched the checkpoint."""
    resume_node: float
    """The same as it is, once a node."""
    resume_s: float
    """Seconds of the latter."""
    blocks: float
    """Of an epoch."""
    blocks_s: float
    """Blocks that the coordinator hands out a second."""
    requests_s: float
    """Requests to the store a second."""

    def breaks(self, assumed: Assumed) -> Iterator[tuple[str, float]]:
        """What is asked for over what there is, where it is more than 1; the worst first is the first that breaks."""
        found = {
            "ranks without a sample": self.gpus / self.batch,
            "all wait for the copy of the checkpoint": self.staged / WAIT_LIMIT,
            "parts are not written before the next checkpoint": self.written_s / self.interval_s,
            "one coordinator": self.blocks_s / assumed.coordinator,
            "requests below one prefix": self.requests_s / assumed.prefix_gets,
        }
        yield from sorted(((k, v) for k, v in found.items() if v > 1.0), key=lambda item: -item[1])


def sizes(config: RunConfig) -> RunEstimate:
    """FLOPs and bytes of an epoch of SAMPLES. Raises `ConfigError` for a model of unknown sizes."""
    return compute(config, Data(int(SAMPLES), CLIP_S, "an assumption"))


def scale(config: RunConfig, found: RunEstimate, gpus: int, batch: int, assumed: Assumed) -> Scale:
    """`config`, of sizes `found`, on so many GPUs with so many samples a step."""
    step_s = found.flops_step / config.train.batch * batch / (gpus * assumed.tflops * 1e12)
    interval, size, per_block = config.train.checkpoint_every * step_s, found.checkpoint, config.data.steps_per_block
    nodes = -(-gpus // assumed.gpus_per_node)
    alone = size / 1e6 * (2 / assumed.store_mb_s + 1 / assumed.hash_mb_s)
    staging = size / gpus / 1e6 / assumed.stage_mb_s
    return Scale(
        gpus=gpus,
        batch=batch,
        step_s=step_s,
        interval_s=interval,
        idle=max(0, gpus - batch),
        one_writer=alone / (alone + interval),
        staged=staging / (staging + interval),
        written_s=size
        / 1e6
        * (2 / min(gpus * assumed.store_mb_s, nodes * assumed.node_mb_s) + 1 / (gpus * assumed.hash_mb_s)),
        resume_each=float(gpus * size),
        resume_node=float(nodes * size),
        resume_s=size / 1e6 / assumed.node_mb_s,
        blocks=SAMPLES / batch * gpus / per_block,
        blocks_s=gpus / per_block / step_s,
        requests_s=assumed.requests_per_sample * batch / step_s,
    )


def rows(config: RunConfig, assumed: Assumed) -> list[list[str]]:
    """A line for each size, with the preset's batch and, where that leaves a GPU less, with as many samples a GPU as on 8."""
    per_gpu, found = config.train.batch // GPUS[0], sizes(config)
    batches = [(gpus, batch) for gpus in GPUS for batch in dict.fromkeys((config.train.batch, per_gpu * gpus))]
    return [line(scale(config, found, gpus, batch, assumed), assumed) for gpus, batch in batches]


def line(one: Scale, assumed: Assumed) -> list[str]:
    breaks = ", ".join(f"{what} ({times:.0f} x)" for what, times in one.breaks(assumed))
    puts = (one.blocks * assumed.put_s, one.blocks * assumed.put_bytes)
    return [
        f"{one.gpus}",
        f"{one.batch}",
        f"{1e3 * one.step_s:.0f} ms",
        f"{one.idle}",
        f"{one.one_writer:.0%}",
        f"{one.staged:.2%}",
        f"{one.written_s:.0f} of {one.interval_s:.0f} s",
        f"{one.resume_each / 1e12:.1f} TB",
        f"{one.resume_node / 1e12:.2f} TB, {one.resume_s:.0f} s",
        f"{one.blocks / 1e6:.2f} M",
        f"{puts[0] / 60:.0f} min, {puts[1] / 1e9:.1f} GB",
        f"{puts[0] / BLOCKS_PER_READ:.1f} s, {puts[1] / BLOCKS_PER_READ / 1e6:.0f} MB",
        f"{one.blocks_s:.0f}",
        f"{one.requests_s / 1e3:.1f} k",
        breaks or "nothing",
    ]


HEADS = (
    *("GPUs", "batch", "step", "idle ranks", "all wait, one writes", "all wait, parts staged", "parts written"),
    *(
        "resume, every rank",
        "resume, once a node",
        "blocks of an epoch",
        "planned one by one",
        f"planned, {BLOCKS_PER_READ} together",
        "blocks/s",
        "requests/s",
        "breaks, worst first",
    ),
)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("preset", nargs="?", default="jala", choices=sorted(PRESETS))
    for field in dataclasses.fields(Assumed):
        found.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return found


def main() -> None:
    asked = vars(parser().parse_args())
    config = PRESETS[asked.pop("preset")]
    for cells in (HEADS, *rows(config, Assumed(**asked))):
        print(" | ".join(cells))


if __name__ == "__main__":
    main()
