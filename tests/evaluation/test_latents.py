"""The latent space of a checkpoint: what is read from the model, and how it is summed up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.draw import Draw
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import SampleText
from jala_ray.data.samples.source import Look, ManifestSource, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.evaluation.latent_space.latents import (
    MIN_CLIPS,
    Latents,
    cell_means,
    collect,
    default_layers,
    summary,
)
from jala_ray.hands.displacement import motion_targets
from jala_ray.hands.resample import chunk_features
from jala_ray.objectives.jala import Jala
from jala_ray.training.checkpoint import Loaded
from jala_ray.types import Hand, HandState, UserError
from tests.evaluation.test_probes import labels_of
from tests.support import loaded_model

# --- arrays ------------------------------------------------------------------------------------------------------------------


def planted(clips: int, wild: int, **change: object) -> Latents:
    """Latents without a model: z is h, both tell the wrist's motion, and nothing tells the fingers'."""
    rng, labels = np.random.default_rng(1), labels_of(clips, wild=wild)
    n = len(labels)
    h = rng.normal(size=(n, 8)).astype(np.float32)
    wrist = (h @ rng.normal(size=(8, 15))).astype(np.float32)
    targets = {"wrist": wrist, "finger": rng.normal(size=(n, 90)).astype(np.float32)}
    noise = [rng.normal(size=(n, width)).astype(np.float32) for width in (8, 8, 16, 32, 8, 8)]
    blocks = {2: noise[0], 3: h}
    whole = Latents(labels, targets, blocks, h, noise[1], noise[4], noise[5], noise[2], noise[3], 3)
    return dataclasses.replace(whole, **change)


def test_summary() -> None:
    found = summary(planted(24, wild=4), seed=5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["counts"] == {
        "lab": {"clips": 20, "chunks": 80},
        "wild": {"clips": 4, "chunks": 16},
        "all": {"clips": 24, "chunks": 96},
    }
    places = [(probe["group"], probe["subject"], probe["target"]) for probe in found["probes"]]
    subjects = ("h", "z", "change", "h2", "v0", "pair", "z_untrained", "change_untrained")
    # Four wild clips are too few for probes of their own.
    assert places == [(g, s, t) for g in ("lab", "all") for s in subjects for t in ("wrist", "finger")]
    for probe in found["probes"]:
        told = probe["subject"] in ("h", "z") and probe["target"] == "wrist"
        assert probe["r2"] > 0.95 if told else probe["r2"] <= 0.1, probe
        assert probe["low"] <= probe["r2"] <= probe["high"]
    assert set(found["retrieval"]) == {"lab", "all"} and found["retrieval"]["all"]["recall1"] == 1.0
    assert set(found["tsne"]) == {"h", "z"}
    points = found["tsne"]["z"]
    assert {len(column) for column in points.values()} == {96}
    assert points["hand"][:2] == ["left", "right"] and points["domain"][-1] == "wild"
    assert (found["aligned_layer"], found["layers"], found["failures"]) == (3, [2, 3], [])


def test_summary_without_a_latent_space() -> None:
    found = summary(planted(8, wild=0, h={}, z=None, change=None, aligned_layer=None))
    assert {probe["subject"] for probe in found["probes"]} == {"v0", "pair", "z_untrained", "change_untrained"}
    assert found["retrieval"] == {} and found["tsne"] == {}


def test_summary_refuses_few_clips() -> None:
    with pytest.raises(UserError, match=f"got {MIN_CLIPS - 1}, expected at least {MIN_CLIPS}"):
        summary(planted(MIN_CLIPS - 1, wild=2))


# --- what is read of a chunk ---------------------------------------------------------------------------------------------------


def test_summary_refuses_a_model_that_has_diverged() -> None:
    lost = planted(24, wild=4)
    assert lost.z is not None
    with pytest.raises(UserError, match=r"z of 96 chunks: got '2 not finite'"):
        summary(dataclasses.replace(lost, z=np.where(np.arange(96)[:, None] < 2, np.inf, lost.z)))


def test_default_layers() -> None:
    assert default_layers(28, 19) == (7, 14, 19, 28)
    assert default_layers(4, 3) == (1, 2, 3, 4)
    assert default_layers(28, 28) == (7, 14, 27, 28)
    assert default_layers(1, 1) == (1,)


def test_motion_targets() -> None:
    features = np.zeros((1, 15, 99), np.float32)
    features[0, :, 6:9] = [[0.3 + 0.01 * frame, 0.1, 0.02 * frame] for frame in range(15)]
    features[0, :, 9:] = np.arange(15)[:, None] * np.arange(90)
    found = motion_targets(features)
    expected = [[0.01 * frame, 0.0, 0.02 * frame] for frame in (2, 5, 8, 11, 14)]
    np.testing.assert_allclose(found["wrist"], np.ravel(expected)[None], atol=1e-6)
    np.testing.assert_allclose(found["finger"], 14.0 * np.arange(90)[None])


def test_cell_means_keep_the_place() -> None:
    patches = torch.arange(2 * 8 * 8 * 3, dtype=torch.float32).reshape(1, 2, 64, 3)
    found = cell_means(patches, (8, 8)).reshape(2, 4, 4, 3)
    picture = patches.reshape(2, 8, 8, 3).numpy()
    np.testing.assert_allclose(found[1, 2, 3], picture[1, 4:6, 6:8].mean(axis=(0, 1)), rtol=1e-3)
    few = cell_means(patches[:, :, :4], (2, 2))
    np.testing.assert_allclose(few, patches[:, :, :4].numpy().reshape(1, -1))


# --- a model over a world ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A training clip that is left alone, and five held-out ones of two chunks, one of them two-handed."""
    config = WorldConfig(
        seed=2,
        lab_train=1,
        lab_val=3,
        wild_train=0,
        wild_val=2,
        seconds=(2.0, 2.0),
        width=64,
        height=48,
        fps=(15,),
        two_handed_share=0.5,
        dropout_share=0.0,
        one_untracked_share=0.0,
    )
    return str(generate(tmp_path_factory.mktemp("latents"), config))


