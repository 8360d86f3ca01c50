"""Plans over robot sets: every frame once, whoever reads it, whatever was cut off; what a run binds itself to; splits and idle ends."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jala_ray.config import DataConfig, RunConfig
from jala_ray.data.manifest.places import RowFilter
from jala_ray.data.robots.plan import robot_catalogue
from jala_ray.data.robots.sets import open_sets
from jala_ray.data.robots.split import held_out, moving, spans
from jala_ray.data.robots.statistics import robot_statistics
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.share import StepShare
from jala_ray.data.samples.signals import Statistics
from jala_ray.data.sampling.plan import rows_digest
from jala_ray.training import setup
from jala_ray.training.estimate import data_of
from jala_ray.types import ConfigError, UserError
from tests.data.robots.made import PATHS, SIGNALS, recorded, write_set
from tests.data.robots.recipe import FramesRecipe, plans_of, settings
from tests.support import packed, same_batch, small

LENGTHS = (12, 9, 15, 11, 8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shares")
    return {version: write_set(folder / version.replace(".", ""), version) for version in PATHS}


@pytest.fixture(scope="module")
def config(sets: dict[str, Path]) -> RunConfig:
    return settings(*sets.values())


@pytest.fixture(scope="module")
def plans(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> setup.Plans:
    return plans_of(config, tmp_path_factory.mktemp("plans"))


def by_row(shares: list[StepShare]) -> dict[int, dict[str, torch.Tensor]]:
    """Plan row -> what its sample brought."""
    found: dict[int, dict[str, torch.Tensor]] = {}
    for share in shares:
        assert not share.errors
        for batch in share.micro:
            pictures = batch.images.unflatten(0, (-1, 2))
            for i, row in enumerate(batch.plan_row.tolist()):
                if batch.weight[i]:
                    assert row not in found
                    found[row] = {name: signal[i] for name, signal in batch.signals.items()} | {"image": pictures[i]}
    return found


def test_worlds_and_a_resumed_segment_read_every_frame_once(plans: setup.Plans) -> None:
    steps = plans.train.plan.steps
    assert steps.rows == 2 * (sum(LENGTHS)) - sum(
        np.array(LENGTHS)[held_out(one, 0.05)].sum() for one in plans.train.builder.source.sets.sets
    )
    whole = None
    for world in (1, 2, 3):
        cut = steps.per_epoch // 2
        shares = [
            share
            for rank in range(world)
            for part in (range(cut), range(cut, steps.per_epoch))  # stopped, and gone on
            for share in plans.train.stream(part, rank, world)
        ]
        found = by_row(shares)
        assert sorted(found) == list(range(steps.rows))
        whole = found if whole is None else whole
        for row, made in found.items():
            for name, value in made.items():
                assert torch.equal(value, whole[row][name]), (world, row, name)
    assert whole is not None
    frames = sorted(int(made["row"]) for made in whole.values())
    assert frames == sorted(plans.train.plan.catalogue.place["row"].tolist()), "every frame that is trained on, once"


def test_a_segment_goes_on_at_another_number_of_ranks(plans: setup.Plans) -> None:
    steps, cut = plans.train.plan.steps, 5
    shares = [share for rank in range(2) for share in plans.train.stream(range(cut), rank, 2)]
    shares += [share for rank in range(3) for share in plans.train.stream(range(cut, steps.per_epoch), rank, 3)]
    assert sorted(by_row(shares)) == list(range(steps.rows))


def test_digests_of_ranks_add_up_to_the_epoch(plans: setup.Plans) -> None:
    plan = plans.train.plan
    every = rows_digest(0, np.arange(plan.steps.rows))
    for world in (1, 2, 5):
        parts = [
            rows_digest(0, np.array([row.plan_row for row in plan.share(step, rank, world)]))
            for step in range(plan.steps_per_epoch)
            for rank in range(world)
        ]
        assert np.array(parts, np.int64).sum(dtype=np.int64) == every


def test_neighbours_are_not_read_together(plans: setup.Plans) -> None:
    rows = plans.train.plan.catalogue.place["row"][plans.train.plan.order(0)].astype(np.int64)
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.1


def test_actions_past_the_end_are_marked(plans: setup.Plans) -> None:
    made, source = recorded(LENGTHS), plans.train.builder.source
    for row, found in by_row(list(plans.train.stream(range(3), 0, 1))).items():
        at = source.sets.anchor(int(found["row"]))
        actions = made[at.episode].columns["action"]
        ahead = at.frame + np.arange(3)
        assert found["pad"].tolist() == (ahead >= len(actions)).tolist(), row
        np.testing.assert_array_equal(found["action"].numpy(), actions[np.minimum(ahead, len(actions) - 1)])
        assert found["state"].dtype == torch.float64 and found["action"].dtype == torch.float32


def test_held_out_episodes_are_apart(plans: setup.Plans, config: RunConfig) -> None:
    source = plans.train.builder.source
    assert list(plans.held_out) == ["robot"]
    rows = {
        "train": plans.train.plan.catalogue.place["row"],
        "val": plans.held_out["robot"].plan.catalogue.place["row"],
    }
    episodes = {split: {source.sets.anchor(int(row))[:2] for row in found} for split, found in rows.items()}
    assert not episodes["train"] & episodes["val"] and len(episodes["train"] | episodes["val"]) == 10
    assert {which for which, _ in episodes["val"]} == {0, 1}, "of every set"
    (share,) = plans.held_out["robot"].stream([0], 0, 1)
    assert not share.errors and share.micro


def test_a_larger_share_holds_out_more_and_the_same() -> None:
    class Many:
        base = "/sets/many"

        class episodes:
            number = np.arange(1000)

    before = np.zeros(1000, bool)
    for share, count in ((0.0, 0), (0.0001, 1), (0.05, 50), (0.2, 200), (0.9999, 999)):
        chosen = held_out(Many, share)  # type: ignore[arg-type]
        assert chosen.sum() == count and not (before & ~chosen).any()
        before = chosen


def test_other_domains_and_unknown_signals(sets: dict[str, Path]) -> None:
    found = open_sets([(str(sets["v3.0"]), "arm")])
    assert len(robot_catalogue(found, DataConfig(), "val", RowFilter("lab"))) == 0
    with pytest.raises(ConfigError, match=r"v30.*got 'force'.*observation\.counter"):
        robot_catalogue(found, DataConfig(), "train", RowFilter(signals=("force",)))


def test_weights_mix_sets(sets: dict[str, Path], tmp_path: Path) -> None:
    config = settings(*sets.values(), data__source_weights=(("v21", 3.0), ("v30", 1.0)), data__epoch_rows=40)
    plan = plans_of(config, tmp_path).train.plan
    which = plan.catalogue.cell[plan.order(0)]
    assert [plan.catalogue.cells[i] for i in (0, 1)] == [("v21", "control"), ("v30", "control")]
    assert np.bincount(which).tolist() == [30, 10]


def test_a_run_is_bound_to_its_sets(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    config = settings(folder, storage__root=str(tmp_path / "runs"))
    first = plans_of(config, tmp_path)
    assert setup.claim_plan(config, first) and (tmp_path / "runs/tiny/plan.json").is_file()
    setup.claim_plan(config, plans_of(config, tmp_path))
    (tmp_path / "runs/tiny/metrics.jsonl").write_text("{}\n")
    (tmp_path / "runs/tiny/checkpoints/step-00000001").mkdir(parents=True)
    path = folder / "data/chunk-000/episode_000002.parquet"
    table = pq.read_table(path)
    at = table.column_names.index("action")
    doubled = pa.array([[2 * value for value in row] for row in table["action"].to_pylist()], pa.list_(pa.float64()))
    pq.write_table(table.set_column(at, "action", doubled), path)
    with pytest.raises(ConfigError, match=r"data\.robot_sets"):
        setup.claim_plan(config, plans_of(config, tmp_path))


def test_a_set_that_changes_while_workers_open_it_is_told(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    plans = plans_of(settings(folder), tmp_path)
    (folder / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "Another."}\n')
    with pytest.raises(UserError, match="digest"):
        plans.train.build(0, 0, 1)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"manifest": "m.parquet"}, "data.manifest"),
        ({"cache": "c"}, "data.cache"),
        ({"labels": "labelled_only"}, "data.labels"),
        ({"held_out_episodes": 1.0}, "data.held_out_episodes"),
        ({"trim_idle": -0.1}, "data.trim_idle"),
        ({"robot_sets": (("a", "b:c"),)}, "data.robot_sets"),
        ({"robot_sets": ()}, "data.manifest"),
    ],
)
def test_settings_that_cannot_be(given: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(DataConfig(robot_sets=(("a", "arm"),)), **given).check()
    assert caught.value.field == field
    DataConfig(robot_sets=(("a", "arm"),)).check()


def test_an_objective_of_hand_motion_is_refused() -> None:
    config = settings("s")
    config.check()
    with pytest.raises(ConfigError, match="without motion codes"):
        replace(config, objective=small().objective).check()


def test_addresses_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = setup.absolute(settings("sets/a", "s3://b/c/"))
    assert found.data.robot_sets == ((str(tmp_path / "sets/a"), "arm"), ("s3://b/c", "arm"))


def test_a_run_is_prepared_with_the_scale_and_rate_of_its_robots(sets: dict[str, Path], tmp_path: Path) -> None:
    config = settings(*sets.values(), storage__root=str(tmp_path / "runs"), train__batch=8)
    with setup.prepared(config) as ready:
        assets = Assets.open(ready.assets)
    assert assets.statistics is not None and assets.statistics.fps == {"arm": 10.0}
    assert assets.statistics.rows == ready.plans.train.plan.catalogue.digest()
    recipe = FramesRecipe(config, assets)
    assert recipe.statistics("action", "arm") is assets.statistics.signals["arm:action"]
    with pytest.raises(UserError, match="among them"):
        recipe.statistics("action")
    assert json.loads((tmp_path / "runs/tiny/plan.json").read_text())["rows"] == ready.plans.train.plan.steps.rows


def test_a_dry_run_counts_their_frames(sets: dict[str, Path], plans: setup.Plans, config: RunConfig) -> None:
    options = setup.storage_options(config)
    found = data_of(config, options)
    assert found.rows == plans.train.plan.steps.rows and "v21" in found.source
    assert data_of(settings("nowhere"), options).rows is None


# --- idle ends -------------------------------------------------------------------------------------------------------


def test_frames_before_and_after_all_movement() -> None:
    values = np.array([0, 0, 0, 0.001, 1, 2, 3, 3, 3.001, 3])[:, None]
    assert moving(values, np.array([0.01])) == (3, 7)
    assert moving(np.zeros((5, 2)), np.array([0.1, 0.1])) == (0, 5), "nothing moves: all of it"
    assert moving(np.arange(5.0)[:, None], np.array([0.1])) == (0, 5)


def idle(folder: Path, number: int, before: int, after: int) -> None:
    """Hold still at both ends of an episode."""
    path = folder / f"data/chunk-{number // 3:03d}/episode_{number:06d}.parquet"
    table = pq.read_table(path)
    for name in SIGNALS:
        rows = table[name].to_pylist()
        rows[:before] = [rows[before]] * before
        rows[len(rows) - after :] = [rows[-after - 1]] * after
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(rows, table.schema.field(name).type))
    pq.write_table(table, path)


def test_idle_ends_are_no_anchors(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    idle(folder, 0, 4, 3)
    idle(folder, 3, 0, 5)
    found = open_sets([(str(folder), "arm")])
    assert spans(found.sets[0], 0.001).tolist() == [[4, 9], [0, 9], [0, 15], [0, 6], [0, 8]]
    whole, trimmed = (
        robot_catalogue(found, DataConfig(held_out_episodes=0, trim_idle=share), "train") for share in (0.0, 0.001)
    )
    assert len(whole) == sum(LENGTHS) and len(trimmed) == len(whole) - 7 - 5
    assert set(trimmed.place["row"].tolist()) == set(whole.place["row"].tolist()) - {
        0,
        1,
        2,
        3,
        9,
        10,
        11,
        *range(42, 47),
    }
    plans = plans_of(settings(folder, data__trim_idle=0.001), tmp_path)
    (sample,) = plans.train.builder.source.samples(plans.train.plan.share(0, 0, 1)[:1])
    assert len(sample.signals["action"].values) == LENGTHS[plans.train.builder.source.sets.anchor(sample.row).episode]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_exact_and_of_training_episodes(
    sets: dict[str, Path], plans: setup.Plans, config: RunConfig
) -> None:
    found = open_sets(config.data.robot_sets)
    made = robot_statistics(found, config.data, SIGNALS, "rows")
    assert set(made.signals) == {"arm:observation.state", "arm:action"} and made.fps == {"arm": 10.0}
    for name in SIGNALS:
        values = np.concatenate(
            [
                episode.columns[name]
                for one in found.sets
                for episode, out in zip(recorded(LENGTHS), held_out(one, 0.05), strict=True)
                if not out
            ]
        ).astype(np.float64)
        of = made.signals[f"arm:{name}"]
        assert (of.values, of.rows, of.shape) == (len(values), 8, values.shape[1:])
        for key, expected in {
            "min": values.min(0),
            "max": values.max(0),
            "mean": values.mean(0),
            "std": values.std(0),
            "q01": np.quantile(values, 0.01, axis=0),
            "q50": np.quantile(values, 0.5, axis=0),
            "q99": np.quantile(values, 0.99, axis=0),
        }.items():
            np.testing.assert_allclose(getattr(of, key), expected, rtol=1e-12, atol=1e-12)
    again = Statistics.from_json(made.to_json())
    assert again == made and again.fingerprint == made.fingerprint
    assert replace(made, fps={"arm": 20.0}).fingerprint != made.fingerprint


def test_old_statistics_are_read(plans: setup.Plans, config: RunConfig) -> None:
    made = replace(robot_statistics(open_sets(config.data.robot_sets), config.data, ("action",), "rows"), fps={})
    stored = json.loads(made.to_json())
    assert "fps" not in stored and Statistics.from_json(json.dumps(stored)) == made


def test_statistics_know_embodiments_and_refuse_unequal_sets(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = write_set(tmp_path / "wide", "v2.1")
    for path in (folder / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("action")
        pq.write_table(
            table.set_column(at, "action", pa.array([[1.0, 2.0]] * len(table), pa.list_(pa.float64()))), path
        )
    two = [(str(sets["v2.1"]), "arm"), (str(folder), "wide")]
    made = robot_statistics(open_sets(two), DataConfig(), ("action",), "rows")
    assert made.signals["wide:action"].size == 2 and made.signals["arm:action"].size == 3
    assert made.fps == {"arm": 10.0, "wide": 10.0}
    with pytest.raises(UserError, match=r"float32 \[3\] in v21, float64 \[2\] in wide"):
        robot_statistics(open_sets([(two[0][0], "arm"), (two[1][0], "arm")]), DataConfig(), ("action",), "rows")


def test_statistics_leave_out_what_was_not_measured(sets: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sets["v2.1"], tmp_path / "s")
    path = folder / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    rows = table["action"].to_pylist()
    rows[2] = [float("nan"), 0.0, 1e9]
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", pa.array(rows, pa.list_(pa.float32()))), path)
    data = DataConfig(held_out_episodes=0)
    of = robot_statistics(open_sets([(str(folder), "arm")]), data, ("action",), "rows").signals["arm:action"]
    assert of.values == sum(LENGTHS) - 1 and max(of.max) < 100


def test_a_share_travels(plans: setup.Plans) -> None:
    share = plans.train.build(0, 0, 2)
    again = StepShare.from_buffer(packed(share))
    for one, other in zip(share.micro, again.micro, strict=True):
        same_batch(one, other)
