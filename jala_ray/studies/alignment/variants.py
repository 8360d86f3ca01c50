"""What is compared: each variant a small diff of one base configuration, in tiers, with seeds that pair the runs (method.md 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jala_ray.config import RunConfig
from jala_ray.parsing import diff, override
from jala_ray.presets import VARIANTS
from jala_ray.studies.alignment.stages import StudyFolder
from jala_ray.training import history, setup
from jala_ray.types import ConfigError

Change = Callable[[RunConfig], RunConfig]
TIERS = (1, 2, 3)


def jala(base: RunConfig) -> RunConfig:
    """The base itself."""
    return base


@dataclass(frozen=True)
class Variant:
    """What is changed of the base, and what is trained before it, each run from the one before."""

    name: str
    tier: int
    change: Change = jala
    twin: bool = False
    """Over the manifest in which all of Wild is labelled."""
    before: tuple[tuple[str, Change], ...] = ()


def _mixed(config: RunConfig, twin: bool) -> RunConfig:
    """Where every clip that is read has labels, nothing is left to mix: rows come as they are."""
    labelled = twin or config.data.labels == "labelled_only" or config.data.wild_fraction == 0
    return override(config, {"data.task_weights": ()}) if labelled else config


def setting(name: str, tier: int, **values: object) -> Variant:
    """A variant of numbers; `__` stands for dots."""
    return Variant(name, tier, lambda base: override(base, {key.replace("__", "."): v for key, v in values.items()}))


def _halved(change: Change) -> Change:
    """With half the steps: both halves together give the VLA as many as every other variant's."""
    return lambda base: override(change(base), {"train.steps": (base.train.steps or 0) // 2})


def _latent_actions(base: RunConfig) -> RunConfig:
    # The stand-in for the VLA must take the first pictures as they are cached.
    size = {"model.backbone.image_size": base.model.backbone.image_size}
    return override(VARIANTS["lapa_actions"](base), size)


def variants(base: RunConfig) -> list[Variant]:
    """All of them, tier by tier.

    Left out: `vjepa`, since no V-JEPA 2 can be had offline and a random one would say nothing of it. In tier 3, lambda = 0 is `no_align`
    (method.md 9); lambda = 0.5, wild fraction 1 and the base's aligned layer are `jala`.
    """
    depth, aligned = base.model.backbone.language.layers, base.objective.aligned_layer
    places = {"early": 1, "middle": (depth + 1) // 2, "late": depth}
    stages = (("actions", _latent_actions), ("codes", _halved(VARIANTS["lapa_codes"])))
    return [
        Variant("jala", 1),
        Variant("no_align", 1, VARIANTS["no_align"]),
        Variant("labelled_only", 1, VARIANTS["labelled_only"]),
        Variant("all_labelled", 1, twin=True),
        Variant("next_token", 2, VARIANTS["next_token"]),
        Variant("next_token_dino", 2, VARIANTS["next_token_dino"]),
        Variant("no_decoupling", 2, VARIANTS["no_decoupling"]),
        Variant("no_lsp", 2, VARIANTS["no_lsp"]),
        Variant("align_only", 2, VARIANTS["align_only"]),
        Variant("lapa", 2, _halved(lambda b: VARIANTS["labelled_only"](VARIANTS["no_align"](b))), before=stages),
        # Remedies for a z that does not tell of motion; none is in the papers.
        Variant("ema_teacher", 2, VARIANTS["ema_teacher"]),
        Variant("change", 2, VARIANTS["change"]),
        Variant("change_fixed", 2, VARIANTS["change_fixed"]),
        Variant("change_head", 2, VARIANTS["change_head"]),
        # With no_align, labelled_only and jala the four corners of loss and data; every one of its samples has labels.
        Variant("no_align_labelled_only", 2, lambda b: VARIANTS["labelled_only"](VARIANTS["no_align"](b))),
        # With all_labelled, no_align and jala those of labels and alignment.
        Variant("all_labelled_no_align", 2, VARIANTS["no_align"], twin=True),
        *(setting(f"lambda_{weight:g}", 3, objective__align__weight=weight) for weight in (0.1, 1.0)),
        *(setting(f"wild_{share:g}", 3, data__wild_fraction=share) for share in (0.0, 0.25, 0.5)),
        *(setting(f"layer_{name}", 3, objective__align__layer=at) for name, at in places.items() if at != aligned),
    ]


@dataclass(frozen=True)
class StudyJob:
    """A variant with a seed: one run, or several one after another."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant.name}/seed-{self.seed}"


def jobs(chosen: Sequence[Variant], seeds: int) -> list[StudyJob]:
    """Seed by seed, so that what was cut off has pairs."""
    return [StudyJob(variant, seed) for seed in range(seeds) for variant in chosen]


def configs(study: StudyFolder, job: StudyJob) -> tuple[RunConfig, ...]:
    """The runs of a job in order; the last one is evaluated. One seed gives all variants the same initial weights and draws."""
    variant, base = job.variant, replace(study.base(job.variant.twin), seed=job.seed)
    runs: list[RunConfig] = []
    for stage, change in (*variant.before, ("", variant.change)):
        init = last_checkpoint(runs[-1]) if runs else None
        config = _mixed(change(base), variant.twin)
        runs.append(replace(config, name=f"{study.apart}runs/{job.name}{stage and f'-{stage}'}", init=init))
    return tuple(runs)


def last_checkpoint(config: RunConfig) -> str:
    """Where a run leaves its last checkpoint."""
    return history.address(setup.run_folder(config), config.train.steps or 0)


def without_addresses(config: RunConfig) -> RunConfig:
    """What of a configuration makes its numbers, wherever the study lies."""
    addresses = ("storage.root", "motion_tokenizer", "data.manifest", "data.cache")
    blank = override(config, dict.fromkeys(addresses, ""))
    encoder = replace(blank.model.encoder, pretrained=None)
    text = replace(blank.model.text, pretrained=None)
    return replace(blank, init=config.init and "the run before", model=replace(blank.model, encoder=encoder, text=text))


def described(study: StudyFolder, variant: Variant) -> dict[str, list[object]]:
    """A variant's diff of the base: dotted key -> [base's value, its value], and whose labels it has."""
    changed = diff(study.base(), _mixed(variant.change(study.base()), variant.twin))
    found: dict[str, list[object]] = {key: list(values) for key, values in changed.items()}
    if variant.twin:
        found["labels of Wild"] = [study.size.world.labelled_share, 1.0]
    if variant.before:
        found["trained before"] = [None, ", ".join(stage for stage, _ in variant.before)]
    return found


def named(known: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """Raises `ConfigError` for a name that is not known."""
    unknown = set(names) - {variant.name for variant in known}
    if unknown:
        raise ConfigError("variants", sorted(unknown), f"some of {', '.join(v.name for v in known)}")
    return [variant for variant in known if variant.name in names]
