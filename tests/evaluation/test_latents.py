"""The latent space of a checkpoint: what is read from the model, and what probes, retrieval and t-SNE say of arrays."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.data.collate import Laid, collate
from jala_ray.data.draw import Draw
from jala_ray.data.instructions import render
from jala_ray.data.layout import SampleText, build_sequence
from jala_ray.data.manifest import Manifest, write_manifest
from jala_ray.data.plan import PlanRow
from jala_ray.data.source import Example, Look, ManifestSource, Visuals
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.evaluation.hidden import Masked, hidden_means, masked_tokens
from jala_ray.evaluation.latents import (
    MIN_CLIPS,
    Latents,
    cell_means,
    collect,
    default_layers,
    motion_targets,
    summary,
)
from jala_ray.evaluation.probes import Labels, clip_folds, explained, held_out, perplexity, plane, retrieval
from jala_ray.hands.resample import chunk_features
from jala_ray.objectives.jala import Jala
from jala_ray.presets import PRESETS
from jala_ray.training.checkpoint import Loaded, Position
from jala_ray.types import Hand, HandState, UserError
from tests.support import MIXED, MemorySource, make_assets, make_learner, small

# --- arrays ------------------------------------------------------------------------------------------------------------------


def labels_of(clips: int, chunks: int = 4, wild: int = 0) -> Labels:
    """`chunks` entries a clip, hands in turn; the last `wild` clips are wild."""
    clip = np.repeat(np.arange(clips), chunks)
    time = np.tile(np.arange(chunks), clips)
    domain = np.where(clip >= clips - wild, "wild", "lab")
    names = np.array([f"clip{number:03d}" for number in clip])
    return Labels(names, np.full(len(clip), "source"), domain, time % 2, time // 2)


def score(x: np.ndarray, y: np.ndarray, labels: Labels) -> dict[str, float | None]:
    return explained(y, held_out(x, {"y": y}, labels, clip_folds(labels, 4, 0), 0)["y"], labels.clip_id, 0)


def test_folds_never_share_a_clip() -> None:
    labels = labels_of(23, wild=9)
    for seed in range(5):
        fold = clip_folds(labels, 4, seed)
        for clip in np.unique(labels.clip_id):
            assert len(set(fold[labels.clip_id == clip])) == 1
        for domain in ("lab", "wild"):
            clips = [len(set(labels.clip_id[(fold == part) & (labels.domain == domain)])) for part in range(4)]
            assert max(clips) - min(clips) <= 1 and min(clips) >= 2
    assert not np.array_equal(clip_folds(labels, 4, 0), clip_folds(labels, 4, 1))


def test_probe_finds_a_linear_relation_and_no_other() -> None:
    rng, labels = np.random.default_rng(0), labels_of(60)
    x = rng.normal(size=(240, 12)) * np.logspace(-2, 2, 12)
    y = (x / x.std(axis=0)) @ rng.normal(size=(12, 15)) + 0.1 * rng.normal(size=(240, 15))
    found = score(x, y, labels)
    assert found["r2"] > 0.98 and found["low"] <= found["r2"] <= found["high"]
    shuffled = score(x, rng.permutation(y), labels)
    assert shuffled["r2"] <= 0.1 and shuffled["low"] <= shuffled["r2"] <= shuffled["high"]


def test_probe_of_wide_features_with_few_samples() -> None:
    rng, labels = np.random.default_rng(0), labels_of(40)
    cause = rng.normal(size=(160, 4))
    x = (cause @ rng.normal(size=(4, 500)) + 0.1 * rng.normal(size=(160, 500))).astype(np.float16)
    assert score(x, cause, labels)["r2"] > 0.98
    assert score(x, rng.permutation(cause), labels)["r2"] <= 0.1


def test_probe_is_told_the_hand() -> None:
    """A pair of frames shows both hands: which one is asked for must not be a guess."""
    rng, labels = np.random.default_rng(0), labels_of(60)
    x = rng.normal(size=(240, 8))
    of_hand = np.where(labels.hand[:, None] == 0, x[:, :4], x[:, 4:]) + labels.hand[:, None]
    assert score(x, of_hand, labels)["r2"] > 0.98


def test_nothing_leaks_from_held_out_clips() -> None:
    """Features and targets that are of the clip and of nothing else: known clips are known by heart, held-out ones not at all."""
    rng, labels = np.random.default_rng(0), labels_of(40, chunks=6)
    clip = np.unique(labels.clip_id, return_inverse=True)[1]
    x, y = rng.normal(size=(40, 64))[clip], rng.normal(size=(40, 3))[clip]
    assert score(x, y, labels)["r2"] <= 0.1
    each = dataclasses.replace(labels, clip_id=np.array([f"entry{i}" for i in range(len(clip))]))
    assert score(x, y, each)["r2"] > 0.5, "the same data shows a leak where entries of a clip are torn apart"


def test_predictions_do_not_depend_on_held_out_targets() -> None:
    rng, labels = np.random.default_rng(0), labels_of(16)
    x, y = rng.normal(size=(64, 8)), rng.normal(size=(64, 3))
    fold = clip_folds(labels, 4, 0)
    away = fold == 2
    other = np.where(away[:, None], 1e3 * rng.normal(size=y.shape), y)
    first, second = (held_out(x, {"y": t}, labels, fold, 0)["y"] for t in (y, other))
    np.testing.assert_array_equal(first[away], second[away])
    assert not np.allclose(first[~away], second[~away])


def test_probe_of_a_collapsed_space_finds_nothing() -> None:
    labels = labels_of(40)
    y = np.random.default_rng(0).normal(size=(160, 3))
    assert -0.1 <= score(np.ones((160, 8), np.float32), y, labels)["r2"] <= 0.1


def test_r2_weights_dimensions_by_their_variance() -> None:
    rng, labels = np.random.default_rng(0), labels_of(20)
    y = rng.normal(size=(80, 2)) * (10.0, 1.0)
    wrong = np.stack([y[:, 0], np.full(80, y[:, 1].mean())], axis=1)
    share = y[:, 1].var() / y.var(axis=0).sum()
    assert explained(y, wrong, labels.clip_id, 0)["r2"] == pytest.approx(1 - share)
    still = np.full((80, 2), 0.3, np.float32)
    assert explained(still, still, labels.clip_id, 0) == {"r2": None, "low": None, "high": None}


def test_retrieval_of_identical_vectors_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    rows, hand = rng.normal(size=(1500, 16)).astype(np.float32), np.arange(1500) % 5 == 0
    same = retrieval(rows, 3 * rows + 1, hand.astype(int))
    assert (same["recall1"], same["recall5"], same["median_rank"], same["count"]) == (1.0, 1.0, 1.0, 1500)
    noise = retrieval(rng.normal(size=rows.shape), rows, hand.astype(int))
    # 1200 of one hand and 300 of the other: 2 of 1500 queries are first by chance, 10 among the first five.
    assert noise["chance1"] == pytest.approx(2 / 1500) and noise["chance5"] == pytest.approx(10 / 1500)
    assert noise["recall1"] <= 0.01 and noise["recall5"] <= 0.02
    assert noise["chance_median_rank"] == pytest.approx(450.5)
    assert noise["median_rank"] == pytest.approx(450.5, rel=0.15)


def test_retrieval_looks_within_the_hand() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8))
    twice, hand = np.concatenate([rows, rows]), np.repeat([0, 1], 20)
    assert retrieval(twice, twice, hand)["recall1"] == 1.0, "the other hand's copies are no rivals"


def test_retrieval_of_a_collapsed_space_is_chance() -> None:
    rows = np.random.default_rng(0).normal(size=(21, 8))
    found = retrieval(rows, np.ones((21, 8)), np.zeros(21, int))
    assert found["recall1"] == 0.0 and found["median_rank"] == found["chance_median_rank"] == 11.0


def test_plane_keeps_clusters_apart() -> None:
    rng, group = np.random.default_rng(0), np.repeat([0, 1], 30)
    rows = rng.normal(size=(60, 64)) + 30.0 * group[:, None]
    placed = plane(rows, 0)
    assert placed.shape == (60, 2)
    centres = [placed[group == g].mean(axis=0) for g in (0, 1)]
    spread = max(np.linalg.norm(placed[group == g] - centres[g], axis=1).max() for g in (0, 1))
    assert np.linalg.norm(centres[0] - centres[1]) > spread


def test_plane_of_few_or_equal_rows() -> None:
    assert perplexity(8) < 8 / 3 and perplexity(1000) == 30.0
    rows = np.random.default_rng(0).normal(size=(8, 5))
    assert np.isfinite(plane(rows, 0)).all()
    np.testing.assert_array_equal(plane(rows, 0), plane(rows, 0))
    assert not plane(np.ones((9, 5)), 0).any()


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


@functools.cache
def loaded_model(name: str = "tiny") -> Loaded:
    config = small(PRESETS[name])
    assets = make_assets(config)
    return Loaded(config, make_learner(config, assets).eval(), assets, Position())


def test_h_does_not_see_its_own_codes() -> None:
    loaded = loaded_model()
    (example,) = MemorySource(MIXED, loaded.assets).examples([PlanRow(0, 0, 0)])  # two labelled hands, three chunks
    assert isinstance(example, Example)
    image, first = np.full((3, 28, 28), 90, np.uint8), torch.randn(2, 4, 16)
    place = (Hand.LEFT, 1)

    def h(*changed: tuple[int, int]) -> np.ndarray:
        codes, per_slot = example.codes.copy(), loaded.assets.motion.codes
        for chunk in changed:
            codes[chunk] += np.where(codes[chunk] % per_slot == 0, 1, -1)
        tokens = masked_tokens(loaded, dataclasses.replace(example, codes=codes), *place)
        return hidden_means(loaded, [Masked(tokens, image, first)], (3,))[3]

    own, later = place, [(1, 1), (0, 2), (1, 2)]  # in the sequence R1 comes after L1
    np.testing.assert_array_equal(h(), h(own))
    np.testing.assert_array_equal(h(), h(*later))
    for earlier in ((0, 0), (1, 0)):
        assert np.abs(h() - h(earlier)).max() > 1e-4


def test_untracked_chunks_stay_masked() -> None:
    loaded = loaded_model()
    (example,) = MemorySource(MIXED, loaded.assets).examples([PlanRow(0, 8, 8)])  # left labelled, right untracked
    assert isinstance(example, Example)
    columns, vocab = masked_tokens(loaded, example, 0, 1).columns, loaded.assets.spec.vocab
    block = {(time, hand): columns["block"] == 2 * time + hand for time in (0, 1) for hand in (0, 1)}
    ids = {place: columns["ids"][at & (columns["k"] >= 0)] for place, at in block.items()}
    np.testing.assert_array_equal(ids[0, 0], vocab.text + example.codes[0, 0])
    for place in ((0, 1), (1, 0), (1, 1)):
        assert (ids[place] == vocab.mask).all()
    np.testing.assert_array_equal(columns["scored"] == 1, block[1, 0] & (columns["k"] >= 0))
    assert (columns["state"][block[1, 0]] == (columns["k"][block[1, 0]] >= 0)).all()


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
    (example,) = source.examples([PlanRow(0, row, row, manifest.address(row))])
    assert isinstance(example, Example)
    spec, layout = loaded.assets.spec, loaded.config.objective.layout
    masked = np.zeros(example.codes.shape, bool)
    masked[hand, time] = True
    hands = [h for h in Hand if example.states[h] != HandState.ABSENT]
    words = render("generation", 0, instruction=example.instructions[0], seconds=example.seconds, hands=hands)
    tokens = build_sequence(
        *("generation", SampleText(words), example.states, example.labelled, example.codes),
        Draw(0, 0, 0, (Hand(hand), time), masked, masked, masked),
        tokenizer=loaded.assets.text,
        vocab=spec.vocab,
        layout=layout,
        image_tokens=spec.image_tokens,
    )
    boundaries = sorted({0, time, time + 1})
    (pictures,) = source.visuals([Look(example, boundaries, tokens.pairs)])
    assert isinstance(pictures, Visuals)
    laid = Laid(0, 1.0, tokens, pictures.image, boundaries, pictures.frames)
    batch = collate([laid], packing=False, max_tokens=4096)
    objective = loaded.learner.objective
    assert isinstance(objective, Jala) and objective.lap is not None
    with torch.no_grad():
        features, out, _ = loaded.learner.run(batch)
        assert features is not None
        at = batch["pair"] >= 0
        z, still = (
            objective.lap(of)[batch["pair"][at], batch["hand"][at], batch["k"][at]]
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
