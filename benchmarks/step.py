"""One training step (forward, backward, clip, AdamW, moving average; several micro-batches): ours, a straightforward one, an older one.

`python benchmarks/step.py [--mix NAME ...] [--size NAME ...] [--turns N] [--remedy NAME off ...] [--video-only] [--alignment]
[--grounded]`, or with `--count` FLOPs and nothing timed: no weights, no videos, no network, and neither Ray, tyro nor PyAV; on the GPU
where there is one. Sides, on the same samples with the same weights:

- ours: `Pretraining.step`, on batches that the product's code drew, laid out and collated (`step_samples.py`);
- straightforward: padded rows, a dense mask, all blocks over all tokens, pairs encoded as pairs (`step_straightforward.py`, frozen);
- da3699e: the step of that commit with its own packing, in its own process; left out where this clone has not the commit.

Before anything is timed, loss and gradients of the first two are compared on a micro-batch, and the loss with the third; the run ends where
they differ. Batches are made beforehand, as data workers make them. A CPU's figure is CPU seconds of the process, a GPU's the wall clock's;
ratios are of medians of turns, ours over the other. One chunk a sample, short clips (1-3 s dominate) and 10 s clips are three mixes, since
what is fast depends on that.
JSON: {"device": x, "mix": {NAME: {"ratio_63m": x, "ratio_16m": x, "ratio_da3699e": x, "mfu_needed": x, "samples_per_s": x}}}, null where
not measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# A thread that waits must not count as work, or other programs on the machine would show in CPU seconds. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from benchmarks.step_remedies import REMEDIES, without
from benchmarks.step_samples import MIXES, Mix, Step, collated, made_teacher, make_step, noise_assets, with_features
from benchmarks.step_sides import Before, Difference, Ours, Plain, Side, difference, turns
from benchmarks.step_sizes import SIZES, run_config
from jala_ray.config import RunConfig, TokenizerConfig
from jala_ray.config.objectives.grounded import grounded as aligned
from jala_ray.config.objectives.jala import no_align
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import TaskType

COMMIT = "da3699e"
STEPS = {"cpu": {"one_chunk": (8, 4), "short": (6, 3), "ten": (4, 2)}, "cuda": dict.fromkeys(MIXES, (128, 16))}
"""Samples of a step, and of a micro-batch."""
COUNTED = (
    ("ours", ""),
    ("straightforward", ""),
    ("needed", ""),
    ("ours", "straightforward"),
    ("needed", "straightforward"),
)
"""Columns of `--count`: FLOPs, and one's over another's."""
CLOCK = {"cpu": "cpu_s", "cuda": "wall_s"}
LOSS, GRADIENT = {"fp32": 1e-4, "bf16": 2e-2}, {"fp32": 1e-3, "bf16": 1e-1}
"""Largest relative differences, by precision."""


@dataclasses.dataclass(frozen=True)
class Settings:
    device: torch.device
    precision: str
    turns: int
    remedies: tuple[str, ...] = ()
    """Each is switched off in turn, beside ours."""
    samples: tuple[int, int] | None = None
    """Of a step and of a micro-batch, in place of `STEPS`."""


def agree(found: Difference, precision: str) -> None:
    """Raises `SystemExit` where two sides don't compute the same."""
    gradients = f", gradients by {found.gradient:.1e}, most in {found.name} ({found.worst:.1e})" if found.name else ""
    print(f"  loss differs by {found.loss:.1e}{gradients}")
    if not (found.loss <= LOSS[precision] and found.worst <= GRADIENT[precision]):
        raise SystemExit(f"expected at most {LOSS[precision]:.0e} and {GRADIENT[precision]:.0e}: the sides differ")


def configured(size: str, mix: str, settings: Settings) -> RunConfig:
    count, micro = settings.samples or STEPS[settings.device.type][mix]
    return run_config(SIZES[size], count, micro, {"train.precision": settings.precision})


