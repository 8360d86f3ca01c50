"""A run of `grounded` from its first step to a loaded checkpoint: its teacher is fitted once, kept beside the cache, and stays with the
run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jala_ray import storage
from jala_ray.commands import shell
from jala_ray.config import RunConfig
from jala_ray.data.cache.making import Contents, begin
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.assets import Assets
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.models.inverse_dynamics import InverseDynamics, PairSight, Teacher
from jala_ray.objectives.grounded import Grounded
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.build import build_assets
from jala_ray.training.local import run_local
from jala_ray.training.parts import do_parts
from jala_ray.training.teacher import chunks
from jala_ray.training.teacher.chunks import ChunkReader
from jala_ray.training.teacher.keep import _keep, every, labelled_plan, place, rows_source
from jala_ray.training.teacher.labelled import LabelledChunks
from tests.support import made_teacher, make_assets, small


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Over a small world and its cache."""
    folder = tmp_path_factory.mktemp("grounded")
    world = WorldConfig(
        lab_train=24, lab_val=4, wild_train=24, wild_val=4, labelled_share=0.5, width=64, height=48, fps=(15,)
    )
    manifest = str(generate(folder / "world", world))
    made = small(PRESETS["tiny_grounded"], train__steps=4, train__batch=4, train__micro_batch=4)
    made = replace(made, storage=replace(made.storage, root=str(folder / "runs")))
    tokenizer = folder / "tokenizer"
    assets = make_assets(made)
    assert assets.motion is not None
    assets.motion.save(tokenizer)
    made = replace(made, motion_tokenizer=str(tokenizer), data=replace(made.data, manifest=manifest))
    cache = str(folder / "cache")
    with storage.scratch("assets") as scratch:
        assets, manifest_file = build_assets(made, scratch), Manifest(manifest)
        held = Contents("all"), StorageOptions()
        making = begin(cache, manifest_file, assets, made.model.encoder, *held, gpu=True)
    do_parts(making.missing(), making.job, StorageOptions(), local=True, quiet=True)
    making.finish(0.0)
    return replace(made, data=replace(made.data, cache=cache))


@pytest.fixture(scope="module")
def assets(base: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Assets, str]]:
    """Of a run over the cache, and their address."""
    folder = tmp_path_factory.mktemp("assets")
    made = build_assets(base, str(folder / "scratch"))
    made.save(folder / "assets")
    yield made, str(folder / "assets")


def reader(config: RunConfig, assets: tuple[Assets, str]) -> ChunkReader:
    encoder = FrameEncoder.build(config.model.encoder).eval()
    return ChunkReader(
        rows_source(config, assets[1]), assets[0].tokenizer, encoder, PairSight(encoder.grid, 2, encoder.pairs)
    )


def run(base: RunConfig, name: str, **change: object) -> RunConfig:
    config = override(replace(base, name=name), {"train.checkpoint_every": 2, "train.validate_every": 4, **change})
    run_local(config)
    return config


def loaded(config: RunConfig) -> tuple[Grounded, InverseDynamics]:
    objective = checkpoint.load(history.address(setup.run_folder(config), 4)).learner.objective
    assert isinstance(objective, Grounded) and objective.teacher is not None
    return objective, objective.teacher


