"""Tables of the docs that come from registries or kept scores: `python -m tests.tables` writes them between their marks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.scale import HEADS as SCALE_HEADS
from benchmarks.scale import Assumed
from benchmarks.scale import rows as scale_rows
from jala_ray import presets
from jala_ray.config import RunConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.config.encoders import ENCODERS
from jala_ray.config.evaluators import EVALUATORS
from jala_ray.data.adapters import ADAPTERS
from jala_ray.hands.metrics import METRICS
from jala_ray.parsing import override
from jala_ray.training.cards import on_cards
from jala_ray.training.estimate import GB, Data, compute
from jala_ray.training.gauges import ALL as EXPORTED
from tests.studies import alignment_tables

SMALLEST = "OpenGVLab/InternVL3-1B-hf"
ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "README.md",
    *(f"docs/guides/{name}.md" for name in ("evaluate", "hardware", "operations", "own_data", "posttraining", "scale")),
    "docs/results/alignment.md",
)
ALIGNMENT_PARTS = ("hidden (primary)", "seen", "Lab")
SAVING = {"train.micro_batch": 2, "train.micro_tokens": 4096, "model.backbone.gradient_checkpointing": True}
ALONE = {"cluster.workers": 1}
LORA = {"model.backbone.gradient_checkpointing": True, "model.backbone.lora.rank": 64}
MACHINES = (
    ("8 x 80 GB", 80, 400, "jala", {}),
    ("8 x 48 GB", 48, 150, "jala", SAVING),
    ("1 x 80 GB", 80, 400, "jala", ALONE),
    ("1 x 48 GB", 48, 150, "jala", ALONE | SAVING),
    ("1 x 24 GB", 24, 80, "jala", ALONE | LORA),
    ("1 x 24 GB", 24, 80, "qwen", ALONE | LORA),
    ("1 x 24 GB", 24, 80, "jala", ALONE | SAVING | {"model.backbone.pretrained": SMALLEST}),
)
"""GPUs, GB of each, TFLOP/s that one is taken to sustain in bfloat16, a preset and what is changed of it."""
SECONDS = 5.0
"""Of a clip on average."""
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [heads, ["---"] * len(list(heads)), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def first_line(of: object) -> str:
    return (of.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def of_presets() -> str:
    rows = []
    for name in presets.PRESETS:
        if name.startswith("tiny"):
            continue
        twin = "tiny" if name == "jala" else f"tiny_{name}"
        twin = f"`{twin}`" if twin in presets.PRESETS else ""
        rows.append([f"`{name}`", twin, presets.about(name).strip().partition("\n")[0].rstrip(".")])
    return table(("preset", "tiny twin", "what it is"), rows)


def of_metrics() -> str:
    rows = [[metric.label, metric.unit, metric.text, metric.better] for metric in METRICS.values()]
    return table(("metric", "unit", "what it measures", "better"), rows)


def of_encoders() -> str:
    return table(
        ("`model.encoder.kind`", "what it is"), [[f"`{name}`", first_line(one)] for name, one in ENCODERS.items()]
    )


def of_backbones() -> str:
    rows = [[f"`{name}`", first_line(one), one.example] for name, one in BACKBONES.items()]
    return table(("`model.backbone.kind`", "what it is", "weights, for example"), rows)


def of_adapters() -> str:
    rows = [[f"`{name}`", first_line(one), one.domain] for name, one in ADAPTERS.items()]
    return table(("adapter", "what it reads", "domain"), rows)


def of_evaluators() -> str:
    rows = []
    for name, kind in EVALUATORS.items():
        every = "`train.evaluate`" if kind.set_by is None else f"`{kind.set_by}`"
        rows.append([f"`{kind.about or name}`", first_line(kind), every])
    return table(("evaluator", "what it measures", "how often"), rows)


def of_hardware() -> str:
    rows = []
    for gpus, gb, tflops, name, changes in MACHINES:
        preset = presets.PRESETS[name]
        assert isinstance(preset, RunConfig)
        config = override(preset, dict(changes))
        found = compute(config, Data(1_000_000, SECONDS, "an assumption"))
        assert found.memory <= gb * GB, f"{gpus}: {found.memory / GB:.1f} GB do not fit"
        train, workers, rank = config.train, config.cluster.workers, config.model.backbone.lora.rank
        seconds = found.flops_step / (tflops * 1e12 * workers)
        own = -(-train.batch // workers)
        times = max(-(-own // train.micro_batch), math.ceil(own * found.tokens_sequence / train.micro_tokens))
        hours = seconds * 1e6 / train.batch / 3600
        backbone = (
            (config.model.backbone.pretrained or "").rpartition("/")[2].removesuffix("-hf").removesuffix("-Instruct")
        )
        row = [
            gpus,
            backbone + (f", LoRA {rank}" if rank else ""),
            f"{found.largest.tokens:,} x {times}",
            f"{found.memory / GB:.0f} GB",
        ]
        rows.append([*row, f"{found.checkpoint / GB:.0f} GB", f"{tflops}", f"{seconds:.1f} s", f"{hours:.0f} h"])
    heads = ("GPUs", "backbone", "tokens x passes", "memory per GPU", "checkpoint")
    return table((*heads, "TFLOP/s sustained, assumed", "per step", "per million clips"), rows)


def of_cards() -> str:
    """Presets of one name differ in nothing that counts here."""
    rows = []
    for name in ("libero_spatial", "robocasa_human"):
        preset = presets.PRESETS[name]
        assert isinstance(preset, RunConfig)
        for found in on_cards(preset, Data(None, 0.0, "steps are set")):
            assert found is not None and found.hours is not None and found.steps is not None
            family = f"`{name.partition('_')[0]}_*`, {found.steps:,} steps"
            words = f"`{found.words}`" if found.words else "as it is"
            row = [family, f"{found.card.name}, {found.card.gb:g} GB", words, f"{found.memory / GB:.0f} GB"]
            flops = f"{found.flops_step / 1e12:,.0f}, {found.flops_float32 / 1e12:,.0f}"
            rows.append([*row, flops, f"{found.step_s:.1f} s", f"{found.hours:,.0f} h"])
    heads = ("preset", "card", "settings", "memory", "TFLOP per step, of them float32", "per step", "in all")
    return table(heads, rows)


def of_scale() -> str:
    preset = presets.PRESETS["jala"]
    assert isinstance(preset, RunConfig)
    return table(SCALE_HEADS, scale_rows(preset, Assumed()))


def of_exported() -> str:
    return table(
        ("metric", "meaning", "from a row's"),
        [[f"`{one.seen_as}`", one.meaning, f"`{one.key}`" if one.key else ""] for one in EXPORTED],
    )


TABLES: dict[str, Callable[[], str]] = {
    "presets": of_presets,
    "metrics": of_metrics,
    "encoders": of_encoders,
    "backbones": of_backbones,
    "adapters": of_adapters,
    "cards": of_cards,
    "hardware": of_hardware,
    "scale": of_scale,
    "exported": of_exported,
    "evaluators": of_evaluators,
    "alignment_seeds": lambda: table(("", "seed", *ALIGNMENT_PARTS), alignment_tables.seeds()),
    "alignment_cost": lambda: table(("", "runs", "least", "median"), alignment_tables.cost()),
    "alignment_differences": lambda: table(("", "seeds", *ALIGNMENT_PARTS), alignment_tables.differences()),
}


def filled(text: str) -> str:
    """The text with every marked table as it is now."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def main() -> None:
    for name in FILES:
        path = ROOT / name
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
