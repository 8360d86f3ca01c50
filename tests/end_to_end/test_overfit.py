"""Can the whole thing learn? Eight clips, by heart: > 95 % of tokens, and generated motion within 1 cm of the tokenizer's floor."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.batch import rows_at
from jala_ray.config import GenerationConfig
from jala_ray.data.manifest.table import Manifest
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.draw import Draw
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import SampleText
from jala_ray.data.samples.source import Look, ManifestSource, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.evaluation.predict import FLOOR, HOLD_FIRST, MeanMotion, Predictor, rows_to_evaluate
from jala_ray.evaluation.scores import BOTH, score_clips
from jala_ray.generation import Generator
from jala_ray.hands.features import features_to_pose
from jala_ray.hands.mano import load_pair
from jala_ray.hands.metrics import METRICS
from jala_ray.hands.resample import chunk_features
from jala_ray.parsing import override
from jala_ray.presets import TINY
from jala_ray.training import checkpoint, history, setup
from jala_ray.training.local import run_local
from jala_ray.types import Hand, HandState
from tests.end_to_end.conftest import train_quickly

pytestmark = pytest.mark.slow


def predict(loaded: checkpoint.Loaded, source: ManifestSource, row: PlanRow, hand: int, time: int) -> np.ndarray:
    """Codes (K,) of one chunk, fully masked, with the earlier ones intact: one forward pass, most likely code each."""
    (example,) = source.samples([row])
    assert isinstance(example, Sample)
    masked = np.zeros(example.codes.shape, bool)
    masked[hand, time] = True
    chance = Draw(0, 0, 0, (Hand(hand), time), masked, masked, np.zeros_like(masked))
    hands = [h for h in Hand if example.states[h] != HandState.ABSENT]
    words = render("generation", 0, instruction=example.instructions[0], seconds=example.seconds, hands=hands)
    told = dataclasses.replace(example, task="generation")
    laid = HandRecipe(loaded.config, loaded.assets).lay_out(told, chance, SampleText(words))
    (pictures,) = source.pictures([Look(example, laid.boundaries)])
    assert isinstance(pictures, dict)
    laid.pictures = pictures
    batch = collate([laid], packing=False)
    learner = loaded.learner
    with torch.no_grad():
        _, out, _ = learner.run(batch)
        at = batch.scored_at
        within = learner.vla.motion_logits(out.final_at(at), rows_at(batch.k, at)).argmax(-1).numpy()
    return within + loaded.assets.tokenizer.token_slots.numpy() * loaded.assets.spec.vocab.codes


def joints(features: torch.Tensor, hand: int, beta: np.ndarray) -> torch.Tensor:
    theta, rot, wrist = features_to_pose(features, Hand(hand))
    return load_pair()[hand].joints(theta, rot, wrist, torch.from_numpy(beta).expand(*wrist.shape[:-1], 10))


@pytest.mark.timeout(3600)
def test_eight_clips_by_heart(tmp_path: Path) -> None:
    world = WorldConfig(
        seed=3,
        lab_train=8,
        lab_val=0,
        wild_train=0,
        wild_val=0,
        seconds=(1.0, 2.0),
        width=128,
        height=96,
        two_handed_share=0.4,
        task_shares=(1.0, 0.0, 0.0),
        dropout_share=0.0,
        one_untracked_share=0.0,
    )
    manifest = str(generate(tmp_path / "world", world))
    tokenizer = train_quickly((manifest,), tmp_path / "tokenizer", steps=300)
    config = override(
        replace(TINY, name="overfit"),
        {
            "storage.root": str(tmp_path),
            "data.manifest": manifest,
            "motion_tokenizer": tokenizer,
            "data.workers": 1,
            "train.steps": 500,
            "train.batch": 8,
            "train.checkpoint_every": 500,
            "train.log_every": 50,
            "train.monitor_every": 500,
            "optim.lr": 2e-3,
            "log.tensorboard": False,
        },
    )
    run_local(config)

    loaded = checkpoint.load(history.newest(setup.run_folder(config)))
    clips = Manifest(manifest)
    source = ManifestSource(clips.base, loaded.assets)
    right, extra, two_handed = [], [], 0
    for row, clip in enumerate(clips):
        features, labelled = chunk_features(clip)
        two_handed += bool(labelled.any(axis=1).all())
        for hand, time in zip(*np.nonzero(labelled), strict=True):
            codes = predict(loaded, source, PlanRow(0, row, row, clips.address(row)), int(hand), int(time))
            truth = loaded.assets.motion.encode(torch.from_numpy(features[hand, time][None]))
            right.append((codes == truth[0].numpy()).mean())
            decoded = loaded.assets.motion.decode(torch.from_numpy(codes)[None])
            floor = loaded.assets.motion.decode(truth)
            beta = np.asarray(clip.hands[hand].beta, np.float32)
            true = joints(torch.from_numpy(features[hand, time][None]), int(hand), beta)
            error, least = (float((joints(f, int(hand), beta) - true).norm(dim=-1).mean()) for f in (decoded, floor))
            extra.append(100 * (error - least))
    print(
        f"{len(right)} chunks, {two_handed} two-handed clips: {np.mean(right):.1%} right, {np.mean(extra):.2f} cm over the tokenizer"
    )
    assert two_handed >= 1
    assert np.mean(right) > 0.95
    assert np.mean(extra) < 1.0

    # The same from the first frame and the instruction alone, chunk after chunk, as a user generates it.
    for ensemble in (1, 4):
        generator = Generator(loaded, GenerationConfig(ensemble=ensemble))
        predictor = Predictor(clips, {"jala": generator}, MeanMotion.of(clips))
        records = list(predictor.records(rows_to_evaluate(clips, "train", None).tolist()))
        scores = score_clips(records, ("jala", FLOOR, HOLD_FIRST))
        generated, floor, held = scores.values[:, :, BOTH, list(METRICS).index("mpjpe")]
        print(
            f"E = {ensemble}, {len(records)} clips, MPJPE: generated {generated.mean():.2f} cm, worst {generated.max():.2f}; "
            f"floor {floor.mean():.2f}; first pose held {held.mean():.2f}"
        )
        assert len(records) == 8
        assert np.mean(generated - floor) < 1.0
        assert generated.mean() < held.mean()
