"""Spaces: data in, domains out, and everything that cannot work refused with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from jala_ray.config import OBJECTIVES, RunConfig
from jala_ray.parsing import override
from jala_ray.presets import BASE, PRESETS, TINY, TINY_TOKENIZER
from jala_ray.sweeps.domains import Choice, Range, read
from jala_ray.sweeps.metrics import METRICS, choose, halving_metric
from jala_ray.sweeps.plan import SweepRequest, plan_sweep
from jala_ray.sweeps.search import Strategy, propose
from jala_ray.sweeps.spaces import SPACES, bind, load
from jala_ray.types import ConfigError
from tests.support import small

READY = [name for name in SPACES if name != "tokenizer"]


def base(**values: object) -> RunConfig:
    return small(TINY, **values)


def base_of(space: str) -> RunConfig:
    """A preset whose space it is."""
    kind = next((kind for kind, objective in OBJECTIVES.items() if space in objective.spaces), "jala")
    return base() if kind == "jala" else small(PRESETS[f"tiny_{kind}"])


def refused(match: str):
    return pytest.raises(ConfigError, match=match)


@pytest.mark.parametrize("name", READY)
def test_ready_spaces_fit_their_presets(name: str) -> None:
    domains = bind(load([name]), base_of(name))
    for u in (0.0, 0.3, 0.999, 1.0):
        values = {key: domain.at(u) for key, domain in domains.items()}
        override(base_of(name), values)
        for key, value in json.loads(json.dumps(values)).items():  # as the ledger gives it back
            assert value == values[key] and domains[key].outer(domains[key].inner(value)) == value


def test_the_tokenizers_space() -> None:
    domains = bind(load(["tokenizer"]), TINY_TOKENIZER)
    assert domains["model.levels"] == Choice((1, 2, 4, 8))


def test_the_default_space_is_lambda_alpha_and_the_layer_at_hand() -> None:
    domains = bind(load(["lambda_alpha_layer"]), base())
    assert domains == {
        "objective.align.layer": Range("integer", 1, 4),
        "objective.align.weight": Range("log", 0.05, 5.0),
        "objective.ema.alpha": Range("one_minus_log", 0.002, 0.2),
    }


def test_grounded_is_searched_as_jala_is() -> None:
    """lambda and layer alike, the teacher instead of alpha; the same metrics; other presets are told whose space it is."""
    grounded = small(PRESETS["tiny_grounded"])
    domains = bind(load(["grounded", "wild_fraction"]), grounded)
    assert domains == {
        "data.wild_fraction": Choice((0.0, 0.25, 0.5, 1.0)),
        "objective.align.layer": Range("integer", 1, 4),
        "objective.align.weight": Range("log", 0.05, 5.0),
        "objective.teacher.form": Choice(("closed", "learned")),
    }
    assert choose([], grounded, domains) == (METRICS["masked_loss"],)
    assert choose(["probe_h", "mpjpe_wild"], grounded, domains) == (METRICS["probe_h"], METRICS["mpjpe_wild"])
    assert halving_metric((METRICS["probe_h"],), grounded, domains) == METRICS["masked_loss"]
    for other in (base(), small(PRESETS["tiny_next_token"])):
        with refused("objective.teacher.form.*one of the objective grounded: sweep a preset of it"):
            bind({"objective.teacher.form": {"choice": ["closed", "learned"]}}, other)


def test_alpha_is_searched_on_the_scale_of_its_distance_to_one() -> None:
    alpha = Range("one_minus_log", 1e-4, 1e-1)
    assert [alpha.at(u) for u in (0.0, 1 / 3, 2 / 3, 1.0)] == [0.9999, 0.999, 0.99, 0.9]
    assert alpha.grid(4) == [0.9999, 0.999, 0.99, 0.9]
    for value in alpha.grid(4):
        assert alpha.outer(alpha.inner(value)) == value


@pytest.mark.parametrize("scale", ["uniform", "log", "one_minus_log", "integer"])
def test_a_range_keeps_its_ends_and_its_order(scale) -> None:
    domain = Range(scale, 1, 9) if scale == "integer" else Range(scale, 0.012345, 0.6)
    values = [domain.at(u / 50) for u in range(51)]
    assert {values[0], values[-1]} == set(domain.ends())
    assert values in (sorted(values), sorted(values, reverse=True))
    assert [round(domain.unit(v), 2) for v in (values[0], values[-1])] == [0.0, 1.0]
    assert read("k", domain.to_json(), {}, lambda: 1) == domain


def test_every_layer_comes_as_often() -> None:
    layers = Range("integer", 1, 4)
    assert [sum(layers.at((u + 0.5) / 400) == layer for u in range(400)) for layer in (1, 2, 3, 4)] == [100] * 4


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(
        json.dumps({"optim.lr": {"log": [1e-4, 1e-2]}, "objective.align.schedule": {"choice": ["constant", "decay"]}})
    )
    domains = bind(load([str(mine), "wild_fraction"]), base())
    assert set(domains) == {"optim.lr", "objective.align.schedule", "data.wild_fraction"}
    (tmp_path / "bad.json").write_text("{")
    with refused("readable JSON"):
        load([str(tmp_path / "bad.json")])


def test_mistyped_keys_and_names_are_refused_with_a_suggestion() -> None:
    with refused("Did you mean objective.align.weight"):
        bind({"objective.align.wieght": {"log": [0.1, 1]}}, base())
    with refused("Did you mean lambda_alpha_layer"):
        load(["lamda_alpha_layer"])
    with refused("Did you mean uniform"):
        bind({"optim.lr": {"uniforn": [0, 1]}}, base())


def test_impossible_layers_and_alphas_are_refused() -> None:
    with refused(r"objective.align.layer: got 9, expected 1..4"):
        bind({"objective.align.layer": {"integer": [1, 9]}}, base())
    with refused("At 1 LAP's backbone would never move"):
        bind({"objective.ema.alpha": {"uniform": [0.9, 1.0]}}, base())
    with refused("x would be 1"):
        bind({"objective.ema.alpha": {"one_minus_log": [0, 0.1]}}, base())
    with refused("below 1"):
        bind({"objective.ema.alpha": {"one_minus_log": [0.1, 1.0]}}, base())


def test_clashes_are_refused() -> None:
    with refused("lambda_alpha_layer and lambda_alpha_layer both search it"):
        load(["lambda_alpha_layer", "lambda_alpha_layer"])
    with refused("given or searched, not both"):
        bind(load(["lambda_alpha_layer"]), base(), ["objective.align.weight"])


def test_settings_that_change_nothing_are_refused() -> None:
    for name, why in (("tiny_no_align", "no LAP"), ("tiny_no_decoupling", "alpha changes nothing")):
        with refused(why):
            bind(load(["lambda_alpha_layer"]), small(PRESETS[name]))
    with refused("alpha follows from it"):
        bind(load(["lambda_alpha_layer"]), small(objective__ema__share=0.1))
    assert bind({"objective.ema.share": {"log": [0.01, 0.3]}}, small(objective__ema__share=0.1))
    with refused("a known setting"):
        bind(load(["lambda_alpha_layer"]), small(PRESETS["tiny_next_token"]))


@pytest.mark.parametrize(
    "domain",
    [{"log": [0, 1]}, {"log": [2, 1]}, {"log": [1]}, {"integer": [1, 2.5]}, {"choice": [1]}, {"choice": [1, 1]}, {"log_around": 1},
     {"uniform": [0, float("inf")]}, {"log": [1, 2], "uniform": [1, 2]}, 3],
)  # fmt: skip
def test_malformed_domains_are_refused(domain: object) -> None:
    with refused("optim.lr"):
        bind({"optim.lr": domain}, base())  # type: ignore[dict-item]


def test_two_ends_that_do_not_go_together_are_refused() -> None:
    # each width alone goes with 4 heads; 20 and 8 heads do not
    with refused("multiple"):
        bind(
            {"objective.perceiver.width": {"choice": [16, 20]}, "objective.perceiver.heads": {"choice": [4, 8]}}, base()
        )


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_training_losses_are_refused() -> None:
    for name in ("loss", "loss_align", "loss_mcp", "val/wild/loss_align"):
        with refused("not comparable across lambda"):
            choose([name], base(), ["objective.align.weight"])


def test_a_metric_must_mean_the_same_in_every_trial() -> None:
    assert choose([], base(), ["optim.lr"]) == (METRICS["masked_loss"],)
    assert choose([], base(), ["objective.masking.after"]) == (METRICS["mpjpe"],)
    with refused("different questions"):
        choose(["masked_loss"], base(), ["objective.masking.after"])
    assert halving_metric((METRICS["mpjpe"],), base(), ["objective.masking.after"]) is None
    assert halving_metric((METRICS["mpjpe"],), base(), ["optim.lr"]) == METRICS["masked_loss"]
    aligned = small(PRESETS["tiny_align_only"])
    assert choose([], aligned, ["optim.lr"]) == (METRICS["probe_h"],)
    assert halving_metric((METRICS["probe_h"],), aligned, ["optim.lr"]) is None
    assert choose([], small(PRESETS["tiny_next_token"]), ["optim.lr"]) == (METRICS["mpjpe"],)
    with refused("one that this objective has: mpjpe"):
        choose(["probe_h"], small(PRESETS["tiny_next_token"]), ["optim.lr"])
    with refused("it has none"):
        choose([], small(PRESETS["tiny_lapa_actions"]), ["optim.lr"])
    with refused("for this kind of run"):
        choose(["mpjpe"], TINY_TOKENIZER, [])


def test_a_metrics_value() -> None:
    metric = METRICS["masked_loss"]
    assert metric.value({"val/lab/loss_mcp": 1.0, "val/wild/loss_mcp": 3.0}) == 2.0
    assert metric.value({"val/lab/loss_mcp": 1.0, "val/wild/loss_mcp": None}) == 1.0
    assert metric.value({}) is None and metric.value({"val/lab/loss_mcp": float("nan")}) is None


# --- the plan --------------------------------------------------------------------------------------------------------


def asked(tmp_path: Path, *settings: str, **values: object) -> SweepRequest:
    config = ["--data.manifest", "none", "--motion-tokenizer", "none", "--storage.root", str(tmp_path), *settings]
    given = {"space": ["lambda_alpha_layer"], "trials": 9, "search": "tpe"} | values
    return SweepRequest("tiny", tuple(config), **given)  # type: ignore[arg-type]


def test_a_plan_has_rungs_inside_a_trial(tmp_path: Path) -> None:
    plan = plan_sweep(asked(tmp_path, "--train.steps", "270"))
    assert plan.halving is not None and plan.halving.rungs == [30, 90] and plan.report_every == 30
    assert plan_sweep(asked(tmp_path, metric=["masked_loss", "mpjpe"])).halving is None
    assert plan_sweep(asked(tmp_path, scheduler="none")).halving is None
    for steps in (300, 2000, 4000, 58_600):  # the last rung is far from the end
        rungs = plan_sweep(asked(tmp_path, "--train.steps", str(steps))).halving.rungs  # type: ignore[union-attr]
        assert len(rungs) == 2 and rungs[-1] < 0.36 * steps
    # 9 trials of 270 steps: all to 30, a third to 90, a ninth to 270
    assert plan.halving.expected_share() == pytest.approx((30 + 60 / 3 + 180 / 9) / 270)


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with refused("train.steps"):
        plan_sweep(asked(tmp_path, "--train.steps", "None"))
    with refused("--trials"):
        plan_sweep(asked(tmp_path, trials=0))
    with refused("pass --concurrent N"):
        plan_sweep(asked(tmp_path, synchronous=True))
    with refused("the grid's 27"):
        plan_sweep(asked(tmp_path, search="grid", trials=12))
    with refused("given or searched"):
        plan_sweep(asked(tmp_path, "--objective.align.weight", "0.3"))
    with refused("Did you mean"):
        plan_sweep(asked(tmp_path, "--objective.align.wait", "0.3"))
    with refused("a manifest"):
        plan_sweep(
            replace(asked(tmp_path, "--data.cache", "c"), settings=("--motion-tokenizer", "none"), metric=["mpjpe"])
        )
    with refused("--report-every"):
        plan_sweep(asked(tmp_path, report_every=1000))
    with refused("in a sweep --retries says so"):
        plan_sweep(asked(tmp_path, "--cluster.max-failures", "3"))
    with refused("`jala cache`"):
        plan_sweep(asked(tmp_path, "--cluster.autoscaling", "True"))
    for key in ("train.validate_every", "seed", "train.steps", "cluster.workers"):
        with refused("changes what is learned"):
            bind({key: {"choice": [1, 2]}}, base())
    assert not list(tmp_path.iterdir())


def test_trials_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    one = ("--cluster.workers", "1", "--cluster.cpus-per-worker", "0.4")
    assert plan_sweep(asked(tmp_path, *one))._fitting() == 2
    assert plan_sweep(asked(tmp_path, *one, "--cluster.gpus-per-worker", "1.0"))._fitting() == 1
    assert plan_sweep(asked(tmp_path, *one, concurrent=1))._fitting() == 1
    with refused(r"at most 2: a trial takes 0.4 of 2 CPUs"):
        plan_sweep(asked(tmp_path, *one, concurrent=4))._fitting()
    with refused("at most 0"):
        plan_sweep(asked(tmp_path, "--cluster.workers", "2", "--cluster.cpus-per-worker", "1.0"))._fitting()


def test_a_grid_is_every_combination_once() -> None:
    domains = bind(load(["lambda_alpha_layer"]), base())
    strategy = Strategy("grid", 0, 27)
    strategy.check(domains)
    found = [propose(strategy, n, domains, [], (METRICS["masked_loss"],), None) for n in range(27)]
    assert len({tuple(values.items()) for values in found}) == 27


def test_the_papers_preset_has_its_space() -> None:
    full = override(BASE, {"model.backbone.pretrained": None, "model.backbone.language.layers": 28})
    full = override(full, {"data.manifest": "none", "motion_tokenizer": "none"})
    domains = bind(load(["lambda_alpha_layer"]), full)
    assert domains["objective.align.layer"] == Range("integer", 1, 28)
    assert domains["objective.ema.alpha"] == Range("one_minus_log", 1e-4, 1e-2)
