"""`results.json`, `results.md` and `results.html` of a study, over the runs that are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markdown_it import MarkdownIt

from jala_ray.evaluation.predict import HOLD_FIRST
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import to_dict
from jala_ray.studies.alignment.evaluate import ENSEMBLES
from jala_ray.studies.alignment.results import (
    CONTRASTS,
    LAB_MAY_LOSE,
    OTHER_ROWS,
    REFERENCES,
    StudyResults,
    analyse,
    claim,
    gap_closed,
    load,
    verdict,
)
from jala_ray.studies.alignment.stages import StudyFolder, plain, result_of, write_json
from jala_ray.studies.alignment.variants import described, variants
from jala_ray.studies.alignment.world import PARTS, PRIMARY_PART
from jala_ray.training.log import environment

SUBJECTS = ("h", "z", "change", "pair", "v0", "z_untrained", "change_untrained")
TUNED_BY = ("mpjpe", "mde")
STAGES = ("world", "words", "tokenizer", "encoder", "caches")


def publish(study: StudyFolder) -> dict[str, Any]:
    """Analyse all jobs that are done and write the three files; returns what is in results.json."""
    found = load(study)
    known = {variant.name: variant for variant in variants(study.base())}
    results = {
        "size": study.size.name,
        "frozen": json.loads((study.out / "frozen.json").read_text()),
        "gates": json.loads((study.out / "gates.json").read_text()),
        "stages": {name: result_of(study.out / f"{name}.json") for name in STAGES},
        "variants": {name: described(study, known[name]) for name in found.jobs if name in known},
        "tiers": sorted({known[name].tier for name in found.jobs if name in known}),
        **analyse(found, study.size.resamples),
        "settings": to_dict(study.size),
        "environment": environment(),
    }
    results = plain(results)
    write_json(study.out / "results.json", results)
    text = "\n".join(markdown(results)) + "\n"
    (study.out / "results.md").write_text(text)
    (study.out / "results.html").write_text(page(results, text))
    return results


def tuning_table(found: StudyResults) -> Iterator[str]:
    """Lines of a table for the terminal: MPJPE and MDE of every job on each part of the clips for tuning, cm."""
    ensemble = max(ENSEMBLES)
    yield from _table(
        ("tuning clips, cm", *(f"{part} {metric}" for part in PARTS for metric in TUNED_BY)),
        [
            (
                f"{variant} {seed}",
                *(_number(found.mean(variant, part, metric, ensemble, seed)) for part in PARTS for metric in TUNED_BY),
            )
            for variant in found.generating()
            for seed in found.seeds(variant)
        ],
    )


# --- Markdown --------------------------------------------------------------------------------------------------------


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
    """Lines of results.md."""
    primary, frozen = results["frozen"]["primary"], results["frozen"]
    where = results["motion"][str(primary["ensemble"])][primary["part"]]
    yield f"# The study at size `{results['size']}`"
    yield ""
    yield from _claims(results["motion"][str(primary["ensemble"])], primary)
    if not frozen["gates_passed"]:
        yield "**A gate has failed and was ignored: these numbers answer nothing.**"
    yield ""
    tiers, seeds = ", ".join(map(str, results["tiers"])), max(map(len, results["seeds"].values()))
    yield f"Tiers with runs: {tiers}; up to {seeds} seeds, paired. Frozen as `{frozen['hash'][:16]}` before the first run of JALA."
    yield f"Errors in cm; 95 % intervals by a bootstrap nested over seeds and clips. {results['gates']['note']}"
    yield ""
    yield "## Gates"
    yield ""
    rows = [
        (g["name"], _number(g["value"]), g["rule"], "passed" if g["passed"] else "FAILED")
        for g in results["gates"]["gates"]
    ]
    yield from _table(("gate", "value", "rule", ""), rows)
    for ensemble in sorted(results["motion"], key=int, reverse=True):
        yield f"## Generated motion, E = {ensemble}"
        yield ""
        for part, table in results["motion"][ensemble].items():
            yield from _means(part, table)
    yield f"## Differences at E = {primary['ensemble']}, MPJPE"
    yield ""
    yield from _differences(results["motion"][str(primary["ensemble"])])
    yield f"## Every seed: MPJPE, {primary['part']}, E = {primary['ensemble']}"
    yield ""
    header = sorted({int(seed) for of in where["by_seed"].values() for seed in of})
    rows = [(v, *(_number(of.get(str(seed))) for seed in header)) for v, of in where["by_seed"].items()]
    yield from _table(("", *(f"seed {seed}" for seed in header)), rows)
    yield from _space(results)
    yield from _facts(results)


def _claims(parts: Mapping[str, Any], primary: Mapping[str, Any]) -> Iterator[str]:
    """What is claimed by the rule, or what is there until both contrasts are."""
    where = f"Wild, {primary['part']}, MPJPE at E = {primary['ensemble']}"
    for reference, due in CONTRASTS:
        found = parts[primary["part"]]["differences"].get(reference, {}).get("grounded")
        if found is not None and found["mpjpe"]["low"] is not None:
            shown = f"{found['mpjpe']['mean']:+.2f} cm {_limits(found['mpjpe'])}"
            yield f"**{where}: grounded - {reference} = {shown}, due to {due}: {verdict(found['mpjpe'])}.**"
            yield ""
    if (said := claim(parts, primary["part"])) is not None:
        rule = f"both intervals exclude 0 on one side, and a gain costs Lab at most {LAB_MAY_LOSE} cm (it costs {said.lab:+.2f})"
        yield f"By the rule that was named before ({rule}) this is {'claimed' if said.claimed else 'not claimed'}."
    means = parts[primary["part"]]["means"]
    for variant in ("grounded", "jala"):
        if (closed := gap_closed(means, variant)) is not None:
            yield f"Of the way from no_align to all_labelled {variant} goes {100 * closed:.0f} %."
    yield ""


def _means(part: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{part}** ({table['clips']} clips)"
    yield ""
    metrics = [key for key in METRICS if all(key in means for means in table["means"].values())]
    rows = [(name, *(_interval(means[m]) for m in metrics)) for name, means in table["means"].items()]
    yield from _table(("", *(METRICS[m].heading for m in metrics)), rows)


def _differences(parts: Mapping[str, Any]) -> Iterator[str]:
    for reference in REFERENCES:
        found = {part: table["differences"].get(reference, {}) for part, table in parts.items()}
        names = list(dict.fromkeys(name for of in found.values() for name in of))
        if names:
            rows = [(name, *(_interval(of[name]["mpjpe"], "+") for of in found.values())) for name in names]
            yield from _table((f"minus {reference}", *found), rows)


def _space(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Latent space: R2 of wrist motion on the clips for tuning (all), and health on Wild at the end"
    yield ""
    kept = {name: of for name, of in results["latents"].items() if of["probes"]}
    health = list(dict.fromkeys(name for of in kept.values() for name in of["health"]))
    rows = [
        (
            name,
            *(_number(of["probes"].get("all", {}).get(s)) for s in SUBJECTS),
            *(_number(of["health"].get(h)) for h in health),
        )
        for name, of in kept.items()
    ]
    yield from _table(("", *SUBJECTS, *health), rows)


def _facts(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Variants and what they cost, means over seeds"
    yield ""
    rows = [
        (
            name,
            "; ".join(f"{key}: {a} -> {b}" for key, (a, b) in results["variants"].get(name, {}).items()) or "the base",
            f"{cost['training_s']:.0f}",
            f"{cost['samples_per_s']:.1f}",
            f"{cost['evaluation_s']:.0f}",
        )
        for name, cost in results["cost"].items()
    ]
    yield from _table(("", "diff", "training, s", "samples/s", "evaluation, s"), rows)
    facts, stages = results["environment"], results["stages"]
    yield "## World and machine"
    yield ""
    yield f"- Training clips: {_listed(stages['world']['train_clips'])}."
    yield f"- Validation clips: {_listed(stages['world']['validation_clips'])}."
    yield f"- No label shows the targets {', '.join(stages['world']['hidden_targets'])}."
    floor = {domain: f"{of['mpjpe_cm']:.2f} cm" for domain, of in stages["tokenizer"]["floor"].items()}
    yield f"- Tokenizer: {stages['tokenizer']['trained_chunks']} labelled chunks; error on validation chunks: {_listed(floor)}."
    yield f"- Text tokenizer: trained here on the prompts and the training clips' instructions, {stages['words']['tokens']} tokens."
    frames = stages["encoder"]["frames"]
    own = f"trained here on {frames} frames and frozen, since no pretrained one can be had offline"
    yield f"- Encoder: {own if frames else 'EfficientNet-Lite0, trained on ImageNet, frozen'}."
    yield f"- {facts['cpus']} CPUs, GPUs: {facts['gpus'] or 'none'}. Python {facts['python']}, {_listed(facts['versions'])}."
    yield f"- Command: `{facts['command']}`, commit {facts['git_commit']}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _interval(found: Mapping[str, float | None], sign: str = "") -> str:
    return "" if found["mean"] is None else f"{found['mean']:{sign}.2f} {_limits(found)}"


def _limits(found: Mapping[str, float | None]) -> str:
    return "" if found["low"] is None else f"[{found['low']:.2f}, {found['high']:.2f}]"


# --- figures ---------------------------------------------------------------------------------------------------------


STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
h2 { margin-top: 2.5rem; }"""
ROW_PX, FRAME_PX = 24, 180


