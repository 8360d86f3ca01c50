"""From a run folder to an evaluation: truth, floor and trivial rows are what they claim; the job resumes, and says what failed."""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jala_ray
from jala_ray.commands.evaluate import labelled
from jala_ray.commands.shell import main as report
from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.evaluation import job as evaluation_job
from jala_ray.evaluation import record_files
from jala_ray.evaluation.describe import MOST_FREQUENT, rows_to_describe
from jala_ray.evaluation.job import EvaluationJob, begin, resolve
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MEAN_MOTION, MeanMotion, rows_to_evaluate, true_features
from jala_ray.evaluation.records import ClipRecord
from jala_ray.evaluation.texts import chrf
from jala_ray.generation.motion import joints_of
from jala_ray.hands.metrics import hand_metrics
from jala_ray.hands.resample import chunk_features
from jala_ray.reports.motion import publish as publishing
from jala_ray.reports.run.export import export as export_checkpoint
from jala_ray.storage import StorageOptions
from jala_ray.training import setup
from jala_ray.training.local import run_local
from jala_ray.types import CHUNK_FRAMES, ConfigError, Hand, UserError
from jobs.evaluate import main as evaluate
from tests.end_to_end.conftest import World
from tests.end_to_end.test_ray import settings
from tests.support import damage_row


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = settings(world, tmp_path_factory.mktemp("runs"), "lab/tiny", train__steps=2, train__checkpoint_every=2)
    run_local(config)
    return config


def records(out: Path) -> list[ClipRecord]:
    return [r for part in sorted((out / "parts").iterdir()) for r in record_files.from_bytes(part.read_bytes())]


def run(out: Path, *arguments: str) -> dict:
    evaluate([str(out), *arguments, "--local", "--passes", "3", "--ensemble", "2"])
    return json.loads((out / "evaluation.json").read_text())


def test_one_command_on_a_run_folder(world: World, trained: RunConfig, tmp_path: Path) -> None:
    out, folder = tmp_path / "evaluation", setup.run_folder(trained)
    figures = run(out, folder, f"other={folder}")
    rows = figures["scores"]["rows"]
    assert rows == ["lab/tiny", "other", FLOOR, HOLD_FIRST, MEAN_MOTION]
    found = records(out)
    manifest = Manifest(world.manifest)
    assert [clip.row for clip in found] == rows_to_evaluate(manifest, "val", None).tolist() and len(found) == 4
    mean = MeanMotion.of(manifest)
    for record in found:
        clip = manifest.clip(record.row)
        _, labels = chunk_features(clip)
        for hand in record.hands:
            features, valid = true_features(clip, hand.hand)
            np.testing.assert_array_equal(hand.valid, valid)
            assert (np.repeat(labels[hand.hand], CHUNK_FRAMES) <= valid).all()
            beta = clip.hands[hand.hand].beta
            np.testing.assert_allclose(hand.true[valid], joints_of(features[valid], hand.hand, beta), atol=1e-6)
            np.testing.assert_array_equal(hand.predicted["lab/tiny"], hand.predicted["other"])
            first = int(np.flatnonzero(valid)[0])
            held = np.broadcast_to(hand.true[first], hand.true.shape)
            np.testing.assert_allclose(hand.predicted[HOLD_FIRST], held, atol=1e-6)
            average = mean.over(hand.hand, len(valid))
            assert average is not None
            np.testing.assert_allclose(hand.predicted[MEAN_MOTION], joints_of(average, hand.hand, beta), atol=1e-6)
            assert hand_metrics(hand.predicted[FLOOR], hand.true, hand.valid)["mpjpe"] > 0
    # A model of two steps knows nothing; the tokenizer's own error is far below it.
    tables = {
        g["domain"]: g["rows"]
        for g in figures["scores"]["groups"]
        if g["hand"] is g["source"] is g["task_type"] is None
    }
    for domain in ("lab", "wild"):
        assert tables[domain][FLOOR]["mpjpe"]["mean"] < tables[domain]["lab/tiny"]["mpjpe"]["mean"]
    page = (out / "report.html").read_text()
    assert "data:video/mp4;base64," in page and "lab/tiny" in page
    assert "| floor |" in (out / "table.md").read_text()
    assert "at least 8" in figures["latents"]["lab/tiny"]["left_out"]
    # Two held-out clips of Lab are few, so that its map is of training clips; no other group has eight clips at all.
    sizes = figures["joint"]["other"]["groups"]
    assert {name: (size["split"], size["used"] > 0) for name, size in sizes.items()} == {
        "lab": ("train", True),
        "wild_labelled": ("val", False),
        "wild_unlabelled": ("train", False),
    }
    assert figures["joint"]["lab/tiny"] == figures["joint"]["other"]


