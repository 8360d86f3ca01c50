"""Folders of every kind that bebda79 began are continued, and another setting is refused by its key.

`fixtures/job_folders/` holds the files in which that commit wrote settings down, whole but for addresses and digests ($...).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jala_ray.config import GenerationConfig
from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.cache import making
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.prepare.clips import PrepareConfig
from jala_ray.data.prepare.job import Preparation
from jala_ray.data.samples.assets import tokenizer_key
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.evaluation import job as evaluation
from jala_ray.models.frame_encoder import encoder_key
from jala_ray.storage import StorageOptions
from jala_ray.storage.claims import differences
from jala_ray.studies.alignment.stages import stage
from jala_ray.sweeps.plan import SweepRequest, plan_sweep
from jala_ray.training import setup
from jala_ray.types import Clip, UserError
from tests.data.test_signals import as_version_2
from tests.data.test_source import make_clip
from tests.support import make_assets
from tests.training.run import run_config
from tests.training.tokenizer_ranks import make_run as make_tokenizer_run

FIXTURES = Path(__file__).parent / "fixtures" / "job_folders"


def manifest_of(root: Path, clips: list[Clip]) -> Manifest:
    """As that commit stored them."""
    (root / "set").mkdir(exist_ok=True)
    as_version_2(root / "set" / "part-00000.parquet", clips)
    return Manifest(root / "set")


def manifest(root: Path) -> Manifest:
    """Two clips in training, one held out; their video lies beside the manifest, wherever that is."""
    video = "../videos/a.mp4"
    clips = [make_clip(name, video_uri=video) for name in "ab"]
    return manifest_of(root, [*clips, make_clip("c", split="val", video_uri=video)])


def has_begun(folder: Path) -> None:
    """Settings bind a run that has something to lose."""
    if folder.is_dir():
        (folder / "metrics.jsonl").write_text("{}\n")


def run(root: Path, changed: bool) -> None:
    config = run_config(root, optim__lr=0.5 if changed else 0.25, cluster__workers=3)
    has_begun(root / "run")
    setup.claim(config, setup.run_folder(config), setup.storage_options(config)).release()


def rows(root: Path, changed: bool) -> None:
    """Of a tokenizer's run, whose manifest may have changed."""
    has_begun(root / "run")
    clips = [make_clip(name) for name in ("ab" if changed else "abc")]
    place = manifest_of(root, [*clips, replace(make_clip("v"), split="val")]).path
    with setup.prepared_tokenizer(replace(make_tokenizer_run(root).config, manifests=(place,))):
        """Claims the folder."""


def sweep(root: Path, changed: bool) -> None:
    places = ["--storage.root", str(root), "--data.manifest", f"{root}/set", "--motion-tokenizer", f"{root}/tokenizer"]
    asked = SweepRequest(
        "tiny", (*places, "--optim.lr", "0.5" if changed else "0.25"), ["lambda_alpha_layer"], 3, "random"
    )
    plan_sweep(asked).take(resume=(root / "tiny" / "sweep.json").exists())


def evaluate(root: Path, changed: bool) -> None:
    settings = GenerationConfig(ensemble=2 if changed else 4)
    job = evaluation.EvaluationJob(str(root / "out"), manifest(root).path, (("a", f"{root}/x"),), settings)
    evaluation.begin(job, "val", None)


def cache(root: Path, changed: bool) -> None:
    config = run_config(root)
    contents = making.Contents("features", part_rows=5 if changed else 4)
    place, encoder = str(root / "cache"), config.model.encoder
    making.begin(place, manifest(root), make_assets(config), encoder, contents, StorageOptions())


def prepare(root: Path, changed: bool) -> None:
    (root / "raw").mkdir(exist_ok=True)
    (root / "raw" / "a.mp4").touch()  # begun, not done
    source = VideoFolder(str(root / "raw"), val_fraction=0.5)
    work = Preparation(source, str(root / "out"), PrepareConfig(crf=20 if changed else 18, cut=("validity", "shots")))
    work.begin(work.pieces())


def world(root: Path, changed: bool) -> None:
    config = WorldConfig(3, 1, 0, 0, 0, width=64, height=48, seconds=(1.0, 1.0), gop=12 if changed else 10)
    generate(root / "world", config)


def study(root: Path, changed: bool) -> None:
    stage(root / "words.json", {"text": {"size": 9 if changed else 8}, "seeds": (1, 2)}, lambda: {"tokens": 300})


@dataclass(frozen=True)
class Kind:
    begin: Callable[[Path, bool], object]
    file: str
    refusal: str
    """The key, both values, and the remedy."""


KINDS = {
    "run": Kind(run, "run/config.json", r"optim\.lr: got 0\.5, expected 0\.25, as the run began.*another --name"),
    "rows": Kind(rows, "run/plan.json", r"manifests: train\.rows: got 2, expected 3, .*another --name"),
    "sweep": Kind(sweep, "tiny/sweep.json", r"base\.optim\.lr: got 0\.5, expected 0\.25, as the sweep.*another --name"),
    "evaluation": Kind(evaluate, "out/claim.json", r"settings\.ensemble: got 2, expected 4, .*another folder"),
    "cache": Kind(cache, "cache/cache.json", r"part_rows: got 5, expected 4, as the cache began.*another folder"),
    "prepare": Kind(prepare, "out/prepare.json", r"crf: got 20, expected 18, as the prepared set began.*another place"),
    "world": Kind(world, "world/world.json", r"config\.gop: got 12, expected 10, as the world began.*another folder"),
    "study": Kind(study, "words.json", r"text\.size: got 9, expected 8, as the stage began.*another --out"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def begun(kind: str, root: Path) -> Path:
    """The file with settings of a folder that was begun before."""
    config = run_config(root)
    known = {
        "$ROOT": str(root),
        "$TOKENIZER": tokenizer_key(make_assets(config)),
        "$ENCODER": encoder_key(config.model.encoder),
    }
    text, file = (FIXTURES / f"{kind}.json").read_text(), root / KINDS[kind].file
    for name, value in known.items():
        text = text.replace(name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


MAY = ("sha256", "pad_multiple", "backbone.attention")
"""A rendered video's digest is the machine's; the others say how fast a run is, and a preset has better ones by now."""


def changes(before: Any, after: Any) -> list[str]:
    """Keys of what is not as it was."""
    return [key for key, (was, _) in differences(before, after).items() if was is not None and not key.endswith(MAY)]


def test_a_folder_that_was_begun_before_is_continued(kind: str, tmp_path: Path) -> None:
    file = begun(kind, tmp_path)
    before = json.loads(file.read_text())
    KINDS[kind].begin(tmp_path, False)
    assert changes(before, json.loads(file.read_text())) == []


def test_another_setting_is_refused_by_its_key(kind: str, tmp_path: Path) -> None:
    file = begun(kind, tmp_path)
    before = file.read_bytes()
    with pytest.raises(UserError, match=KINDS[kind].refusal):
        KINDS[kind].begin(tmp_path, True)
    assert file.read_bytes() == before


def test_a_new_folder_says_what_it_said_before(kind: str, tmp_path: Path) -> None:
    before = json.loads(begun(kind, tmp_path).read_text())
    new = tmp_path / KINDS[kind].file
    new.unlink()
    if new.parent != tmp_path:
        new.parent.rmdir()
    KINDS[kind].begin(tmp_path, False)
    assert changes(before, json.loads(new.read_text())) == []