def compare(mix: str, size: str, settings: Settings, older: bool) -> dict[str, Any]:
    """Median seconds of each side, and what was computed."""
    config = configured(size, mix, settings)
    assets = noise_assets(config, SIZES[size].words)
    step = make_step(config, assets, MIXES[mix], config.train.batch)
    mean = step.tokens / len(step.laid)
    ours = Ours(config, assets, step, settings.device)
    learned = sum(p.numel() for p in ours.learner.parameters() if p.requires_grad)
    print(f"{mix}, {size}: {learned / 1e6:.1f} M parameters learn, {mean:.0f} tokens per sample", flush=True)
    other = Plain(ours, assets, step)
    small = collated(config, assets, step.held[: config.train.micro_batch])
    agree(difference(ours, other, small), settings.precision)
    sides: dict[str, Side] = {"ours": ours, "straightforward": other}
    for name in settings.remedies:
        sides[f"without {name}"] = without(name, ours, assets, step)
    with contextlib.ExitStack() as stack:
        if older and (before := _before(ours, assets, step)) is not None:
            sides[COMMIT] = stack.enter_context(before)
            agree(Difference(abs(before.ask("check")["loss"] / ours.loss(small) - 1)), settings.precision)
        taken = turns(sides, settings.turns)
    clock = CLOCK[settings.device.type]
    seconds = {name: [one[clock] for one in steps] for name, steps in taken.items()}
    wall = statistics.median(one["wall_s"] for one in taken["ours"])
    share = ours.needed_flops / (wall * ours.peak_flops) if ours.peak_flops else None
    return {"seconds": seconds, "samples_per_s": len(step.laid) / wall, "mfu_needed": share}


def _before(ours: Ours, assets: Any, step: Step) -> Before | None:
    try:
        return Before(COMMIT, ours, assets, step)
    except RuntimeError as error:
        print(f"  {COMMIT} is left out: {error}", flush=True)
        return None


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Ours over each other side."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: round(middle["ours"] / value, 3) for name, value in middle.items() if name != "ours"}


def all_mixes(
    mixes: Sequence[str], sizes: Sequence[str], settings: Settings
) -> tuple[dict[str, Any], list[tuple[object, ...]]]:
    """Figures by mix, and the table's rows."""
    figures: dict[str, dict[str, Any]] = {}
    rows = []
    for mix in mixes:
        made: dict[str, Any] = {"ratio_63m": None, "ratio_16m": None, f"ratio_{COMMIT}": None}
        for size in sizes:
            found = compare(mix, size, settings, older=size == sizes[0])
            over = ratios(found["seconds"])
            made[f"ratio_{size}"] = over["straightforward"]
            if size == sizes[0]:
                made[f"ratio_{COMMIT}"] = over.get(COMMIT)
                made |= {"mfu_needed": found["mfu_needed"], "samples_per_s": round(found["samples_per_s"], 3)}
            if settings.remedies:
                made[f"ratio_remedies_{size}"] = {n: over[f"without {n}"] for n in settings.remedies}
            rows += [(mix, size, *_row(name, values, over)) for name, values in found["seconds"].items()]
            gc.collect()
        figures[mix] = made
    return figures, rows


def _row(name: str, values: list[float], over: dict[str, float]) -> tuple[object, ...]:
    middle, low, high = statistics.median(values), min(values), max(values)
    return name, f"{middle:.2f}", f"{low:.2f}", f"{high:.2f}", over.get(name, "")


# --- further figures -------------------------------------------------------------------------------------------------


def two_steps(first: Ours, second: Ours, settings: Settings) -> float:
    """Seconds of the first over the second's."""
    for side in (first, second):
        side.step()
    taken = turns({"first": first, "second": second}, settings.turns)
    clock = CLOCK[settings.device.type]
    middle = [statistics.median(one[clock] for one in steps) for steps in taken.values()]
    return middle[0] / middle[1]


def video_only(size: str, settings: Settings, seconds: int = 4) -> float:
    """Time of a step of videos alone over one of labelled clips, both with two hands over the same time, by their tokens."""
    sides, tokens = [], []
    for shares in ({"pure_video": 1.0}, {"generation": 1.0}):
        config = configured(size, "short", settings)
        assets = noise_assets(config, SIZES[size].words)
        mix = Mix(0, (seconds,), (seconds,), shares, two_handed=1.0)
        step = make_step(config, assets, mix, config.train.batch)
        sides.append(Ours(config, assets, step, settings.device))
        tokens.append(step.tokens)
    return two_steps(sides[0], sides[1], settings) * tokens[1] / tokens[0]


def alignment(size: str, settings: Settings, mix: str = "short") -> float:
    """What a step costs with alignment over what it costs with masked prediction alone, less 1, on labelled clips."""
    labelled = {task: share for task, share in MIXES[mix].shares.items() if task != "pure_video"}
    sides = []
    for lap in (True, False):
        config = configured(size, mix, settings)
        config = config if lap else no_align(config)
        assets = noise_assets(config, SIZES[size].words)
        step = make_step(config, assets, dataclasses.replace(MIXES[mix], shares=labelled), config.train.batch)
        sides.append(Ours(config, assets, step, settings.device))
    return two_steps(sides[0], sides[1], settings) - 1