def as_trained(loaded: Loaded, manifest: Manifest, row: int, hand: int, time: int) -> dict[str, np.ndarray]:
    """h and z of one chunk by the path of training: the whole clip, frames in the batch, LAP as the monitors call it."""
    source = ManifestSource(manifest.base, loaded.assets)
    (example,) = source.samples([PlanRow(0, row, row, manifest.address(row))])
    assert isinstance(example, Sample)
    masked = np.zeros(example.codes.shape, bool)
    masked[hand, time] = True
    hands = [h for h in Hand if example.states[h] != HandState.ABSENT]
    words = render("generation", 0, instruction=example.instructions[0], seconds=example.seconds, hands=hands)
    chance = Draw(0, 0, 0, (Hand(hand), time), masked, masked, masked)
    told = dataclasses.replace(example, task="generation")
    laid = HandRecipe(loaded.config, loaded.assets).lay_out(told, chance, SampleText(words))
    assert laid.boundaries == sorted({0, time, time + 1})
    (pictures,) = source.pictures([Look(example, laid.boundaries, laid.pairs)])
    assert isinstance(pictures, dict)
    laid.pictures = pictures
    batch = collate([laid], packing=False)
    objective = loaded.learner.objective
    assert isinstance(objective, Jala) and objective.lap is not None
    with torch.no_grad():
        features, out, _ = loaded.learner.run(batch)
        assert features is not None
        at = batch.pair >= 0
        z, still = (
            objective.lap(of)[batch.pair[at], batch.hand[at], batch.k[at]]
            for of in (features.pairs, features.pairs[:, :1].expand(-1, 2, -1, -1))
        )
        h = out.hidden[loaded.config.objective.align.layer][at]
    return {"z": z.mean(dim=0).numpy(), "change": (z - still).mean(dim=0).numpy(), "h": h.mean(dim=0).numpy()}


