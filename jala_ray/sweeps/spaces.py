"""Search spaces: flat dicts from the dotted keys of the command line to domains (`domains.py`), ready ones and a user's own.

A space of one's own is a JSON file of the same form, e.g. `{"objective.align.weight": {"log": [0.05, 2]}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jala_ray import storage
from jala_ray.config import OBJECTIVES, RunConfig, TokenizerRunConfig
from jala_ray.parsing import flatten, override, suggest
from jala_ray.sweeps.domains import Domain, read
from jala_ray.types import ConfigError

Base = RunConfig | TokenizerRunConfig
Space = Mapping[str, Mapping[str, Any]]
Method = Literal["tpe", "random", "grid"]
METHODS: tuple[Method, ...] = ("tpe", "random", "grid")
"""How values are looked for in a space (`search.py`)."""

COMMON: dict[str, dict[str, dict[str, Any]]] = {
    "optimisation": {
        "optim.lr": {"log_around": 10},
        "optim.warmup": {"uniform": [0.0, 0.2]},
        "optim.weight_decay": {"log_around": 10},
    },
    "wild_fraction": {"data.wild_fraction": {"choice": [0.0, 0.25, 0.5, 1.0]}},
    "tokenizer": {
        "model.codes": {"choice": [64, 128, 256, 512, 1024]},
        "model.levels": {"choice": [1, 2, 4, 8]},
    },
}
SPACES: dict[str, Space] = {name: space for one in OBJECTIVES.values() for name, space in one.spaces.items()} | COMMON
"""Those of the objectives, then those that any run has."""
DEFAULT = "lambda_alpha_layer"
SET_BY_SWEEPS = {
    **dict.fromkeys(
        ("train.checkpoint_every", "train.validate_every", "checkpoint_every", "train.eval_every"), "--report-every"
    ),
    **dict.fromkeys(("train.keep", "keep"), "the sweep (the newest checkpoint is kept)"),
    "cluster.max_failures": "--retries",
}
"""Settings of a trial's run that are the sweep's own, and what decides them."""
SAME_FOR_ALL = (
    "name",
    "seed",
    "storage.",
    "log.",
    "cluster.",
    "train.steps",
    "train.epochs",
    "train.val_samples",
    "train.evaluate",
    "train.generation_",
    "data.manifest",
)
"""Settings that begin so are not searched: trials would not compare, or nothing would change."""


def load(names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Named spaces and JSON files, joined. Raises `ConfigError` for an unknown one, or a key that two of them have."""
    joined: dict[str, Mapping[str, Any]] = {}
    owner: dict[str, str] = {}
    for name in names:
        for key, domain in _one(name).items():
            if key in joined:
                remedy = f"{owner[key]} and {name} both search it: leave one out, or write one space of your own."
                raise ConfigError("--space", key, "every setting in one space only", remedy)
            joined[key], owner[key] = domain, name
    return joined


def _one(name: str) -> Space:
    if not name.endswith(".json"):
        if name not in SPACES:
            raise ConfigError("--space", name, f"one of {', '.join(SPACES)}, or a .json file", suggest(name, SPACES))
        return SPACES[name]
    try:
        space = json.loads(storage.read_bytes(name))
    except (OSError, ValueError) as error:
        raise ConfigError("--space", name, "a readable JSON file", str(error)) from error
    if not isinstance(space, dict) or not space:
        raise ConfigError("--space", name, "an object of dotted keys and domains")
    return space


def bind(space: Space, base: Base, given: Sequence[str] = ()) -> dict[str, Domain]:
    """The space's domains over a base configuration, sorted by key, after trying their ends in it.

    `given` are dotted keys of the command line: fixing a setting and searching it too is refused. Raises `ConfigError` for a key that the
    base has not, a value that cannot work, or a setting that changes nothing in this base.
    """
    known = flatten(base)
    domains: dict[str, Domain] = {}
    for key in sorted(space):
        if key not in known:
            raise ConfigError(key, space[key], "a known setting", _of_others(key) or suggest(key, known))
        if key in SET_BY_SWEEPS or key.startswith(SAME_FOR_ALL):
            raise ConfigError(
                key, space[key], "a setting that changes what is learned, the same clips and steps for all"
            )
        if key in given:
            remedy = f"Leave --{key} out, or take a space without it."
            raise ConfigError(key, known[key], "to be given or searched, not both", remedy)
        domains[key] = read(key, space[key], known, lambda: layers_of(base))
        _refuse_idle(key, base)
        for value in domains[key].ends():
            verify(override(base, {key: value}))
    for end in (0, -1):  # and together: a pair of values may not go with each other
        verify(override(base, {key: domain.ends()[end] for key, domain in domains.items()}))
    return domains


def _of_others(key: str) -> str:
    """Which objectives have a setting that the base has not; empty where none has."""
    kinds = [kind for kind, one in OBJECTIVES.items() if key in {f"objective.{own}" for own in flatten(one())}]
    presets = [name for kind in kinds for name in OBJECTIVES.find(kind, "objective.kind").variants]
    return (
        f"It is one of the objective {' or '.join(kinds)}: sweep a preset of it ({', '.join(presets)})."
        if kinds
        else ""
    )


def verify(config: Base) -> None:
    """Raises `ConfigError` for a configuration that cannot run. A tokenizer's checks itself as it is made."""
    if isinstance(config, RunConfig):
        config.check()


def _refuse_idle(key: str, base: Base) -> None:
    idle = base.objective.idle(key) if isinstance(base, RunConfig) else None
    if idle is not None:
        raise ConfigError(key, None, *idle)


def layers_of(base: Base) -> int:
    """Number of blocks of the language model; a pretrained one's is read from its configuration."""
    if not isinstance(base, RunConfig):
        raise ConfigError("layer", type(base).__name__, "a pretraining run")
    backbone = base.model.backbone
    if backbone.pretrained is None:
        return backbone.language.layers
    from jala_ray.models.backbones.base import backbone_facts

    return backbone_facts(backbone, 0).n_layers