def test_one_fit_serves_all_runs_over_a_cache(base: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(base, "first")
    said = capsys.readouterr().out
    assert "teacher: R2 on held-out clips of lab" in said
    (kept,) = Path(base.data.cache, "teachers").iterdir()
    written = (kept / "teacher.safetensors").stat().st_mtime_ns
    second = run(base, "second", **{"objective.align.clips": "labelled", "seed": 1})
    third = run(base, "third", **{"objective.teacher.form": "learned"})
    assert (kept / "teacher.safetensors").stat().st_mtime_ns == written and len(list(kept.parent.iterdir())) == 1
    teachers = [loaded(config)[1] for config in (first, second, third)]
    assert all(torch.equal(teacher.weights, teachers[0].weights) for teacher in teachers)
    assert loaded(third)[0].reader is not None


def test_videos_and_their_cache_give_one_teacher(base: RunConfig) -> None:
    """But for what the cache rounds: features are stored in halves."""
    over_videos = run(replace(base, data=replace(base.data, cache="")), "videos")
    over_cache = run(base, "cached")
    (_, one), (_, other) = loaded(over_videos), loaded(over_cache)
    torch.testing.assert_close(one.motion.directions, other.motion.directions)
    assert torch.equal(one.landmark_hand, other.landmark_hand)
    torch.testing.assert_close(one.landmarks, other.landmarks, atol=1e-3, rtol=1e-2)


def test_other_settings_have_a_teacher_of_their_own(base: RunConfig) -> None:
    before = set(Path(base.data.cache, "teachers").iterdir())
    run(base, "fewer", **{"objective.teacher.directions": 8})
    (new,) = set(Path(base.data.cache, "teachers").iterdir()) - before
    assert new.is_dir()


def test_rows_are_read_as_they_come(base: RunConfig, assets, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few groups ahead and no more, whatever there is."""
    monkeypatch.setattr(chunks, "ROWS", 2)
    taken, rows = 0, list(every(labelled_plan(base, assets[1])))

    def told() -> Iterator[PlanRow]:
        nonlocal taken
        for row in rows:
            taken += 1
            yield row

    read = reader(base, assets)
    parts = read(told())
    first = next(parts)
    assert len(rows) > 12 and taken <= 8
    count = len(first) + sum(map(len, parts))
    monkeypatch.setattr(chunks, "ROWS", 16)
    assert count == sum(map(len, read(iter(rows)))) == sum(map(len, read(iter([*rows, *rows])))), "a clip counts once"
    assert read.left_out == 0


def test_features_are_read_without_videos(base: RunConfig, assets, tmp_path: Path) -> None:
    """A cache of features holds no first pictures: they are not asked for, so that no video is opened."""
    cache = str(tmp_path / "cache")
    held = Contents("features"), StorageOptions()
    making = begin(cache, Manifest(base.data.manifest), assets[0], base.model.encoder, *held, gpu=True)
    do_parts(making.missing(), making.job, StorageOptions(), local=True, quiet=True)
    making.finish(0.0)
    config = replace(base, data=replace(base.data, cache=cache))
    rows, videos = list(every(labelled_plan(config, assets[1]))), Path(base.data.manifest).parent / "videos"
    hidden = videos.rename(videos.with_name("elsewhere"))
    try:
        read = reader(config, assets)
        read_all = LabelledChunks.joined(read(rows))
    finally:
        hidden.rename(videos)
    assert read_all is not None and read.left_out == 0
    (of_all,) = [LabelledChunks.joined(reader(base, assets)(every(labelled_plan(base, assets[1]))))]
    assert of_all is not None and torch.equal(read_all.cells, of_all.cells) and read_all.origin == of_all.origin


def test_a_run_s_seed_is_no_matter_of_its_teacher(base: RunConfig, assets) -> None:
    plans = [labelled_plan(replace(base, seed=seed), assets[1]) for seed in (0, 5)]
    assert plans[0].sample(8, 1) == plans[1].sample(8, 1)
    assert place(base, assets[0], plans[0]) == place(replace(base, seed=5), assets[0], plans[1])


def test_whoever_fits_second_takes_what_is_kept(base: RunConfig, assets, tmp_path: Path) -> None:
    theirs = made_teacher(base)
    mine = replace(theirs, held_out=theirs.held_out[:3])
    address = str(tmp_path / "teachers" / "name")
    assert _keep(theirs, address, StorageOptions()) is theirs
    again = _keep(mine, address, StorageOptions())
    assert again.report == theirs.report and list(again.held_out) == list(theirs.held_out) != list(mine.held_out)


def test_the_command_writes_the_page_of_what_runs_will_take(
    base: RunConfig, assets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(json.dumps(to_dict(base)))
    assert shell.main(["teacher", str(config), str(out)]) == 0
    kept = place(base, assets[0], labelled_plan(base, assets[1]))
    assert kept is not None and (found := Teacher.load(Path(kept))) is not None
    assert f"page: {out}/report.html" in capsys.readouterr().out
    assert json.loads((out / "teacher.json").read_text())["report"] == found.report
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 * min(12, len({row["clip"] for row in found.held_out}))
    assert shell.main(["teacher", str(config), str(out), "--objective.teacher.landmarks", "0"]) == 2
    assert "objective.teacher.landmarks: got 0" in capsys.readouterr().err


def test_the_command_says_what_is_missing(base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = WorldConfig(lab_train=4, lab_val=1, wild_train=1, wild_val=1, labelled_share=0.0, width=64, height=48)
    few = str(generate(tmp_path / "few", world))
    assets = build_assets(base, str(tmp_path / "scratch"))
    held = Contents("codes"), StorageOptions()
    making = begin(str(tmp_path / "codes"), Manifest(few), assets, base.model.encoder, *held, gpu=True)
    do_parts(making.missing(), making.job, StorageOptions(), local=True, quiet=True)
    making.finish(0.0)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(to_dict(replace(base, data=replace(base.data, manifest=few, cache="")))))
    words = ["teacher", str(config), str(tmp_path / "out")]
    for more, said in (
        ([], "labelled hand-chunks: got "),
        (["--data.cache", str(tmp_path / "codes")], "expected a cache with features"),
    ):
        assert shell.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