def page(results: Mapping[str, Any], text: str) -> str:
    """One file that opens without a network: results.md, and before its first chapter errors of every seed on the primary part and
    differences to no_align on all parts."""
    primary = results["frozen"]["primary"]
    parts = results["motion"][str(primary["ensemble"])]
    figures = [_by_seed(parts[PRIMARY_PART], f"MPJPE, {PRIMARY_PART}, E = {primary['ensemble']}"), _forest(parts)]
    drawn = "".join(f.to_html(full_html=False, include_plotlyjs=i == 0) for i, f in enumerate(figures))
    told = MarkdownIt().enable("table").render(text).replace("<h2>", f"{drawn}<h2>", 1)
    title = f"The study at size {results['size']}"
    return f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>{told}"


def _by_seed(table: Mapping[str, Any], title: str) -> go.Figure:
    figure = go.Figure(layout={"title": {"text": title}, "yaxis": {"title": {"text": "cm"}, "rangemode": "tozero"}})
    for name, of in table["by_seed"].items():
        figure.add_scatter(
            x=[name] * len(of), y=list(of.values()), mode="markers", text=[f"seed {s}" for s in of], name=name
        )
    for row in OTHER_ROWS:
        mean = table["means"][row]["mpjpe"]["mean"]
        if mean is not None:
            told = f"{row} (told the true first pose)" if row == HOLD_FIRST else row
            figure.add_hline(y=mean, line_dash="dot", annotation_text=told)
    return figure


def _forest(parts: Mapping[str, Any]) -> go.Figure:
    title = {"text": "MPJPE minus that of no_align, 95 % intervals: left of 0 is better"}
    figure = go.Figure(layout={"title": title, "xaxis": {"title": {"text": "cm"}}})
    rows = 0
    for part, table in parts.items():
        found = {name: of["mpjpe"] for name, of in table["differences"].get("no_align", {}).items()}
        known = {name: i for name, i in found.items() if i["mean"] is not None and i["low"] is not None}
        rows += len(known)
        reach = {"array": [i["high"] - i["mean"] for i in known.values()]}
        reach["arrayminus"] = [i["mean"] - i["low"] for i in known.values()]
        figure.add_scatter(
            x=[i["mean"] for i in known.values()],
            y=[f"{name}, {part}" for name in known],
            error_x={"type": "data", "symmetric": False, **reach},
            mode="markers",
            name=part,
        )
    figure.update_layout(height=FRAME_PX + ROW_PX * rows, yaxis={"dtick": 1, "autorange": "reversed"})
    figure.add_vline(x=0, line_dash="dot")
    return figure
