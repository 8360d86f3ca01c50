"""Search settings of a run in trials that are real runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import AvoidSubcommands, FlagConversionOff, Positional, Suppress, arg

from jala_ray.commands.presetting import known, with_preset
from jala_ray.config import RunConfig, TokenizerRunConfig
from jala_ray.parsing import options
from jala_ray.presets import BASE, PRESETS, TOKENIZER_PRESETS
from jala_ray.sweeps.metrics import METRICS
from jala_ray.sweeps.spaces import DEFAULT, SPACES, Method, verify

SEARCHED = (
    f"What is searched, joined: {', '.join(SPACES)}, or JSON files of your own. tokenizer takes a tokenizer's PRESET."
)
MEASURED = (
    "What trials are compared by; of several their Pareto front is looked for, without halving. Empty: the space's own. "
    f"{', '.join(METRICS)}."
)


@dataclass(frozen=True)
class Arguments:
    """Try settings of a preset in trials that are real runs; leave a table, a report and best.json, a preset for `jala pretrain`.

    The sweep's folder is `storage.root`/`name`, as a run's. What all trials share follows as --dotted.key value.
    """

    preset: Positional[Annotated[str, arg(metavar="PRESET", help=known(PRESETS))]]
    space: Annotated[tuple[str, ...], arg(help=SEARCHED)] = (DEFAULT,)
    trials: int = 24
    """Runs in all."""
    search: Method = "tpe"
    """How values are chosen; tpe learns from the trials before."""
    search_seed: int = 0
    """Of the search; --seed is the runs' own, the same in every trial."""
    grid_points: int = 3
    """Values per range, for --search grid."""
    metric: Annotated[tuple[str, ...], arg(help=MEASURED)] = ()
    scheduler: Literal["asha", "none"] = "asha"
    """asha: trials that lag are stopped early; none: every trial runs to its end."""
    factor: int = 3
    """Of halving: the best 1 / factor go on at a rung."""
    report_every: int | None = None
    """Steps between two reports, and the first rung; None: a ninth of a trial."""
    synchronous: bool = False
    """In waves of --concurrent: a repeated sweep is the same sweep."""
    concurrent: int | None = None
    """Trials at a time; None: as many as the cluster holds now."""
    samples: int | None = None
    """Held-out clips per domain for mpjpe and probe_h; None: all."""
    retries: int = 0
    """Restarts of a trial whose workers crash; for spot nodes."""
    no_cache: bool = False
    """Every trial decodes videos for itself."""
    resume: bool = False
    """Continue the sweep in this folder; finished trials are not run again."""
    retry_failed: bool = False
    """With --resume: failed trials run again."""
    dry_run: bool = False
    """Print trials, sizes and the estimated cost, and start nothing."""
    like: str | None = None
    """For --dry-run: run folder whose measured seconds per step the estimate takes."""
    gpu_hour_price: float | None = None
    """For --dry-run: price of a GPU-hour, in any currency."""
    settings: Suppress[tuple[str, ...]] = ()
    """The words that are settings of the runs."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig | TokenizerRunConfig]], arg(name="")] = field(
        default=BASE
    )


def parse(words: Sequence[str], prog: str) -> Arguments:
    if _space(words) == ["tokenizer"]:
        read = with_preset(Arguments, words, prog, TOKENIZER_PRESETS, "tokenizer", TokenizerRunConfig)
    else:
        read = with_preset(Arguments, words, prog, PRESETS, "jala", RunConfig)
    return dataclasses.replace(read, settings=tuple(_settings(words[1:], options(read.config))))


def _space(words: Sequence[str]) -> list[str]:
    """What follows --space."""
    if "--space" not in words:
        return [word.partition("=")[2] for word in words if word.startswith("--space=")]
    rest = words[words.index("--space") + 1 :]
    return list(rest[: next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))])


def _settings(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The options of the runs among the words, with their values."""
    found, taken = [], False
    for word in words:
        if word.startswith("--"):
            taken = word.removeprefix("--").partition("=")[0].replace("_", "-") in keys
        if taken:
            found.append(word)
    return found


def run(arguments: Arguments) -> int:
    verify(arguments.config)
    from jala_ray.sweeps.plan import SweepRequest, plan_sweep

    asked = SweepRequest(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(SweepRequest)})
    plan = plan_sweep(asked)
    if arguments.dry_run:
        from jala_ray.sweeps.estimate import estimate

        print(estimate(plan, asked.like, asked.gpu_hour_price))
        return 0
    from jala_ray.commands.shell import code_root
    from jala_ray.sweeps.driver import run as run_sweep
    from jala_ray.sweeps.ledger import Ledger
    from jala_ray.sweeps.outcome import publish
    from jala_ray.training.launch import ensure_ray

    ensure_ray(plan.options, {"PYTHONPATH": code_root()}, plan.base.log.waiting_s)
    plan = plan.claimed(resume=asked.resume)
    sweep = plan.sweep()
    if arguments.retry_failed:
        Ledger(sweep.folder, sweep.options).reopen_failed()
    report = publish(sweep, run_sweep(sweep, lambda line: print(line, flush=True)))
    print(f"report: {report}")
    return 0
