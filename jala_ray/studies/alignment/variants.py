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
FEWER = 5
"""Seeds of the first tier's rows that no claim is made of."""
AGAIN = ("grounded", "jala")
"""Rows that the third tier varies."""


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
    seeds: int | None = None
    """Fewer than its tier has."""


def _mixed(config: RunConfig, twin: bool) -> RunConfig:
    """Where every clip that is read has labels, nothing is left to mix: rows come as they are."""
    labelled = twin or config.data.labels == "labelled_only" or config.data.wild_fraction == 0
    return override(config, {"data.task_weights": ()}) if labelled else config


def _halved(change: Change) -> Change:
    """With half the steps: both halves together give the VLA as many as every other variant's."""
    return lambda base: override(change(base), {"train.steps": (base.train.steps or 0) // 2})


def _latent_actions(base: RunConfig) -> RunConfig:
    # The stand-in for the VLA must take the first pictures as they are cached.
    size = {"model.backbone.image_size": base.model.backbone.image_size}
    return override(VARIANTS["lapa_actions"](base), size)


def _latent_pixels(base: RunConfig) -> RunConfig:
    return override(_latent_actions(base), {"objective.reconstruct": "pixels"})


def _literal_labelled_only(base: RunConfig) -> RunConfig:
    return VARIANTS["aligned_labelled_only"](VARIANTS["jala_literal"](base))


def variants(base: RunConfig) -> list[Variant]:
    """All of them, tier by tier.

    Left out: `vjepa`, since no V-JEPA 2 can be had offline and a random one would say nothing of it. The ceiling, `all_labelled`, aligns
    nothing, as the gates are tried before any run that does. In tier 3, lambda = 0 and a wild share of 0 with `grounded` say what the first
    tier's rows do not.
    """
    stages = (("actions", _latent_actions), ("codes", _halved(VARIANTS["lapa_codes"])))
    pixels = (("actions", _latent_pixels), ("codes", _halved(VARIANTS["lapa_codes"])))
    labelled = _halved(lambda b: VARIANTS["labelled_only"](VARIANTS["no_align"](b)))
    return [
        Variant("no_align", 1, VARIANTS["no_align"]),
        Variant("grounded", 1, VARIANTS["grounded"]),
        Variant("grounded_labelled_only", 1, VARIANTS["grounded_labelled_only"]),
        Variant("jala", 1, seeds=FEWER),
        Variant("jala_literal", 1, VARIANTS["jala_literal"], seeds=FEWER),
        Variant("all_labelled", 1, VARIANTS["no_align"], twin=True, seeds=FEWER),
        Variant("anchored", 2, VARIANTS["anchored"]),
        Variant("no_decoupling", 2, VARIANTS["no_decoupling"]),
        Variant("posterior", 2, VARIANTS["posterior"]),
        Variant("posterior_labelled_only", 2, VARIANTS["posterior_labelled_only"]),
        Variant("align_only", 2, VARIANTS["align_only"]),
        Variant("next_token", 2, VARIANTS["next_token"]),
        Variant("next_token_dino", 2, VARIANTS["next_token_dino"]),
        Variant("lapa", 2, labelled, before=stages),
        Variant("lapa_pixels", 2, labelled, before=pixels),
        *(_changed(name, "lambda", weight, objective__align__weight=weight) for name in AGAIN for weight in (0.1, 2.0)),
        *(_changed(name, "wild", share, data__wild_fraction=share) for name in AGAIN for share in (0.0, 0.25, 0.5)),
        # Named after two seeds of `jala_literal` were seen, so nothing is claimed of them: is what it gains due to video, or to weight?
        Variant("jala_literal_labelled_only", 3, _literal_labelled_only),
        _changed("jala", "lambda", 8.0, objective__align__weight=8.0),
    ]


def _changed(name: str, word: str, value: float, **values: object) -> Variant:
    """A variant of the third tier: another one with other numbers; `__` stands for dots."""
    change = VARIANTS.get(name, jala)
    numbers = {key.replace("__", "."): number for key, number in values.items()}
    return Variant(f"{name}_{word}_{value:g}", 3, lambda base: override(change(base), numbers))


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
    return [StudyJob(variant, seed) for seed in range(seeds) for variant in chosen if seed < (variant.seeds or seeds)]


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
