"""The model card of an export: what was trained on what, its figures, and whose licences its weights stand under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jala_ray.config import BackboneConfig, EncoderConfig, RunConfig
from jala_ray.config.backbones import BACKBONES
from jala_ray.types import MODEL_FPS

LICENCES = {"facebook/dinov3": "DINOv3 License, which passes on with the weights"}
"""How an encoder's pretrained name begins -> the licence of its weights as its page tells. Others are named without."""
REGISTERED = ("loss", "val/", "monitor/rho", "monitor/effective_rank_z", "mcp_accuracy")
"""Metrics that the card shows: names that are, or that begin so."""


@dataclass(frozen=True)
class Facts:
    """What a card tells of an export."""

    config: RunConfig
    step: int
    samples: int
    """Sequences trained on."""
    parameters: Mapping[str, int]
    """By part: backbone, encoder, others."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest value of each metric of the run up to `step`."""
    tokenizer: Mapping[str, object] | None = None
    """The motion tokenizer's quality.json."""
    clips: Sequence[tuple[str, str, str, bool, int]] = ()
    """(source, domain, split, with hand poses, rows) of the manifest; empty where it could not be read."""
    evaluation: str | None = None
    """The evaluation's table, markdown."""


def model_card(facts: Facts, name: str) -> str:
    """README.md with its front matter, for an export that is called `name`."""
    parts = [
        _front_matter(facts.config),
        f"# {name}",
        _about(facts),
        _loading(),
        "## Configuration",
        _table(("setting", "value"), _settings(facts)),
        "## Data",
        _data(facts),
        "## Figures",
        _figures(facts),
        "## Licences",
        _licences(facts.config),
    ]
    return "\n\n".join(parts) + "\n"


def _pretrained(config: RunConfig) -> list[str]:
    """Names on the hub whose weights the export began with."""
    named = (config.model.backbone.pretrained, config.model.encoder.pretrained)
    return [name for name in named if name and name.count("/") == 1 and not name.startswith((".", "/"))]


def _front_matter(config: RunConfig) -> str:
    bases = _pretrained(config)
    lines = ["---", "library_name: jala_ray", "pipeline_tag: robotics"]
    lines += ["license: other", "license_name: see-the-card", "license_link: README.md"]
    lines += ["base_model:", *(f"- {base}" for base in bases)] if bases else []
    tags = ("vision-language-action", "hand-motion", "mano", config.objective.kind)
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _about(facts: Facts) -> str:
    kind = facts.config.objective.kind
    made = (
        f"It generates motion of human hands (MANO, {MODEL_FPS} frames per second) from a picture and an instruction."
        if facts.config.objective.generates
        else "It learns latent actions and generates no motion by itself."
    )
    return (
        f"A vision-language-action model, pretrained with jala_ray on videos of human hands (objective `{kind}`). {made} "
        f"Weights of the run `{facts.config.name}` after {facts.step:,} steps, {facts.samples:,} sequences."
    )


def _loading() -> str:
    return """## Use

```python
import jala_ray
from transformers import AutoModelForImageTextToText

loaded = jala_ray.load("FOLDER")  # .learner (all weights), .assets.text, .assets.motion (both tokenizers), .config
backbone = AutoModelForImageTextToText.from_pretrained("FOLDER/backbone")  # the vision-language model alone
motion = jala_ray.generate("FOLDER", "kitchen.jpg", "Pour the water.", 3.0)
```"""


def _settings(facts: Facts) -> Iterable[tuple[str, str]]:
    config = facts.config
    yield "backbone", _backbone(config.model.backbone)
    if config.model.backbone.lora.rank:
        yield "adapters (LoRA), merged", f"rank {config.model.backbone.lora.rank}"
    yield "frozen encoder", _encoder(config.model.encoder)
    for part, count in facts.parameters.items():
        yield f"weights, {part}", f"{count:,}"
    yield "objective", config.objective.kind
    yield "steps x batch", f"{facts.step:,} x {config.train.batch}"
    yield "learning rate, precision", f"{config.optim.lr:g}, {config.train.precision}"
    yield "seed", str(config.seed)


def _backbone(config: BackboneConfig) -> str:
    if config.pretrained:
        return f"{config.pretrained}, {config.image_size} px"
    language = config.language
    return f"random {BACKBONES.find(config.kind).title}: {language.layers} blocks of {language.hidden}, {config.image_size} px"


def _encoder(config: EncoderConfig) -> str:
    if config.pretrained:
        return f"{config.pretrained}, {config.image_size} px"
    return f"random {config.kind}: {config.sizes.layers} blocks of {config.sizes.hidden}, {config.image_size} px"


def _data(facts: Facts) -> str:
    data = facts.config.data
    if data.robot_sets:
        named = ", ".join(f"`{address.rstrip('/').rpartition('/')[2]}` ({robot})" for address, robot in data.robot_sets)
        return f"LeRobot data sets, with their embodiments: {named}."
    place = data.manifest or data.cache or "not named"
    lines = [f"Manifest: `{place.rstrip('/').rpartition('/')[2]}`."]
    if not facts.clips:
        return lines[0] + " It could not be read when this card was written."
    rows = [
        (source, domain, split, "yes" if posed else "no", f"{count:,}")
        for source, domain, split, posed, count in facts.clips
    ]
    return "\n\n".join([*lines, _table(("source", "domain", "split", "hand poses", "rows"), rows)])


def _figures(facts: Facts) -> str:
    parts = []
    shown = [(name, f"{value:.4g}") for name, value in facts.metrics.items() if name.startswith(REGISTERED)]
    if shown:
        parts += [f"Of the run, at its last logged step up to {facts.step:,}:", _table(("metric", "value"), shown)]
    single = {
        k: v for k, v in (facts.tokenizer or {}).items() if isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    if single:
        parts += [
            "Of the motion tokenizer:",
            _table(("measure", "value"), [(k, f"{v:.4g}") for k, v in single.items()]),
        ]
    if facts.evaluation:
        parts += ["Of generated motion on held-out clips (lower is better):", facts.evaluation.strip()]
    else:
        parts.append(
            "Generated motion has not been evaluated for this card (`jala evaluate`, then `jala export --evaluation`)."
        )
    return "\n\n".join(parts)


def _licences(config: RunConfig) -> str:
    lines, licences = [], LICENCES | dict(BACKBONES.find(config.model.backbone.kind).licences)
    for name in _pretrained(config):
        known = next((text for prefix, text in licences.items() if name.startswith(prefix)), "see its page")
        lines.append(f"- Weights that began as [{name}](https://huggingface.co/{name}): {known}.")
    lines += [
        "- What jala_ray added: under the licence that whoever publishes this folder gives; the code is Apache-2.0.",
        "- MANO's model files are not included. They have a licence of their own (https://mano.is.tue.mpg.de).",
        "- The videos that it learned from are not included, and their terms may limit what the weights are used for.",
    ]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
