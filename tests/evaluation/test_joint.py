"""h and z on one map: which clips it is made of, what is read of them, and the figures beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jala_ray.data.manifest.table import Manifest, write_manifest
from jala_ray.data.samples.collate import collate
from jala_ray.data.samples.hand_recipe import HandRecipe
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import SampleText
from jala_ray.data.samples.source import Look, ManifestSource, Sample
from jala_ray.data.sampling.plan import PlanRow
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.data.synthetic.plan import plan_world
from jala_ray.data.synthetic.world import make_clip
from jala_ray.evaluation.latent_space.groups import CHUNKS, CLIPS, GROUPS, MIN_CLIPS, balanced, chunk_lot, group_rows
from jala_ray.evaluation.latent_space.joint import agreement, cosines, joint_summary, separability, varying
from jala_ray.evaluation.latent_space.pairs import Pairs, collect_pairs
from jala_ray.evaluation.latent_space.probes import Labels
from jala_ray.objectives.jala import Jala
from jala_ray.training.checkpoint import Loaded
from jala_ray.types import Clip, Hand, HandState, UserError
from tests.support import A, L, U, loaded_model

# --- which clips and chunks ---------------------------------------------------------------------------------------------------


def clips_of(**counts: int) -> list[Clip]:
    """Clips of a world whose videos nobody has drawn."""
    config = WorldConfig(width=64, height=48, seconds=(1.0, 2.0), labelled_share=0.5, **counts)
    return [make_clip(config, plan, f"{plan.clip_id}.mp4") for plan in plan_world(config)]


def test_each_group_has_rows_of_its_own_and_the_training_split_helps_out(tmp_path: Path) -> None:
    clips = clips_of(lab_train=9, lab_val=8, wild_train=20, wild_val=3)
    again = dataclasses.replace(clips[-1], task_type="generation")
    manifest = Manifest(write_manifest([*clips, again], tmp_path / "m.parquet").path)
    found = group_rows(manifest, "val")
    taken = {name: [manifest.clip(int(row)) for row in group.rows] for name, group in found.items()}
    assert {name: group.split for name, group in found.items()} == {
        "lab": "val",
        "wild_labelled": "train",
        "wild_unlabelled": "train",
    }
    assert [len(taken[name]) for name in GROUPS] == [8, 10, 10]
    for name, members in taken.items():
        assert {clip.domain for clip in members} == {name.partition("_")[0]}
        assert {clip.split for clip in members} == {found[name].split}
        assert len({clip.clip_id for clip in members}) == len(members), "a clip counts once"
        labelled = {any(hand.state == HandState.LABELLED for hand in clip.hands) for clip in members}
        assert labelled == {name != "wild_unlabelled"}
    assert group_rows(manifest, "train")["lab"].split == "train"


def test_rows_with_an_instruction_come_first(tmp_path: Path) -> None:
    clips = clips_of(lab_train=10, lab_val=9, wild_train=0, wild_val=0)
    told = [dataclasses.replace(clip, task_type="description", description="It moves.") for clip in clips]
    asked = [dataclasses.replace(clip, task_type="generation") for clip in clips]
    both = Manifest(write_manifest([*told, *asked], tmp_path / "m.parquet").path)
    (rows, split) = vars(group_rows(both, "val")["lab"]).values()
    assert split == "val" and {both.clip(int(row)).task_type for row in rows} == {"generation"} and len(rows) == 9
    many = [dataclasses.replace(told[-1], clip_id=f"clip{i:03d}") for i in range(CLIPS + 20)]
    mixed = Manifest(write_manifest([*many, *asked[10:]], tmp_path / "n.parquet").path)
    drawn = {mixed.clip(int(row)).clip_id for row in group_rows(mixed, "val")["lab"].rows}
    assert len(drawn) == CLIPS and drawn >= {clip.clip_id for clip in asked[10:]}


def test_large_groups_are_a_lot_that_a_seed_decides(tmp_path: Path) -> None:
    one = clips_of(lab_train=1, lab_val=0, wild_train=0, wild_val=0)[0]
    many = [dataclasses.replace(one, clip_id=f"clip{i:03d}") for i in range(CLIPS + 20)]
    manifest = Manifest(write_manifest(many, tmp_path / "m.parquet").path)
    first, again, other = (group_rows(manifest, "train", seed)["lab"].rows.tolist() for seed in (0, 0, 1))
    assert first == again and len(first) == CLIPS and first != other and first == sorted(first)


def example_of(states: tuple[HandState, HandState], labelled: list[list[int]], row: int = 0) -> Sample:
    flags = np.array(labelled, bool)
    codes = np.zeros((*flags.shape, 4), np.int64)
    return Sample("clip", "generation", states, flags, codes, ("push",), "", float(flags.shape[1]), row)


def test_chunks_of_a_clip() -> None:
    assert chunk_lot(example_of((L, U), [[0, 1, 1], [0, 0, 0]])) == [(0, 1), (0, 2)], (
        "labelled ones, where there are any"
    )
    assert chunk_lot(example_of((A, U), [[0, 0], [0, 0]])) == [(1, 0), (1, 1)]
    assert chunk_lot(example_of((U, U), [[0, 0], [0, 0]])) == [(0, 0), (1, 0), (0, 1), (1, 1)], "as in the sequence"
    long = example_of((U, U), [[0] * 10, [0] * 10])
    lots = [chunk_lot(dataclasses.replace(long, row=row)) for row in range(8)]
    assert (
        {len(lot) for lot in lots} == {CHUNKS}
        and len({tuple(lot) for lot in lots}) > 1
        and lots[3] == chunk_lot(dataclasses.replace(long, row=3))
    )


def test_groups_are_balanced_over_their_clips() -> None:
    group = np.repeat(["lab", "wild_labelled"], [40, 12])
    clips = np.concatenate([np.repeat([f"lab{i}" for i in range(4)], [25, 5, 5, 5]), np.repeat(["w0", "w1", "w2"], 4)])
    kept = balanced(group, clips)
    assert kept.tolist() == sorted(set(kept.tolist())) and np.unique(group[kept], return_counts=True)[1].tolist() == [
        12,
        12,
    ]
    assert np.unique(clips[kept][group[kept] == "lab"], return_counts=True)[1].tolist() == [3, 3, 3, 3]
    assert not len(balanced(group[:0], clips[:0]))


# --- figures ------------------------------------------------------------------------------------------------------------------


def planted(
    clips: tuple[int, int, int] = (16, 16, 16), *, tie: float = 1.0, apart: float = 0.0, aside: float = 0.0
) -> Pairs:
    """h by lot, z a share `tie` of it; Lab lies `apart` from the others in h, and z `aside` of h."""
    rng = np.random.default_rng(1)
    group = np.repeat(GROUPS, [4 * n for n in clips])
    names = np.array([f"{name}{i // 4}" for name, n in zip(GROUPS, clips, strict=True) for i in range(4 * n)])
    hand = np.tile([0, 1, 0, 1], sum(clips))
    h = rng.normal(size=(len(group), 12)) + 5.0 * hand[:, None]
    z = tie * h + (1 - tie) * rng.normal(size=h.shape) + aside
    h[group == "lab"] += apart
    domain = np.where(group == "lab", "lab", "wild")
    labels = Labels(names, np.full(len(group), "source"), domain, hand, np.tile([0, 0, 1, 1], sum(clips)))
    return Pairs(labels, group, h.astype(np.float32), z.astype(np.float32), False, dict.fromkeys(GROUPS, "val"))


def test_matched_pairs_are_told_from_shuffled_ones() -> None:
    pairs = planted()
    found = joint_summary(pairs, seed=3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for row in found["agreement"].values():
        assert row["matched"]["mean"] == pytest.approx(1.0, abs=1e-6) and abs(row["shuffled"]["mean"]) < 0.1
        assert row["difference"]["mean"] == pytest.approx(row["matched"]["mean"] - row["shuffled"]["mean"])
        assert (
            row["difference"]["low"] <= row["difference"]["mean"] <= row["difference"]["high"]
            and row["matched"]["clips"] == 16
        )
    for name in GROUPS:
        free = planted(tie=0.0)
        row = agreement(free.take(free.group == name))
        # What all chunks share, here the hand's 5, is no agreement.
        assert row["difference"]["low"] < 0.1 and abs(row["matched"]["mean"]) < 0.2


def test_a_shuffled_partner_is_of_another_clip_and_the_same_hand() -> None:
    h = np.eye(6, dtype=np.float32)
    labels = Labels(
        np.array([*"aabbcd"]), np.full(6, "s"), np.full(6, "lab"), np.array([0, 0, 0, 0, 0, 1]), np.arange(6)
    )
    found = cosines(Pairs(labels, np.full(6, "lab"), h, h, False, {}))
    centred = h[:5] - h[:5].mean(axis=0)
    similar = centred @ centred.T / (np.linalg.norm(centred, axis=1)[:, None] * np.linalg.norm(centred, axis=1))
    np.testing.assert_allclose(found[0], [1.0, similar[0, 2:5].mean(), similar[0, 1]], atol=1e-6)
    np.testing.assert_allclose(found[4], [1.0, similar[4, :4].mean(), np.nan], atol=1e-6)
    assert np.isnan(found[5]).all(), "alone of its hand"


def test_what_is_of_the_scene_is_shown_by_other_seconds() -> None:
    pairs = planted(tie=1.0)
    at = pairs.group == "lab"
    clips = pairs.labels.clip_id
    scene = np.stack(
        [
            pairs.z[(clips == c) & (pairs.labels.hand == s)].mean(0)
            for c, s in zip(clips, pairs.labels.hand, strict=True)
        ]
    )
    rows = {"of the moment": pairs, "of the scene": dataclasses.replace(pairs, h=scene, z=scene)}
    found = {name: agreement(some.take(at)) for name, some in rows.items()}
    for name, row in found.items():
        assert row["matched"]["mean"] == pytest.approx(1.0, abs=1e-6) and row["difference"]["low"] > 0.8, name
    assert found["of the scene"]["same_clip"]["mean"] == pytest.approx(1.0, abs=1e-6)
    assert abs(found["of the moment"]["same_clip"]["mean"]) < 0.2
    short = pairs.take(at & (pairs.labels.time == 0))
    assert agreement(short)["same_clip"] == {"mean": None, "low": None, "high": None, "clips": 0}


def test_groups_and_spaces_are_told_apart_only_where_they_are_apart() -> None:
    told = {r["of"]: r for r in separability(planted(), [*GROUPS], 0)}
    assert [told[name]["chance"] for name in ("h", "z", "both")] == [1 / 3, 1 / 3, 0.5]
    for row in told.values():
        assert row["low"] - 0.05 <= row["chance"] <= row["high"] + 0.05 and row["clips"] == 48
    apart = {r["of"]: r["accuracy"] for r in separability(planted(apart=4.0), [*GROUPS], 0)}
    assert apart["h"] > 0.6 and apart["z"] < 0.45, "Lab always, the two others by chance"
    assert {r["of"]: r["accuracy"] for r in separability(planted(aside=4.0), [*GROUPS], 0)}["both"] > 0.95


def test_the_map_is_one_fit_of_balanced_groups() -> None:
    found = joint_summary(planted((16, 16, 9)))
    points = found["map"]
    assert {len(column) for column in points.values()} == {2 * 3 * 36} and points["space"] == ["h"] * 108 + ["z"] * 108
    assert points["clip_id"][:108] == points["clip_id"][108:]
    assert [found["groups"][name]["used"] for name in GROUPS] == [36, 36, 36]
    place = np.array([points["x"], points["y"]])
    moved = np.linalg.norm(place[:, :108] - place[:, 108:], axis=0)
    size = np.ptp(place, axis=1).max()
    assert np.median(moved) < 0.02 * size, "equal rows lie in one place, whichever space they are of"
    assert joint_summary(planted((16, 16, 9))) == found


def test_small_groups_are_left_out_and_told() -> None:
    found = joint_summary(planted((12, 12, MIN_CLIPS - 1)))
    told = found["groups"]["wild_unlabelled"]
    assert told.pop("varying_h") > 0 and told == {"split": "val", "clips": 7, "chunks": 28, "used": 0}
    assert set(found["agreement"]) == {"lab", "wild_labelled"} and set(found["map"]["group"]) == {
        "lab",
        "wild_labelled",
    }
    assert found["separability"][0]["chance"] == 0.5
    assert [r["of"] for r in separability(planted((12, 0, 0)), ["lab"], 0)] == ["both"]
    with pytest.raises(UserError, match="at least 8 of a group"):
        joint_summary(planted((7, 7, 7)))


def test_the_share_of_h_that_varies() -> None:
    """Of what is the same in all of a hand's chunks nothing counts."""
    hand = np.array([0, 1, 0, 1])
    rows = np.array([[3.0, 4.0], [100.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
    assert varying(rows, hand) == 0.0 and varying(0 * rows, hand) == 0.0
    assert varying(rows + 1e-3 * np.array([[1], [1], [-1], [-1]]), hand) == pytest.approx(1e-3 / 50.1, rel=0.01)
    assert varying(np.array([[1.0], [2.0], [-1.0], [-2.0]]), hand) == pytest.approx(1.0)


@pytest.mark.parametrize("space", ["h", "z"])
def test_a_model_that_has_diverged_is_no_map(space: str) -> None:
    pairs = planted()
    rows = getattr(pairs, space).copy()
    rows[3, 1] = np.nan
    with pytest.raises(UserError, match=rf"{space} of 192 chunks: got '1 not finite'"):
        joint_summary(dataclasses.replace(pairs, **{space: rows}))


def test_a_collapsed_space_is_told_by_chance() -> None:
    pairs = planted()
    flat = dataclasses.replace(pairs, z=np.ones_like(pairs.z))
    assert agreement(flat.take(flat.group == "lab"))["matched"]["mean"] == 0.0
    assert {r["of"]: r["accuracy"] for r in separability(flat, [*GROUPS], 0)}["z"] == pytest.approx(1 / 3)


# --- a model over a world -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A lab clip, and a labelled and an unlabelled one in the wild, of two seconds each."""
    sizes = {"lab_train": 1, "lab_val": 0, "wild_train": 2, "wild_val": 0, "width": 64, "height": 48}
    config = WorldConfig(seed=4, seconds=(2.0, 2.0), fps=(15,), labelled_share=0.5, dropout_share=0.0, **sizes)  # type: ignore[arg-type]
    return Manifest(str(generate(tmp_path_factory.mktemp("joint"), config)))


def as_trained(loaded: Loaded, manifest: Manifest, row: int) -> tuple[dict[tuple[int, int], np.ndarray], np.ndarray]:
    """h of every aligned chunk of a clip by (hand, time), and z (time, 2 hands, D), by the path of training without labels: all chunks
    at once.
    """
    source = ManifestSource(manifest.base, loaded.assets)
    (example,) = source.samples([PlanRow(0, row, row, manifest.address(row))])
    assert isinstance(example, Sample)
    states = tuple(min(state, HandState.UNTRACKED) for state in example.states)
    example = dataclasses.replace(example, states=states, labelled=np.zeros_like(example.labelled))
    example = dataclasses.replace(example, task="pure_video")
    objective, recipe = loaded.learner.objective, HandRecipe(loaded.config, loaded.assets)
    hands = [h for h in Hand if example.states[h] != HandState.ABSENT]
    words = render("generation", 0, instruction=example.instructions[0], seconds=example.seconds, hands=hands)
    laid = recipe.lay_out(example, recipe.draw(np.random.default_rng(0), example), SampleText(words))
    assert laid.boundaries == sorted({0, *laid.pairs, *(t + 1 for t in laid.pairs)})
    (pictures,) = source.pictures([Look(example, laid.boundaries, laid.pairs)])
    assert isinstance(pictures, dict) and isinstance(objective, Jala)
    laid.pictures, laid.plan_row = pictures, 0
    batch = collate([laid], packing=False)
    with torch.no_grad():
        features, out, _ = loaded.learner.run(batch)
        assert features is not None
        hidden = objective.compared(out.hidden[objective.config.align.layer])[0]
        z = objective.targets(features).mean(dim=2).numpy()
    found = {}
    for hand in Hand:
        for i, time in enumerate(laid.pairs):
            at = (batch.pair[0] == i) & (batch.hand[0] == hand)
            if at.any():
                found[int(hand), time] = hidden[at].mean(dim=0).numpy()
    return found, z


@pytest.mark.parametrize("name", ["tiny", "tiny_change_head", "tiny_vjepa"])
def test_h_and_z_are_those_of_training_without_labels(manifest: Manifest, name: str) -> None:
    loaded = loaded_model(name)
    groups = group_rows(manifest, "val")
    pairs = collect_pairs(loaded, manifest, groups, batch=3)
    assert (
        set(pairs.group) == set(GROUPS) and pairs.failures == [] and pairs.h.shape == pairs.z.shape == (len(pairs), 32)
    )
    assert pairs.directions == (name == "tiny_change_head")
    for group in GROUPS:
        mine = np.flatnonzero(pairs.group == group)
        places = list(zip(pairs.labels.hand[mine].tolist(), pairs.labels.time[mine].tolist(), strict=True))
        assert {time for _, time in places} == {0, 1}
        assert group != "wild_unlabelled" or places == [(0, 0), (1, 0), (0, 1), (1, 1)]
        h, z = as_trained(loaded, manifest, int(groups[group].rows[0]))
        for i, (hand, time) in zip(mine, places, strict=True):
            np.testing.assert_allclose(pairs.h[i], h[hand, time], atol=1e-4)
            np.testing.assert_allclose(pairs.z[i], z[time, hand], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_no_align", "tiny_next_token", "tiny_lapa_codes"])
def test_an_objective_without_a_perceiver_says_so(manifest: Manifest, name: str) -> None:
    with pytest.raises(UserError, match="no latent action perceiver"):
        collect_pairs(loaded_model(name), manifest, group_rows(manifest, "val"))


def test_clips_that_cannot_be_read_are_told(manifest: Manifest, tmp_path: Path) -> None:
    clips = list(manifest)
    clips[0] = dataclasses.replace(clips[0], video_uri=str(tmp_path / "gone.mp4"), packets=None)
    other = Manifest(write_manifest(clips, tmp_path / "m.parquet").path)
    pairs = collect_pairs(loaded_model(), other, group_rows(other, "train"))
    assert [failure["clip_id"] for failure in pairs.failures] == [clips[0].clip_id] and "lab" not in pairs.group
    gone = Manifest(write_manifest(clips[:1], tmp_path / "n.parquet").path)
    with pytest.raises(UserError, match=r"at least one that can be read.*gone\.mp4"):
        collect_pairs(loaded_model(), gone, group_rows(gone, "train"))
