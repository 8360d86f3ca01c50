"""Configuration: one parser, presets as small diffs, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.config import BackboneConfig, RunConfig, TextConfig, TokenizerRunConfig
from jala_ray.config.checking import check
from jala_ray.parsing import diff, from_dict, override, parse, to_dict
from jala_ray.presets import BASE, PRESETS, ROBOTS, TINY, TOKENIZER_PRESETS, configuration
from jala_ray.types import ConfigError

READY = override(TINY, {"data.manifest": "m.parquet", "motion_tokenizer": "t"})


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    assert from_dict(RunConfig, to_dict(PRESETS[name])) == PRESETS[name]


def test_presets_are_as_they_were() -> None:
    """Equal to those that runs and papers' figures were made with; more may have come, and settings that they do not name.

    How fast they run may have changed: those settings move no figure but by rounding.
    """
    was = json.loads((Path(__file__).parent / "fixtures/presets.json").read_text())
    speed = {
        "model.backbone.attention": "auto",
        "model.backbone.gradient_checkpointing": False,
        "data.pad_multiple": 1,
        "train.micro_tokens": 16384,
    }
    before = {name: override(from_dict(RunConfig, config), speed) for name, config in was.items()}
    assert {name: override(PRESETS[name], speed) for name in was} == before
    assert {PRESETS[name].model.backbone.kind for name in was} == {"internvl"}
    assert list(PRESETS)[:3] == list(was)[:3] and [name for name in PRESETS if name in was] == list(was)


@pytest.mark.parametrize("name", TOKENIZER_PRESETS)
def test_json_round_trip_of_tokenizers(name: str) -> None:
    assert from_dict(TokenizerRunConfig, to_dict(TOKENIZER_PRESETS[name])) == TOKENIZER_PRESETS[name]


@pytest.mark.parametrize(
    ("variant", "keys"),
    [
        ("no_align", {"objective.lap", "objective.updates", "objective.align.weight"}),
        ("labelled_only", {"data.labels"}),
        ("no_decoupling", {"objective.updates"}),
        ("ema_teacher", {"objective.updates"}),
        ("change", {"objective.align.target", "objective.align.distance"}),
        ("change_fixed", {"objective.align.target", "objective.align.distance", "objective.updates"}),
        (
            "change_head",
            {"objective.align.target", "objective.align.distance", "objective.updates", "objective.align.head"},
        ),
        ("jala_literal", {"objective.align.reduction", "objective.align.positions"}),
        ("anchored", {"objective.align.direction", "objective.updates"}),
        ("aligned_labelled_only", {"objective.align.clips"}),
        ("no_lsp", {"objective.state"}),
        ("align_only", {"objective.mcp"}),
        ("vjepa", {"model.encoder.kind", "model.encoder.pretrained", "model.encoder.image_size"}),
    ],
)
def test_a_variant_is_its_diff(variant: str, keys: set[str]) -> None:
    assert diff(BASE, PRESETS[variant]).keys() == keys | {"name"}
    assert diff(TINY, PRESETS[f"tiny_{variant}"]).keys() <= keys | {"name"}


@pytest.mark.parametrize(
    ("variant", "key", "values"),
    [
        ("no_decoupling", "objective.updates", ("decoupled", "gradient")),
        ("ema_teacher", "objective.updates", ("decoupled", "teacher")),
        ("no_lsp", "objective.state", ("mask", "none")),
        ("align_only", "objective.mcp", (True, False)),
    ],
)
def test_an_ablation_is_one_setting(variant: str, key: str, values: tuple[object, object]) -> None:
    for base, name in ((BASE, variant), (TINY, f"tiny_{variant}")):
        assert diff(base, PRESETS[name]) == {"name": (base.name, name), key: values}


@pytest.mark.parametrize("variant", ["next_token", "next_token_dino", "lapa_actions", "lapa_codes"])
def test_a_baseline_changes_its_objective_alone(variant: str) -> None:
    """Same data but for next token's labels, same optimiser, same encoder; the model only where none is trained."""
    allowed = {"next_token": {"data.labels"}, "next_token_dino": {"data.labels"}}.get(variant, set())
    for base, name in ((BASE, variant), (TINY, f"tiny_{variant}")):
        others = {key for key in diff(base, PRESETS[name]) if not key.startswith("objective.")} - {"name"}
        assert {key for key in others if not key.startswith(("model.backbone.", "model.text."))} == allowed
        assert PRESETS[name].objective.perceiver == base.objective.perceiver
        model = PRESETS[name].model
        if PRESETS[name].objective.trains_vla:
            assert model == base.model
        else:
            assert (model.backbone, model.text, model.encoder) == (BackboneConfig(), TextConfig(), base.model.encoder)


def test_which_presets_generate() -> None:
    """The others are judged by probes, or by what is trained on top of them."""
    silent = {name for name, config in PRESETS.items() if not config.objective.generates}
    assert silent == {
        f"{size}{name}"
        for size in ("", "tiny_")
        for name in ("align_only", "lapa_actions", "lapa_actions_pixels", "lapa_codes", *ROBOTS)
    }
    assert {name for name, config in PRESETS.items() if not config.objective.trains_vla} == {
        f"{size}{name}" for size in ("", "tiny_") for name in ("lapa_actions", "lapa_actions_pixels")
    }