def grounded(size: str, settings: Settings, mix: str = "short") -> dict[str, float]:
    """Time of a step of `grounded` over that of `no_align` on labelled clips alone and on the whole mix, whose videos `no_align` does not
    look at, and over that of `jala` on the whole; the encoder's features are given."""
    labelled = {task: share for task, share in MIXES[mix].shares.items() if task != "pure_video"}
    base = configured(size, mix, settings)
    mine, teacher = aligned(base), made_teacher(aligned(base))

    def side(config: RunConfig, shares: Mapping[TaskType, float]) -> Ours:
        assets = noise_assets(config, SIZES[size].words)
        if config.objective.taught is not None:
            assets = dataclasses.replace(assets, motion=MotionTokenizer(TokenizerConfig()), teacher=teacher)
        step = make_step(config, assets, dataclasses.replace(MIXES[mix], shares=shares), config.train.batch)
        return Ours(config, assets, with_features(config, step), settings.device)

    def over(other: RunConfig, shares: Mapping[TaskType, float]) -> float:
        return two_steps(side(mine, shares), side(other, shares), settings)

    own = MIXES[mix].shares
    without = no_align(base)
    return {"labelled": over(without, labelled), "all": over(without, own), "all_over_jala": over(base, own)}


def counted(mix: str, size: str, settings: Settings) -> dict[str, float]:
    """TFLOP of one step: the matrix products that each side executes, by torch's counter, and what is needed, by the product's own."""
    config = configured(size, mix, settings)
    assets = noise_assets(config, SIZES[size].words)
    step = make_step(config, assets, MIXES[mix], config.train.batch)
    ours = Ours(config, assets, step, settings.device)
    found = {}
    for name, side in (("ours", ours), ("straightforward", Plain(ours, assets, step))):
        with FlopCounterMode(display=False) as counter:
            side.step()
        found[name] = counter.get_total_flops() / 1e12
    return found | {"needed": ours.needed_flops / 1e12}


def count(mixes: Sequence[str], sizes: Sequence[str], settings: Settings) -> None:
    """The table of `counted`, and its figures."""
    tflop = {mix: {size: counted(mix, size, settings) for size in sizes} for mix in mixes}
    rows = [
        (mix, size, *(f"{found[name] / found[by]:.3f}" if by else f"{found[name]:.3f}" for name, by in COUNTED))
        for mix, by_size in tflop.items()
        for size, found in by_size.items()
    ]
    header = ("mix", "size", *(f"{name} / {by}" if by else name for name, by in COUNTED))
    report("one training step, TFLOP", header, rows, {"tflop": tflop})


# --- the command -----------------------------------------------------------------------------------------------------


def asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mix", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["63m", "16m"], help="the first meets da3699e too")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--samples", nargs=2, type=int, metavar=("STEP", "MICRO"), help="of a step and a micro-batch")
    parser.add_argument("--precision", choices=LOSS, help="bf16 on a GPU, else fp32")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    off = "one of ours is switched off in a side of its own; may be repeated: " + ", ".join(REMEDIES)
    parser.add_argument("--remedy", nargs=2, action="append", default=[], metavar=("NAME", "off"), help=off)
    parser.add_argument("--video-only", action="store_true", help="videos alone over labelled clips of equal length")
    parser.add_argument("--alignment", action="store_true", help="alignment over masked prediction alone")
    parser.add_argument(
        "--grounded", action="store_true", help="grounded alignment over masked prediction alone, and over jala"
    )
    parser.add_argument("--count", action="store_true", help="FLOPs of one step of each side, and nothing timed")
    options = parser.parse_args(words)
    for name, state in options.remedy:
        if name not in REMEDIES or state != "off":
            parser.error(f"--remedy {name} {state}: expected one of {', '.join(REMEDIES)}, and off")
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = asked(words)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    remedies = tuple(name for name, _ in options.remedy)
    settings = Settings(device, precision, options.turns, remedies, options.samples and tuple(options.samples))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {precision}", flush=True)
    if options.count:
        return count(options.mix, options.size, settings)
    further: dict[str, Any] = {}
    if options.video_only:
        further["video_only"] = round(video_only(options.size[0], settings), 3)
    if options.alignment:
        further["alignment_over_mcp"] = round(alignment(options.size[0], settings), 3)
    if options.grounded:
        found = grounded(options.size[0], settings)
        further["grounded_over"] = {name: round(value, 3) for name, value in found.items()}
    figures, rows = all_mixes(options.mix, options.size, settings)
    for what, value in further.items():
        print(f"{what}: {value}")
    header = ("mix", "size", "side", "median s", "from", "to", "ours over it")
    clock = "CPU seconds" if device.type == "cpu" else "wall-clock seconds"
    title = f"one training step, {clock}, {settings.turns} turns"
    report(title, header, rows, {"device": name, "mix": figures} | further)


if __name__ == "__main__":
    main()
