"""The run report: one self-contained HTML file, written from the run folder alone.

    python -m jala_ray.reports.run.page RUN_DIR [--manifest PATH] [--tokenizer DIR] [--out FILE]

Reads `config.json`, `environment.json`, `metrics.jsonl`, `errors.jsonl` and `checkpoints/` (`run_folder`
states the rule for resumed runs), a tokenizer's `quality.json`, and a manifest for the sample frames. What is
missing is said on the page.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jala_ray import storage
from jala_ray.reports.kit.figures import Charts
from jala_ray.reports.kit.findings import Finding, counted, warning_list, worst_first
from jala_ray.reports.kit.html import Html, el, join, page
from jala_ray.reports.kit.widgets import absent, badge, clock, number, percent, tile
from jala_ray.reports.run import cost, evaluations, quality, reconstructions, sections
from jala_ray.reports.run.folder import RunFolder, read_json, read_metrics, read_run
from jala_ray.reports.teacher import tables
from jala_ray.reports.teacher.tables import teacher_findings
from jala_ray.reports.warnings import constant_h, matched_pairs, training_findings
from jala_ray.types import JalaError

if TYPE_CHECKING:
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.reports.kit.overlay import DrawnClip

__all__ = ["read_metrics", "write_pretrain_report", "write_tokenizer_report"]

QUALITY, RECONSTRUCTIONS = "quality.json", "reconstructions.json"


def write_pretrain_report(
    run_dir: str | Path,
    manifest: Manifest | str | Path | None = None,
    tokenizer_dir: str | Path | None = None,
    out: str | Path | None = None,
) -> Path:
    """Write the report of a pretraining run to `out` (default `RUN_DIR/report.html`) and return its path.

    `manifest` gives the sample frames, `tokenizer_dir` (holds `quality.json`) the tokenizer's section.
    Raises UserError if the run folder does not exist or one of its JSON files is damaged.
    """
    run = read_run(run_dir)
    charts = charts_of(run)
    if tokenizer_dir is None:
        measured, why = None, "No tokenizer folder was given to this report."
    else:
        measured, why = read_json(Path(tokenizer_dir) / QUALITY), f"{tokenizer_dir} has no {QUALITY}."
    rank = sections.last(run, "monitor/effective_rank_z")
    rho = sections.last(run, "monitor/rho")
    doubtful = any(matched_pairs(run.metrics))
    evaluated = evaluations.section(run, charts)
    tiles = [
        steps_tile(run),
        samples_tile(run),
        loss_tile(run, "loss", "Loss"),
        loss_tile(run, "loss_mcp", "Masked chunk prediction"),
        loss_tile(run, "loss_align", "Alignment"),
        loss_tile(run, "loss_text", "Description text"),
        *speed_tiles(run),
        *cost.tiles(run),
        tile("rho", number(rho, 3), f"warns below {sections.RHO_WARN}", sections.rho_badge(rho, doubtful)),
        tile(
            "Effective rank of z",
            number(rank, 3),
            f"warns below {sections.RANK_WARN:g}",
            sections.rank_badge(rank, doubtful),
        ),
    ]
    content = [
        ("losses", "Losses", sections.losses(run, charts)),
        ("validation", "Validation", sections.validation(run, charts)),
        *([("evaluations", "Evaluations on the way", evaluated)] if evaluated is not None else []),
        ("monitors", "Collapse monitors", sections.monitors(run, charts)),
        ("frames", "Sample frames", sections.frames(*sampled(manifest))),
        ("throughput", "Throughput", sections.throughput(run, charts)),
        *costs(run, charts),
        ("optimisation", "Optimisation", sections.optimisation(run, charts)),
        *([("teacher", "Teacher", tables.section(run.teacher))] if run.teacher else []),
        ("tokenizer", "Motion tokenizer", quality.section(measured, why, charts)),
        *tail(run, charts),
    ]
    return write(run, "Pretraining run", tiles, content, charts, out)


def write_tokenizer_report(
    run_dir: str | Path, manifest: Manifest | str | Path | None = None, out: str | Path | None = None
) -> Path:
    """The same for the run that trained a motion tokenizer; its own `quality.json` is shown."""
    run = read_run(run_dir)
    charts = charts_of(run)
    measured, drawn = read_json(run.path / QUALITY), read_json(run.path / RECONSTRUCTIONS)
    tiles = [
        steps_tile(run),
        loss_tile(run, "loss", "Loss"),
        *(loss_tile(run, key, sections.TERMS[key][0]) for key in ("loss_rec_wrist", "loss_rec_finger")),
        *speed_tiles(run)[:1],
        *quality.tiles(measured),
    ]
    content = [
        ("losses", "Losses", sections.losses(run, charts)),
        ("tokenizer", "Quality", quality.section(measured, f"The run folder has no {QUALITY} yet.", charts)),
        ("reconstructions", "Reconstructions", reconstructions.section((drawn or {}).get("examples"))),
        ("frames", "Sample frames", sections.frames(*sampled(manifest))),
        ("throughput", "Throughput", sections.throughput(run, charts)),
        *costs(run, charts),
        ("optimisation", "Optimisation", sections.optimisation(run, charts)),
        *tail(run, charts),
    ]
    return write(run, "Motion tokenizer run", tiles, content, charts, out)


def findings_of(run: RunFolder) -> list[Finding]:
    """Warnings of a run, the serious ones first."""
    objective = (run.config or {}).get("objective")
    align = objective.get("align") if isinstance(objective, dict) else None
    weight = align.get("weight") if isinstance(align, dict) else None
    found = training_findings(run.metrics, total_steps(run), aligned=weight != 0)
    return worst_first([*found, *(teacher_findings(run.teacher) if run.teacher else ())])


def charts_of(run: RunFolder) -> Charts:
    return Charts(resumes=[attempt.first_step for attempt in run.attempts[1:]])


def sampled(manifest: Manifest | str | Path | None) -> tuple[list[DrawnClip] | None, str]:
    if manifest is None:
        return None, "No manifest was given to this report, so no clip can be drawn."
    # Decoding and hands need torch and PyAV; a report without frames does not.
    from jala_ray.data.manifest.table import Manifest
    from jala_ray.reports.kit.overlay import sample_frames

    return sample_frames(manifest if isinstance(manifest, Manifest) else Manifest(manifest)), ""


def costs(run: RunFolder, charts: Charts) -> list[tuple[str, str, Html]]:
    """Of runs whose rows tell them."""
    found = cost.section(run, charts)
    return [] if found is None else [("cost", "What a step costs", found)]


def tail(run: RunFolder, charts: Charts) -> list[tuple[str, str, Html]]:
    """The sections every kind of run ends with."""
    other = sections.other_series(run, charts)
    return [
        *([("other", "Other series", other)] if other else []),
        ("quarantine", "Quarantined rows", sections.quarantine(run)),
        ("resumes", "Resume history", sections.resumes(run)),
        ("configuration", "Configuration", sections.configuration(run)),
        ("environment", "Environment", sections.environment(run)),
    ]


def write(
    run: RunFolder,
    kicker: str,
    tiles: list[Html],
    content: list[tuple[str, str, Html]],
    charts: Charts,
    out: str | Path | None,
) -> Path:
    findings = findings_of(run)
    quiet = absent("Nothing stands out." if run.metrics else "Nothing has been logged that could warn.")
    content = [("warnings", "Warnings", warning_list(findings) if findings else quiet), *content]
    name = str((run.config or {}).get("name", run.path.resolve().name))
    header = join(
        el("p", kicker, class_="kicker"),
        el("div", el("h1", name), *badges(run, findings), class_="title"),
        el("p", lede(run), class_="lede"),
        el("div", tiles, class_="tiles"),
    )
    path = Path(out) if out is not None else run.path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(page(f"{name} · {kicker}", header, content, charts.figures), "utf-8")
    fresh.replace(path)
    return path


def badges(run: RunFolder, findings: list[Finding]) -> list[Html]:
    """What to know first: how far the run came, and what went wrong."""
    loss = sections.last(run, "loss")
    step = last_step(run)
    total = total_steps(run)
    found = []
    if step is None:
        found.append(badge("nothing logged", "warn"))
    elif loss is not None and not math.isfinite(loss):
        found.append(badge(f"diverged at step {step:,}", "bad"))
    elif total is None:
        found.append(badge(f"step {step:,}"))
    elif step >= total:
        found.append(badge("finished", "good"))
    else:
        found.append(badge(f"at step {step:,} of {total:,}", "warn"))
    rho, rank = sections.last(run, "monitor/rho"), sections.last(run, "monitor/effective_rank_z")
    low = (rho is not None and rho < sections.RHO_WARN) or (rank is not None and rank < sections.RANK_WARN)
    if low or any(constant_h(run.metrics)):
        found.append(badge("collapse warning", "bad"))
    if (mark := counted(findings)) is not None:
        found.append(mark)
    if run.errors:
        found.append(badge(f"{len(run.errors):,} quarantined", "warn"))
    if len(run.attempts) > 1:
        found.append(badge(f"resumed {len(run.attempts) - 1}x"))
    return found


def lede(run: RunFolder) -> str:
    config = run.config or {}
    objective = config.get("objective")
    seconds = [attempt.seconds for attempt in run.attempts if attempt.seconds is not None]
    facts = [
        f"Objective {objective['kind']}" if isinstance(objective, dict) and "kind" in objective else None,
        f"seed {config['seed']}" if "seed" in config else None,
        f"{clock(sum(seconds))} of training" if seconds else None,
        str(run.path),
    ]
    return " · ".join(fact for fact in facts if fact)


def last_step(run: RunFolder) -> int | None:
    return run.metrics[-1]["step"] if run.metrics else None  # type: ignore[return-value]


def train_setting(run: RunFolder, name: str) -> int | None:
    train = (run.config or {}).get("train")
    value = train.get(name) if isinstance(train, dict) else None
    return value if isinstance(value, int) else None


def total_steps(run: RunFolder) -> int | None:
    """Planned steps: `total_steps` of the rows where logged, else `train.steps` of the configuration."""
    logged = sections.last(run, "total_steps")
    return int(logged) if logged is not None else train_setting(run, "steps")


def steps_tile(run: RunFolder) -> Html:
    total = total_steps(run)
    return tile("Steps", number(last_step(run)), "no plan logged" if total is None else f"of {total:,}")


def samples_tile(run: RunFolder) -> Html:
    step, batch = last_step(run), train_setting(run, "batch")
    logged = sections.last(run, "samples")
    planned = None if step is None or batch is None else step * batch
    count = planned if logged is None else int(logged)
    epoch = sections.last(run, "epoch")
    under = f"{batch:,} a step" if batch is not None else "no batch size in config.json"
    return tile("Samples", number(count), under if epoch is None else f"{under}, epoch {epoch:g}")


def loss_tile(run: RunFolder, key: str, name: str) -> Html:
    value, pair = sections.last(run, key), sections.ends(run, key)
    return tile(name, number(value), None if pair is None else join("last 10 %: ", number(pair[1])))


def speed_tiles(run: RunFolder) -> list[Html]:
    speed, chunks = sections.typical(run, "samples_per_s"), sections.typical(run, "chunks_per_s")
    return [
        tile(
            "Samples per second",
            number(speed),
            "median" if chunks is None else join("chunks/s: ", number(chunks)),
        ),
        tile("Data wait", percent(sections.typical(run, "data_wait")), "median share of a step"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jala_ray.reports.run.page", description="Write the report of a run folder."
    )
    parser.add_argument("run_dir")
    parser.add_argument(
        "--manifest", help="manifest for the sample frames (default: data.manifest of config.json, if there)"
    )
    parser.add_argument(
        "--tokenizer", help="folder with quality.json (default: motion_tokenizer of config.json, if there)"
    )
    parser.add_argument("--out", help="default: RUN_DIR/report.html")
    args = parser.parse_args(argv)
    try:
        run_dir = Path(storage.local_path(args.run_dir))
        out = None if args.out is None else Path(storage.local_path(args.out))
        config = read_json(run_dir / "config.json") or {}
        data = config.get("data")
        manifest = args.manifest or on_disk(data.get("manifest") if isinstance(data, dict) else None)
        if (run_dir / QUALITY).is_file():
            path = write_tokenizer_report(run_dir, manifest, out)
        else:
            tokenizer = args.tokenizer or on_disk(config.get("motion_tokenizer"))
            path = write_pretrain_report(run_dir, manifest, tokenizer, out)
    except JalaError as error:
        print(error, file=sys.stderr)
        return 2
    print(path)
    return 0


def on_disk(path: object) -> str | None:
    return path if isinstance(path, str) and path and Path(path).exists() else None


if __name__ == "__main__":
    raise SystemExit(main())