def test_the_paper_in_numbers() -> None:
    """What the base preset must say (method.md 3-6)."""
    assert BASE.train.batch == 128 and BASE.train.micro_batch * BASE.cluster.workers == 128
    assert (BASE.optim.lr, BASE.optim.weight_decay, BASE.optim.betas) == (3e-5, 0.05, (0.9, 0.95))
    assert (BASE.optim.warmup, BASE.optim.clip, BASE.train.precision) == (0.05, 1.0, "bf16")
    align, masking = BASE.objective.align, BASE.objective.masking
    assert (align.weight, align.layer, BASE.objective.ema.alpha) == (0.5, 19, 0.999)
    assert masking.ratios == pytest.approx([0.05 + 0.1 * i for i in range(10)] + [1.0]) and masking.after == 0.05
    tokenizer = TOKENIZER_PRESETS["tokenizer"].model
    assert (tokenizer.groups, tokenizer.levels, tokenizer.codes) == (2, 8, 512)
    assert (tokenizer.commitment, tokenizer.velocity) == (0.02, 0.5)


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_short_runs_finish_their_ema(name: str) -> None:
    config = PRESETS[name]
    assert config.train.steps and config.objective.ema.alpha**config.train.steps <= 0.01


def test_command_line() -> None:
    config = configuration(["tiny", "--objective.align.weight", "0.1", "--train.steps", "7", "--data.packing", "False"])
    assert (config.objective.align.weight, config.train.steps, config.data.packing) == (0.1, 7, False)
    assert diff(config, override(TINY, {"objective.align.weight": 0.1, "train.steps": 7, "data.packing": False})) == {}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tinny"], "Did you mean tiny"),
        ([], "preset"),
        (["tiny", "--objective.align.wieght", "1"], r"Did you mean objective\.align\.weight"),
        (["tiny", "--objectiv.align.weight=1"], r"objective\.align\.weight"),
    ],
)
def test_typos_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configuration(argv)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective.align.wieght": 0.1}, "Did you mean"),
        ({"train.steps": "ten"}, r"train\.steps"),
        ({"train.precision": "bf15"}, "Did you mean bf16"),
        ({"optim.betas": [0.9]}, "2 values"),
        ({"data.packing": 1}, "bool"),
    ],
)
def test_overrides_are_typed(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(TINY, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.manifest": ""}, "--data.manifest"),
        ({"motion_tokenizer": ""}, "jala tokenizer"),
        ({"objective.ema.alpha": 1.0}, "0 <= alpha < 1"),
        ({"objective.align.layer": 5}, r"1\.\.4"),
        ({"objective.align.layer": 0}, r"1\.\.4"),
        ({"objective.align.weight": -1.0}, ">= 0"),
        ({"objective.masking.ratios": [0.0, 0.5]}, r"\(0, 1\]"),
        ({"train.micro_batch": 0}, ">= 1"),
        ({"train.steps": 0}, r"train\.steps"),
        ({"seed": -1}, "seed"),
        ({"optim.warmup": 5.0}, "warmup"),
        ({"objective.masking.after": 2.0}, "probability"),
        ({"name": "../x"}, r"inside storage\.root"),
        ({"cluster.workers": 0}, r"cluster\.workers"),
        ({"objective.perceiver.heads": 7}, "multiple"),
    ],
)
def test_impossible_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(override(READY, values))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tiny_align_only", {"objective.align.weight": 0.0}, r"objective\.mcp"),
        ("tiny_align_only", {"objective.lap": False}, r"objective\.mcp"),
        ("tiny_lapa_codes", {"init": None}, "lapa_actions"),
        ("tiny_lapa_codes", {"model.encoder.kind": "vjepa2"}, "dinov3"),
        ("tiny_lapa_actions", {"model.encoder.kind": "vjepa2"}, "dinov3"),
        ("tiny_lapa_actions", {"objective.actions.codes": 1}, ">= 2"),
        ("tiny_lapa_actions", {"objective.actions.tokens": 0}, ">= 1"),
        ("tiny_lapa_actions", {"objective.actions.width": 7}, "even"),
        ("tiny_lapa_actions", {"objective.actions.decay": 1.0}, "0 <= decay < 1"),
        ("tiny_lapa_actions", {"objective.actions.commitment": -1.0}, ">= 0"),
        ("tiny_lapa_actions", {"objective.perceiver.layers": 0}, ">= 1"),
    ],
)
def test_impossible_variants_are_refused(name: str, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(override(ready(name), values))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("tiny")])
def test_a_good_configuration_passes(name: str) -> None:
    check(ready(name))


def ready(name: str) -> RunConfig:
    config = override(PRESETS[name], {"data.manifest": "m.parquet", "motion_tokenizer": "t"})
    return override(config, {"init": "c"}) if config.objective.inherits else config


def test_parse_keeps_the_objective() -> None:
    assert parse(PRESETS["tiny_next_token"], ["--objective.state", "prefix"]).objective.state == "prefix"