def test_collect(world: str) -> None:
    loaded, manifest = loaded_model(), Manifest(world)
    latents = collect(loaded, world, batch=3)
    rows = [row for row, clip in enumerate(manifest) if clip.split == "val"]
    features = {manifest.clip(row).clip_id: chunk_features(manifest.clip(row)) for row in rows}
    labels, n = latents.labels, sum(int(labelled.sum()) for _, labelled in features.values())
    assert len(features) == 5 and n > 5 and latents.failures == []
    assert set(labels.domain) == {"lab", "wild"} and set(labels.hand) == {0, 1}
    places = list(zip(labels.clip_id, labels.hand, labels.time, strict=True))
    assert len(set(places)) == len(places) == n

    assert latents.aligned_layer == 3 and sorted(latents.h) == [1, 2, 3, 4]
    assert {rows.shape for rows in latents.h.values()} == {(n, 32)}
    assert latents.z is not None and latents.z.shape == latents.z_untrained.shape == (n, 32)
    assert latents.v0.shape == (n, 2 * 2 * 16) and latents.pair.shape == (n, 2 * 2 * 2 * 16)  # 2 x 2 patches
    assert latents.targets["wrist"].shape == (n, 15) and latents.targets["finger"].shape == (n, 90)
    assert np.abs(latents.z - latents.z_untrained).max() > 1e-3

    for i, (clip_id, hand, time) in enumerate(places):
        chunk = features[clip_id][0][hand, time]
        np.testing.assert_allclose(latents.targets["wrist"][i, -3:], chunk[-1, 6:9] - chunk[0, 6:9])
        if time == 0:  # the pair begins with v_0
            np.testing.assert_array_equal(latents.pair[i, :64], latents.v0[i])
    checked = [places.index(place) for place in (places[0], max(places, key=lambda p: p[2]), max(places))]
    for i in checked:
        clip_id, hand, time = places[i]
        row = next(row for row in rows if manifest.clip(row).clip_id == clip_id)
        expected = as_trained(loaded, manifest, row, int(hand), int(time))
        np.testing.assert_allclose(latents.z[i], expected["z"], atol=1e-5)
        np.testing.assert_allclose(latents.change[i], expected["change"], atol=1e-5)
        np.testing.assert_allclose(latents.h[3][i], expected["h"], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "z", "pair"),
    [
        ("tiny_no_align", [2, 3], False, 128),
        ("tiny_next_token", [], False, 128),
        ("tiny_vjepa", [2, 3], True, 64),
    ],
)
def test_collect_what_an_objective_has(world: str, name: str, layers: list[int], z: bool, pair: int) -> None:
    latents = collect(loaded_model(name), world, rows=[1, 5], layers=[2])
    assert sorted(latents.h) == layers
    assert latents.aligned_layer == (3 if layers else None)
    assert (latents.z is not None) == z
    assert latents.pair.shape == (len(latents.labels), pair) and latents.v0.shape[1] == 64
    expected = {"h", "h2"} if layers else set()
    controls = {"v0", "pair", "z_untrained", "change_untrained"}
    assert set(latents.subjects()) == expected | ({"z", "change"} if z else set()) | controls


def test_rows_of_one_clip_count_once_and_broken_ones_are_told(world: str, tmp_path: Path) -> None:
    one, other = [clip for clip in Manifest(world) if clip.split == "val" and chunk_features(clip)[1].any()][:2]
    again = dataclasses.replace(one, task_type="continuation" if one.task_type == "generation" else "generation")
    broken = dataclasses.replace(other, video_uri=str(tmp_path / "gone.mp4"), packets=None)
    path = write_manifest([one, again, broken], tmp_path / "m.parquet").path
    loaded = loaded_model("tiny_next_token")
    latents = collect(loaded, path, rows=range(3))
    assert set(latents.labels.clip_id) == {one.clip_id}
    assert len(latents.labels) == chunk_features(one)[1].sum()
    assert [failure["clip_id"] for failure in latents.failures] == [other.clip_id]
    assert "gone.mp4" in latents.failures[0]["reason"]
    with pytest.raises(UserError, match=r"rows: got \[2\].*gone\.mp4"):
        collect(loaded, path, rows=[2])
