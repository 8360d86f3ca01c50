"""The training step on a GPU, up to InternVL3-2B's architecture at random weights: rate, MFU, memory, syncs, each remedy off.

`python benchmarks/step_gpu.py --part 1` (then 2, 3): each part takes at most `--minutes` 9, and writes after every measurement what it has
into `$OUT/step_gpu.json`, with a page `step_gpu.md` beside it. `--from FILE` goes on with what an earlier part or attempt wrote: what is
there is not measured again, so a part that was cut off is started once more. `--dry` runs all parts at tiny sizes on the CPU.

    1   the three mixes at 2B; before that, loss and gradients against the straightforward step at 63 M
    2   the straightforward step at 2B, in the largest micro-batch that fits; both at 63 M
    3   each remedy switched off in turn, at 2B on short clips

FLOPs needed over wall-clock seconds and the device's dense bf16 peak are the MFU. Syncs are those that torch warns of
(`set_sync_debug_mode`) in one step. JSON on the last line: {"device": x, "measured": {NAME: {"samples_per_s": x, "mfu_needed": x, ...}}}.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.step_remedies import REMEDIES, Remedy, applied
from benchmarks.step_samples import MIXES, Step, collated, make_step, noise_assets
from benchmarks.step_sides import Ours, Plain, Side, difference, syncs
from benchmarks.step_sizes import SIZES, run_config
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.parsing import override
from jala_ray.training.learner import Learner

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement."""

    side: str
    """ours, straightforward, or equal: how far the two are apart."""
    size: str
    mix: str
    remedy: str = ""
    """Of ours, switched off."""
    precision: str = "bf16"

    @property
    def name(self) -> str:
        end = f" without {self.remedy}" if self.remedy else ""
        return f"{self.mix}, {self.size}, {self.precision}: {self.side}{end}"


def parts() -> dict[int, list[Job]]:
    """The measurements of each part, the most important first."""
    equal = [Job("equal", "63m", "short", precision=precision) for precision in ("fp32", "bf16")]
    ours, plain = (
        [Job(side, "2b", mix) for mix in ("short", "one_chunk", "ten")] for side in ("ours", "straightforward")
    )
    small = [Job(side, "63m", mix) for mix in MIXES for side in ("ours", "straightforward")]
    return {1: equal + ours, 2: plain + small, 3: [Job("ours", "2b", "short", name) for name in REMEDIES]}


@dataclass
class Bench:
    """What is measured with: a device, how long, and the model of the last measurement, which the next may take over."""

    device: torch.device
    samples: int
    micro_batch: int
    timed: int
    warm: int
    tiny: bool = False
    """Every size is `tiny`."""
    held: tuple[Any, Learner] | None = None
    tokenizers: dict[str, Assets] = field(default_factory=dict)

    def config(self, job: Job) -> RunConfig:
        size = SIZES["tiny" if self.tiny else job.size]
        return run_config(size, self.samples, self.micro_batch, {"train.precision": job.precision})

    def assets(self, job: Job) -> Assets:
        """Made once for a size."""
        size = "tiny" if self.tiny else job.size
        if size not in self.tokenizers:
            self.tokenizers[size] = noise_assets(self.config(job), SIZES[size].words)
        return self.tokenizers[size]

    def measure(self, job: Job) -> Result:
        config, assets = self.config(job), self.assets(job)
        step = make_step(config, assets, MIXES[job.mix], config.train.batch)
        found: Result = {"tokens_per_sample": step.tokens / len(step.laid)}
        if job.side == "equal":
            return found | self.equal(config, assets, step)
        if job.side == "straightforward":
            plain = Plain(self.made(config, assets, step), assets, step)
            return found | self.fitting(plain.size, lambda size: self.plain(plain, step, size))
        remedy = REMEDIES[job.remedy] if job.remedy else Remedy()

        def ours(size: int) -> Result:
            smaller = override(config, {"train.micro_batch": size})
            return self.ours(*applied(remedy, smaller, assets, step.held), assets, remedy)

        return found | self.fitting(config.train.micro_batch, ours)

    def fitting(self, size: int, run: Callable[[int], Result]) -> Result:
        """With the largest micro-batch that fits in memory, of those that come of halving."""
        while True:
            try:
                return run(size) | {"micro_batch": size}
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.clear()
            size //= 2

    def equal(self, config: RunConfig, assets: Assets, step: Step) -> Result:
        ours = self.made(config, assets, step)
        small = collated(config, assets, step.held[: config.train.micro_batch])
        plain = Plain(ours, assets, small)
        found = difference(ours, plain, small)
        return {"loss": found.loss, "gradients": found.gradient, "worst": found.worst, "worst_of": found.name}

    def ours(self, config: RunConfig, step: Step, assets: Assets, remedy: Remedy) -> Result:
        side = self.made(config, assets, step, remedy.learner)
        with contextlib.closing(side):
            found = self.timed_steps(side) | {"micro_batches": len(step.share.micro)}
        found |= {"needed_tflop": side.needed_flops / 1e12} | self.rate(found, step)
        return found | {"mfu_needed": side.peak_flops and side.needed_flops / (found["step_s"] * side.peak_flops)}

    def plain(self, side: Plain, step: Step, size: int) -> Result:
        side.resize(step, size)
        found = self.timed_steps(side)
        return found | {"micro_batches": len(side.micro)} | self.rate(found, step)

    def rate(self, found: Result, step: Step) -> Result:
        return {"samples_per_s": len(step.laid) / found["step_s"], "tokens_per_s": step.tokens / found["step_s"]}

    def made(
        self, config: RunConfig, assets: Assets, step: Step, change: Callable[[Learner], None] | None = None
    ) -> Ours:
        """With the last measurement's learner, where it was made alike."""
        key = (config.model, config.objective, config.train.precision, config.train.compile, change)
        if self.held is not None and self.held[0] == key:
            return Ours(config, assets, step, self.device, self.held[1])
        self.held = None
        self.clear()
        side = Ours(config, assets, step, self.device, change=change)
        self.held = (key, side.learner)
        return side

    def timed_steps(self, side: Side) -> Result:
        """Medians over `timed` steps after `warm` ones, the first of which compiles."""
        first = side.step()["wall_s"]
        for _ in range(self.warm - 1):
            side.step()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = [side.step()["wall_s"] for _ in range(self.timed)]
        found: Result = {"step_s": statistics.median(seconds), "fastest_s": min(seconds), "slowest_s": max(seconds)}
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        return found | {"first_s": first, "peak_gib": peak, "syncs": syncs(side.step) if cuda else None}

    def clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