def test_the_page_is_made_again_without_a_model(
    trained: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation"
    figures = run(out, setup.run_folder(trained))
    pages = {name: (out / name).read_bytes() for name in ("report.html", "table.md")}
    for name in pages:
        (out / name).unlink()
    capsys.readouterr()
    assert report(["report", str(out)]) == 0
    address, *warnings = capsys.readouterr().out.splitlines()
    assert address == str(out / "report.html") and warnings == figures["warnings"]
    assert {name: (out / name).read_bytes() for name in pages} == pages
    assert json.loads((out / "evaluation.json").read_text()) == figures
    next((out / "parts").iterdir()).unlink()
    assert report(["report", str(out)]) == 2
    assert "Run `jala evaluate` again." in capsys.readouterr().err
    (out / "evaluation.json").unlink()
    assert report(["report", str(out)]) == 2
    assert "Run `jala evaluate` or `jala openloop` again" in capsys.readouterr().err


def test_a_page_made_again_shows_no_clips_of_another_manifest(world: World, trained: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(Path(world.manifest).parent, tmp_path / "world")
    manifest, out = tmp_path / "world" / "manifest.parquet", tmp_path / "evaluation"
    figures = run(out, setup.run_folder(trained), "--manifest", str(manifest), "--no-latents", "--videos", "1")
    figures["facts"]["torch"] = "1.0 of another machine"
    (out / "evaluation.json").write_text(json.dumps(figures))
    write_manifest(list(Manifest(manifest))[::-1], manifest)
    for reason in ("The manifest has changed since its clips were evaluated.", "The manifest cannot be read: "):
        assert report(["report", str(out)]) == 0
        page = (out / "report.html").read_text()
        assert reason in page and "data:video" not in page and "lab/tiny" in page
        assert json.loads((out / "evaluation.json").read_text()) == figures
        manifest.unlink(missing_ok=True)


def test_it_goes_on_where_it_stopped_and_refuses_another(trained: RunConfig, tmp_path: Path) -> None:
    out, folder = tmp_path / "evaluation", setup.run_folder(trained)
    once = run(out, folder, "--no-latents")
    part = next((out / "parts").iterdir())
    written = part.stat().st_mtime_ns
    for name in ("evaluation.json", "report.html", "table.md"):
        (out / name).unlink()
    assert run(out, folder, "--no-latents") == once and part.stat().st_mtime_ns == written
    part.unlink()
    assert run(out, folder, "--no-latents") == once
    with pytest.raises(
        ConfigError, match=r"settings\.seed: got 1, expected 0, as the evaluation began.*another folder"
    ):
        run(out, folder, "--no-latents", "--seed", "1")
    with pytest.raises(ConfigError, match="label"):
        run(tmp_path / "twice", folder, folder)
    for taken in ("floor", "floor of a", "mean_motion", "most_frequent", "a, other clips"):
        with pytest.raises(ConfigError, match="labels that no other row of the table has"):
            run(tmp_path / "taken", f"{taken}={folder}")
    with pytest.raises(ConfigError, match="checkpoint folder"):
        run(tmp_path / "nothing", str(tmp_path))


def test_continuation_scores_the_second_half(
    trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freed(*given: Any, **how: Any) -> str:
        assert evaluation_job._open.cache_info().currsize == 0, (
            "no model of the parts is in memory when the page loads its own"
        )
        return publish(*given, **how)

    publish = publishing.publish
    monkeypatch.setattr(publishing, "publish", freed)
    out = tmp_path / "evaluation"
    run(out, setup.run_folder(trained), "--task", "continuation", "--no-latents")
    longer = [r for r in records(out) if r.failure is None and r.chunks >= 2]
    assert longer
    for record in longer:
        given = record.chunks // 2 * CHUNK_FRAMES
        for hand in record.hands:
            assert not hand.valid[:given].any() and hand.valid[given:].any()
            # What was given comes back as the tokenizer has it.
            np.testing.assert_allclose(hand.predicted["lab/tiny"][:given], hand.predicted[FLOOR][:given], atol=1e-5)


def test_motion_is_described(
    world: World, trained: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "evaluation", setup.run_folder(trained)
    words = ["--task", "description", "--text-tokens", "5"]
    figures = run(out, folder, f"other={folder}", *words)
    scores, manifest = figures["scores"], Manifest(world.manifest)
    assert scores["rows"] == ["lab/tiny", "other", MOST_FREQUENT, "lab/tiny, other clips", "other, other clips"]
    assert figures["facts"]["text_tokens"] == 5 and "ensemble" not in figures["facts"]
    assert [clip["row"] for clip in scores["clips"]] == rows_to_describe(manifest, "val", None).tolist()
    train = [clip.description for clip in manifest if clip.split == "train"]
    for clip in scores["clips"]:
        assert clip["description"] == manifest.clip(clip["row"]).description != ""
        texts = clip["texts"]
        assert texts["lab/tiny"] == texts["other"] and texts[MOST_FREQUENT] in train
        assert clip["scores"]["other"] == pytest.approx(chrf(texts["other"], clip["description"]))
    page = (out / "report.html").read_text()
    assert "Descriptions of hand motion" in page and html.escape(scores["clips"][0]["description"]) in page
    assert "| most_frequent |" in (out / "table.md").read_text()
    # A batch of another size, and a page made again, say the same.
    again = run(tmp_path / "again", folder, f"other={folder}", *words, "--batch", "1")
    assert again["scores"] == scores
    capsys.readouterr()
    assert report(["report", str(out)]) == 0 and (out / "report.html").read_text() == page
    assert capsys.readouterr().out.splitlines()[1:] == figures["warnings"]
    with pytest.raises(ConfigError, match=r"text_tokens: got 6, expected 5, as the evaluation began"):
        run(out, folder, f"other={folder}", "--task", "description", "--text-tokens", "6")
    with pytest.raises(ConfigError, match="of descriptions"):
        export_checkpoint(folder, str(tmp_path / "export"), evaluation=str(out))


def test_the_most_frequent_text_is_looked_up_once(
    world: World, trained: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, looked = resolve(setup.run_folder(trained), StorageOptions()), []
    asked = EvaluationJob(
        str(tmp_path / "out"), world.manifest, (("a", checkpoint),), task="description", text_tokens=1
    )
    monkeypatch.setattr(evaluation_job, "most_frequent_text", lambda manifest: looked.append(manifest) or "It moves.")
    work = begin(asked, "val", 1)
    for part in work.missing():
        work.job(part)
    assert {clip.texts[MOST_FREQUENT] for clip in work.finish().clips} == {"It moves."}
    begin(asked, "val", 1)
    assert len(looked) == 1, "by no part, and not where all are done"


def test_what_cannot_be_read_is_a_failure_of_its_clip(world: World, trained: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(Path(world.manifest).parent, tmp_path / "world")
    manifest = Manifest(tmp_path / "world" / "manifest.parquet")
    rows = rows_to_evaluate(manifest, "val", None)
    victim = manifest.clip(int(rows[1]))
    Path(str(victim.video_uri)).write_bytes(b"nothing")
    damaged = manifest.clip(int(rows[0]))
    damage_row(manifest, int(rows[0]))
    damage_row(manifest, np.flatnonzero(np.array(manifest.index["split"].to_pylist()) == "train")[0])
    out = tmp_path / "evaluation"
    figures = run(
        out, setup.run_folder(trained), "--manifest", str(tmp_path / "world" / "manifest.parquet"), "--videos", "1"
    )
    failed = [record for record in records(out) if record.failure is not None]
    assert [record.clip_id for record in failed] == [damaged.clip_id, victim.clip_id] and not failed[0].hands
    assert failed[0].domain == damaged.domain and "other bytes" in str(failed[0].failure)
    assert [left["clip_id"] for left in figures["scores"]["left_out"]] == [damaged.clip_id, victim.clip_id]
    assert victim.clip_id in (out / "report.html").read_text()


def test_records_survive_their_file(trained: RunConfig, world: World, tmp_path: Path) -> None:
    options = StorageOptions()
    checkpoint = resolve(setup.run_folder(trained), options)
    job = EvaluationJob(
        str(tmp_path / "one"), world.manifest, (("a", checkpoint),), GenerationConfig(passes=2, ensemble=1), batch=3
    )
    work = begin(job, "val", 1)
    assert [len(part.rows) for part in work.parts] == [2]  # one a domain
    for part in work.missing():
        job(part)
    assert not work.missing()
    found = work.finish()
    assert found.rows == ("a", FLOOR, HOLD_FIRST, MEAN_MOTION) and found.facts["steps"] == {"a": 2}
    payload = record_files.to_bytes(found.clips)
    again = record_files.from_bytes(payload)
    for one, other in zip(found.clips, again, strict=True):
        assert replace(one, hands=()) == replace(other, hands=()) and len(one.hands) == len(other.hands)
        for mine, theirs in zip(one.hands, other.hands, strict=True):
            assert mine.hand == theirs.hand and mine.predicted.keys() == theirs.predicted.keys()
            pairs = [(mine.valid, theirs.valid), (mine.true, theirs.true)]
            for a, b in pairs + [(mine.predicted[row], theirs.predicted[row]) for row in mine.predicted]:
                np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="records"):
        record_files.from_bytes(payload[:-5])


def test_a_sentence_and_a_picture(trained: RunConfig) -> None:
    checkpoint = resolve(setup.run_folder(trained), StorageOptions())
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    motion = jala_ray.generate(checkpoint, picture, "Push the cup.", 1.0, "left", GenerationConfig(ensemble=1))
    assert motion.hands == (Hand.LEFT,) and motion.joints(Hand.LEFT).shape == (15, 21, 3)
    assert torch.isfinite(torch.from_numpy(motion.features)).all()


def test_labels() -> None:
    assert labelled("a=/x/y") == ("a", "/x/y") and labelled("/x=1/y") == ("", "/x=1/y") and labelled("x") == ("", "x")
