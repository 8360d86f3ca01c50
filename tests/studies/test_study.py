"""The study: rules and refusals on their own, the encoder at its smallest, and the whole chain."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from jala_ray.config import EncoderConfig
from jala_ray.config.checking import check
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.synthetic import plan_world
from jala_ray.data.synthetic.grammar import TARGETS
from jala_ray.evaluation.latent_space.probes import Labels
from jala_ray.evaluation.predict import FLOOR
from jala_ray.models.frame_encoder import FrameEncoder, encoder_key
from jala_ray.parsing import override
from jala_ray.studies.alignment import asked, runs
from jala_ray.studies.alignment import encoder as encoding
from jala_ray.studies.alignment.__main__ import main
from jala_ray.studies.alignment.asked import OneJob
from jala_ray.studies.alignment.gates import GateFailed
from jala_ray.studies.alignment.probing import FramePairs, probe
from jala_ray.studies.alignment.size import CPU, GPU, MIXTURE, SIZES, SMOKE, SMOKE_LITE, StudySize
from jala_ray.studies.alignment.stages import StudyFolder, done, stage, write_json
from jala_ray.studies.alignment.variants import (
    StudyJob,
    configs,
    described,
    jobs,
    last_checkpoint,
    named,
    variants,
)
from jala_ray.studies.alignment.world import _counted, clip_kinds
from jala_ray.types import ConfigError, UserError
from tests.studies.test_study_findings import finished_stages

pytestmark = pytest.mark.slow  # a study is no part of the product

# --- sizes and variants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_sizes_hold_together(size: Any, tmp_path: Path) -> None:
    base = StudyFolder(tmp_path, size).base()
    for variant in variants(base):
        for config in configs(StudyFolder(tmp_path, size), StudyJob(variant, 0)):
            check(config)
    alpha = base.objective.ema.over(base.train.steps)  # type: ignore[union-attr, arg-type]
    assert alpha == pytest.approx(1 - 1 / (0.017 * base.train.steps)) or size in (SMOKE, SMOKE_LITE)  # type: ignore[operator]
    assert base.data.workers == 0 or size is GPU


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_clips_of_every_part_for_tuning_and_in_the_end(size: StudySize) -> None:
    plans, kinds = plan_world(size.world), clip_kinds(size)
    tuning, final = (_counted(plans, kinds, kind) for kind in ("tuning", "final"))
    assert sum(tuning.values()) + sum(final.values()) == sum(p.split == "val" for p in plans)
    small = size.world == SMOKE.world
    least = (4, 2) if small else (200, 48)
    assert min(final["hidden"], final["seen"]) >= least[0] and min(tuning["hidden"], tuning["seen"]) >= least[1]
    assert final["lab"] >= (4 if small else 64) and tuning["lab"] >= (2 if small else 32)
    shown = {p.composition for p in plans if p.split == "train" and p.labelled}
    assert not {c.target for c in shown} & size.world.hidden and len(size.world.hidden) == 2
    for place in (
        "near",
        "far",
        "left",
        "right",
    ):  # what a teacher reads of a hidden target lies between what it has seen
        assert any(place in target for target in set(TARGETS) - size.world.hidden)
    if not small:
        assert {p.composition for p in plans if kinds[p.clip_id] == "final" and p.composition_set == "seen"} <= shown


def test_what_a_variant_changes(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path, CPU)
    found = {variant.name: described(study, variant) for variant in variants(study.base())}
    assert found["jala"] == {}
    unaligned = {"objective.lap", "objective.updates", "objective.align.weight"}
    assert set(found["no_align"]) == unaligned
    as_they_are = {"data.task_weights": [MIXTURE, ()]}
    # The ceiling aligns nothing: it is run before the freeze, with which aligned runs begin.
    assert set(found["all_labelled"]) == unaligned | {"labels of Wild", *as_they_are}
    assert found["all_labelled"]["labels of Wild"] == [0.1, 1.0]
    assert found["align_only"] == {"objective.mcp": [True, False]}
    assert found["jala_literal"] == {
        "objective.align.reduction": ["mean", "sum"],
        "objective.align.positions": ["masked", "all"],
    }
    own, control = found["grounded"], found["grounded_labelled_only"]
    assert control == own | {"objective.align.clips": ["all", "labelled"]} and own["objective.kind"] == [
        "jala",
        "grounded",
    ]
    assert found["jala_literal_labelled_only"] == found["jala_literal"] | {"objective.align.clips": ["all", "labelled"]}
    assert found["jala_lambda_0.1"] == {"objective.align.weight": [0.5, 0.1]}
    assert found["jala_wild_0.25"] == {"data.wild_fraction": [1.0, 0.25]}
    assert found["grounded_lambda_2"] == own | {"objective.align.weight": [0.5, 2.0]}
    assert found["lapa"]["trained before"] == [None, "actions, codes"]
    with pytest.raises(ConfigError, match=r"variants: got \['jalla'\], expected some of no_align, grounded"):
        named(variants(study.base()), ["jala", "jalla"])


def test_configurations_of_a_job(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path, CPU)
    known = {variant.name: variant for variant in variants(study.base())}
    (one,) = configs(study, StudyJob(known["jala"], 3))
    (ceiling,) = configs(study, StudyJob(known["all_labelled"], 3))
    assert (one.seed, one.name, one.init) == (3, "runs/jala/seed-3", None)
    assert (ceiling.data.manifest, ceiling.data.cache) == (str(study.twin), str(study.cache(twin=True)))
    assert (one.data.task_weights, ceiling.data.task_weights) == (MIXTURE, ())
    assert one.data.manifest == str(study.manifest) and one.model.encoder.pretrained == str(study.encoder)
    chain = configs(study, StudyJob(known["lapa"], 1))
    assert [config.objective.kind for config in chain] == ["lapa_actions", "lapa_codes", "jala"]
    assert [config.name for config in chain] == [f"runs/lapa/seed-1{end}" for end in ("-actions", "-codes", "")]
    assert [config.init for config in chain] == [None, last_checkpoint(chain[0]), last_checkpoint(chain[1])]
    steps = [config.train.steps or 0 for config in chain]
    assert steps[1] + steps[2] == one.train.steps == steps[0]
    assert chain[2].data.labels == "labelled_only"


def test_seeds_are_paired_first(tmp_path: Path) -> None:
    known = named(variants(StudyFolder(tmp_path, CPU).base()), ["jala", "no_align"])
    assert [job.name for job in jobs(known, 2)] == [
        *("no_align/seed-0", "jala/seed-0"),
        *("no_align/seed-1", "jala/seed-1"),
    ]
    # Rows that no claim is made of have fewer.
    assert [job.name for job in jobs(known, 7)][10:] == ["no_align/seed-5", "no_align/seed-6"]


# --- stages ------------------------------------------------------------------------------------------------------------


def test_a_stage_is_done_once_and_refuses_other_settings(tmp_path: Path) -> None:
    file, made = tmp_path / "one.json", []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": (1, 2)}

    assert done(file, {}) is None
    first = stage(file, {"a": {"b": (1, 2)}}, make)
    assert first["value"] == [1, 2] and stage(file, {"a": {"b": [1, 2]}}, make) == first and made == [1]
    with pytest.raises(ConfigError, match=r"one\.json: a\.b: got \[1, 3\], expected \[1, 2\], as the stage began"):
        stage(file, {"a": {"b": [1, 3]}}, make)


def test_a_stage_that_was_cut_off_goes_on_under_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "one.json"

    def fail() -> dict[str, Any]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        stage(file, {"a": 1}, fail)
    with pytest.raises(ConfigError, match="a: got 2"):
        stage(file, {"a": 2}, dict)
    assert "stage_seconds" in stage(file, {"a": 1}, dict)


# --- the encoder -------------------------------------------------------------------------------------------------------


def planted_pairs(side: int) -> FramePairs:
    """Grey frames with a bright column; the wrist moves as the column does."""
    rng = np.random.default_rng(0)
    clips = 24
    places = rng.integers(0, side - 8, (clips, 2))
    frames = np.full((clips, 2, 3, side, side), 90, np.uint8)
    for clip, pair in enumerate(places):
        for frame, place in enumerate(pair):
            frames[clip, frame, :, :, place : place + 8] = 230
    at = np.array([[2 * clip, 2 * clip, 2 * clip + 1] for clip in range(clips)])
    wrist = np.outer(places[:, 1] - places[:, 0], np.arange(15) / 100).astype(np.float32)
    ids = np.array([f"clip{clip}" for clip in range(clips)])
    same = np.full(clips, "lab")
    return FramePairs(
        frames.reshape(-1, 3, side, side), at, Labels(ids, same, same, np.ones(clips), np.zeros(clips)), wrist
    )


def test_the_probe_tells_motion_from_context() -> None:
    settings = SMOKE.encoder
    pairs = planted_pairs(settings.image_size)
    found = probe(FrameEncoder.build(EncoderConfig(image_size=settings.image_size, sizes=settings.sizes)), pairs)
    pair, first = (found[name]["r2"] for name in ("pair", "v0"))
    assert pair is not None and first is not None
    assert pair > 0.8 and first < 0.7 and pair > first + 0.2


def test_the_encoder_trains_resumes_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMOKE.encoder, steps=40, probe_every=20, log_every=10, lr=3e-3)
    rng = np.random.default_rng(1)
    pairs = planted_pairs(settings.image_size)
    frames = np.concatenate([pairs.frames, rng.integers(0, 255, (8, 3, 32, 32), np.uint8)])
    step, losses, count = encoding._step, list[float](), 0

    def heard(*given: Any) -> float:
        losses.append(step(*given))
        return losses[-1]

    monkeypatch.setattr(encoding, "_step", heard)
    straight = encoding.train(settings, frames, pairs, tmp_path / "straight" / "model", torch.device("cpu"))
    assert [row["step"] for row in straight] == [10, 20, 30, 40]
    # One step's loss says more of its frames, some of them noise, than of what was learned.
    assert np.mean(losses[-20:]) < 0.95 * np.mean(losses[:10])
    assert {"pair", "v0"} <= straight[1].keys() and "pair" not in straight[0]

    def cut_off(*given: Any) -> float:
        nonlocal count
        count += 1
        if count == 25:
            raise KeyboardInterrupt
        return step(*given)

    folder = tmp_path / "resumed" / "model"
    monkeypatch.setattr(encoding, "_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encoding.train(settings, frames, pairs, folder, torch.device("cpu"))
    assert encoding.train(settings, frames, pairs, folder, torch.device("cpu")) == straight

    config = EncoderConfig("dinov3", str(folder), None, settings.image_size, settings.sizes)
    loaded, untrained = FrameEncoder.build(config), FrameEncoder.build(replace(config, pretrained=None))
    shown = torch.from_numpy(frames[:2])
    assert loaded(shown).shape == (2, 4, 16) and encoder_key(config) == loaded.key
    assert (loaded(shown) - untrained(shown)).abs().max() > 1e-2
    torch.testing.assert_close(loaded(shown), encoder_of(tmp_path / "straight" / "model", config)(shown))


def encoder_of(folder: Path, config: EncoderConfig) -> FrameEncoder:
    return FrameEncoder.build(replace(config, pretrained=str(folder)))


def test_hidden_patches_and_crops() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = encoding.hidden_patches(5, 16, 0.6, generator)
    assert hidden.shape == (5, 16) and hidden.sum(1).tolist() == [10] * 5
    assert len({tuple(row.tolist()) for row in hidden}) == 5
    picture = torch.linspace(-1, 1, 32).expand(64, 3, 32, 32)
    crops = encoding.augmented(picture, 0.5, generator)
    assert crops.shape == picture.shape
    rises = (crops[..., -1] - crops[..., 0]).mean((1, 2)) / 2  # share of the picture, negative where it is mirrored
    assert rises.abs().min() > 0.35 and rises.abs().max() < 1.2 and 16 < int((rises < 0).sum()) < 48


# --- jobs --------------------------------------------------------------------------------------------------------------


def test_a_job_of_other_settings_is_refused(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path, CPU)
    finished_stages(study)
    job = StudyJob(variants(study.base())[0], 0)
    write_json(runs.scores_file(study, job), {"settings": runs.settings(study, job), "result": {"motion": {}}})
    runs.work(study, [job], 0)  # nothing to do
    other = StudyFolder(tmp_path, replace(CPU, run=override(CPU.run, {"optim.lr": 2 * CPU.run.optim.lr})))
    with pytest.raises(ConfigError, match=r"seed-0\.json: runs\.0\.optim\.lr"):
        runs.work(other, [job], 0)
    # A setting that has been added since was at its default; one that it did not have is another run.
    older = runs.settings(study, job)
    del older["runs"][0]["objective"]["align"]["target"]
    write_json(runs.scores_file(study, job), {"settings": older, "result": {"motion": {}}})
    runs.work(study, [job], 0)
    changed = StudyFolder(tmp_path, replace(CPU, run=override(CPU.run, {"objective.align.target": "change"})))
    with pytest.raises(ConfigError, match=r"objective\.align\.target: got 'change', expected 'latent'"):
        runs.work(changed, [job], 0)
    elsewhere = StudyFolder(tmp_path / "moved", CPU)
    finished_stages(elsewhere)
    assert runs.settings(elsewhere, job) == runs.settings(study, job)


@pytest.mark.parametrize(
    ("module", "words", "said"),
    [
        ("", ["--nope"], "option: got '--nope'"),
        (".runs", OneJob("OUT", "smoke", "nope", 0).words(), "variants: got"),
    ],
)
def test_bad_input_has_its_status(module: str, words: list[str], said: str, capsys: Any, monkeypatch: Any) -> None:
    """As that of `jala`: 2 where the input must change first."""
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jala_ray.studies.alignment{module}", run_name="__main__")
    assert ended.value.code == 2 and f"error: {said}" in capsys.readouterr().err


def test_jobs_go_on_past_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = StudyFolder(tmp_path, CPU)
    finished_stages(study)
    chosen = jobs(named(variants(study.base()), ["jala", "no_align"]), 2)
    alive: list[int] = []
    most = 0

    def start(_: StudyFolder, job: StudyJob, at_once: int) -> runs._Running:
        nonlocal most
        alive[:] = [pid for pid in alive if subprocess_of[pid].poll() is None]
        most = max(most, len(alive) + 1)
        log = tmp_path / f"{job.name.replace('/', '-')}.log"
        program = (
            f"import sys, time; time.sleep(0.2); print('it broke'); sys.exit({int(job.name == 'no_align/seed-0')})"
        )
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-c", program], stdout=output)
        alive.append(process.pid)
        subprocess_of[process.pid] = process
        return runs._Running(job, process, log, 0.0)

    subprocess_of: dict[int, subprocess.Popen[bytes]] = {}
    monkeypatch.setattr(runs, "_start", start)
    monkeypatch.setattr(runs, "POLL_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"jobs: got 'no_align/seed-0', expected none that fails.*(?s:.*)it broke"):
        runs.work(study, chosen, 2)
    assert len(subprocess_of) == 4 and most == 2


# --- the whole chain ---------------------------------------------------------------------------------------------------


def test_what_can_be_asked_is_what_there_is() -> None:
    assert get_args(asked.SizeName) == tuple(SIZES) and get_args(asked.Tier) == (1, 2, 3)


def test_the_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    words = ["--out", str(tmp_path), "--size", "smoke", "--jobs", "0", "--variants", "jala", "no_align"]
    words += ["--scores", str(kept)]
    with pytest.raises(GateFailed):
        main(words)
    main([*words, "--ignore-gates", "--until", "gates"])
    words[words.index("--jobs") + 1] = "2"
    main(words)
    found = json.loads((tmp_path / "results.json").read_text())
    kinds = clip_kinds(SMOKE)
    final = {clip for clip, kind in kinds.items() if kind == "final"}
    scored = json.loads((tmp_path / "scores/clips.json").read_text())["clips"]
    assert set(scored) == final and not final & {clip.clip_id for clip in Manifest(tmp_path / "world/study.parquet")}
    assert found["seeds"] == {"jala": [0, 1], "no_align": [0, 1], "all_labelled": [0]}
    assert not found["frozen"]["gates_passed"] and "answer nothing" in (tmp_path / "results.md").read_text()
    part = found["motion"]["4"]["hidden"]
    # A tokenizer this small reconstructs hardly better than anything.
    assert part["clips"] == 4 and all(part["means"][row]["mpjpe"]["mean"] > 0 for row in ("jala", "no_align", FLOOR))
    assert {"h", "z", "v0", "pair"} <= found["latents"]["jala"]["probes"]["all"].keys()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out.splitlines()
    assert said == [str(tmp_path / "results.md")]
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert {file.name for file in after if before.get(file) != after[file]} == {
        "results.json",
        "results.md",
        "results.html",
    }

    main([*words, "--clips", "tuning", "--seeds", "1", "--variants", "no_align"])
    said = capsys.readouterr().out
    assert "| no_align 0 |" in said and "hidden mpjpe" in said
    tuned = json.loads((tmp_path / "tuning/scores/clips.json").read_text())["clips"]
    assert set(tuned) == {clip for clip, kind in kinds.items() if kind == "tuning"}
    untouched = json.loads((tmp_path / "results.json").read_text())
    assert {key for key in found if untouched[key] != found[key]} <= {"environment"}

    # Another machine: the world and the caches are made again, what was learned and done is not.
    words[1] = str(tmp_path / "elsewhere")
    main(words)
    said = capsys.readouterr().out
    assert "bit for bit" not in said  # on one machine all is
    assert not (tmp_path / "elsewhere/runs").exists() and not (tmp_path / "elsewhere/scores").exists()
    moved = json.loads((tmp_path / "elsewhere/results.json").read_text())
    assert {key for key in found if moved[key] != found[key]} <= {"stages", "environment"}