# --- what is kept ----------------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """Results by name, in a file that is whole after every measurement, with a page beside it."""

    path: Path
    facts: Result
    measured: dict[str, Result]

    def add(self, name: str, result: Result) -> None:
        self.measured[name] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in ((self.path, json.dumps(self.all(), indent=1)), (self.path.with_suffix(".md"), page(self))):
            draft = path.with_name(f"{path.name}.part")
            draft.write_text(text)
            draft.replace(path)

    def all(self) -> Result:
        return self.facts | {"measured": self.measured}


COLUMNS = ("samples_per_s", "mfu_needed", "step_s", "first_s", "peak_gib", "syncs", "micro_batch", "micro_batches")


def page(kept: Kept) -> str:
    """Markdown: what was measured, a line each."""
    facts = ", ".join(f"{name} {value}" for name, value in kept.facts.items())
    lines = [f"# The training step on a GPU\n\n{facts}\n", f"| measurement | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    said = []
    for name, result in kept.measured.items():
        if "step_s" in result:
            lines.append(f"| {name} | {' | '.join(shown(result.get(column)) for column in COLUMNS)} |")
        else:
            said.append(f"- {name}: {', '.join(f'{key} {shown(value)}' for key, value in result.items())}")
    return "\n".join([*lines, "", *said, ""])


def shown(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def part(number: int, bench: Bench, kept: Kept, minutes: float) -> None:
    """Measure what is not there yet, until a measurement as long as the longest would not fit."""
    end, longest = time.monotonic() + 60 * minutes, 0.0
    for job in parts()[number]:
        if job.name in kept.measured:
            continue
        if time.monotonic() + longest > end:
            print(f"part {number} ends before {job.name}: start it again with --from {kept.path}", flush=True)
            return
        began = time.monotonic()
        try:
            result = bench.measure(job)
        except (torch.OutOfMemoryError, RuntimeError) as error:  # the others are still worth their minutes
            result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        longest = max(longest, time.monotonic() - began)
        kept.add(job.name, result | {"part": number, "took_s": round(time.monotonic() - began, 1)})
        print(f"{job.name}: {', '.join(f'{key} {shown(value)}' for key, value in result.items())}", flush=True)
        bench.clear()


def asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", type=int, nargs="+", choices=parts(), default=list(parts()))
    parser.add_argument("--minutes", type=float, default=9.0, help="of a part")
    parser.add_argument("--from", dest="earlier", type=Path, help="results to go on with")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT", ".")) / "step_gpu.json")
    parser.add_argument("--dry", action="store_true", help="every branch at tiny sizes on the CPU")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = asked(words)
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("no GPU here: expected CUDA, or --dry")
    if options.dry:
        bench = Bench(torch.device("cpu"), 2, 1, timed=1, warm=1, tiny=True)
    else:
        bench = Bench(torch.device("cuda"), 64, 16, timed=5, warm=3)
    name = "cpu, dry" if options.dry else torch.cuda.get_device_name()
    facts = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    measured = json.loads(options.earlier.read_text())["measured"] if options.earlier else {}
    kept = Kept(options.results, facts, measured)
    for number in options.part:
        part(number, bench, kept, options.minutes)
    print(json.dumps(kept.all()))


if __name__ == "__main__":
    main()
