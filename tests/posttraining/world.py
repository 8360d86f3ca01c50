"""Scripted demonstrations of a point that moves to a goal which its state tells, in memory; and runs over them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jala_ray.batch import Batch
from jala_ray.config import RunConfig
from jala_ray.data.samples.assets import Assets
from jala_ray.data.samples.flow_recipe import FlowRecipe
from jala_ray.data.samples.signals import SignalStatistics, Statistics
from jala_ray.data.samples.source import BadRow, Look, Pictures, Sample
from jala_ray.data.samples.steps import ShareBuilder, StepBuilder
from jala_ray.data.sampling.plan import Plan, PlanRow
from jala_ray.presets import PRESETS
from jala_ray.training import history, setup
from jala_ray.training.learner import Learner
from jala_ray.training.parallel import parallel
from jala_ray.training.pretraining import Pretraining
from jala_ray.types import HandState, Signal, UserError
from tests.support import by_number, make_assets, make_learner, small

PRESET = "tiny_libero_spatial"
HZ, LENGTH, REACH = 10, 24, 0.1
"""Rate; frames of an episode; the largest move of an action in each direction."""
HELD_OUT = 1000
"""Number of the first held-out episode."""


def moved(place: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The expert's action."""
    return np.clip(goal - place, -REACH, REACH)


@functools.cache
def demonstration(number: int) -> tuple[np.ndarray, np.ndarray]:
    """States (T, 4), place and goal, and actions (T, 2), float32."""
    rng = np.random.default_rng(number)
    place, goal = rng.uniform(-1, 1, (2, 2))
    states, actions = np.empty((LENGTH, 4), np.float32), np.empty((LENGTH, 2), np.float32)
    for i in range(LENGTH):
        actions[i], states[i] = moved(place, goal), [*place, *goal]
        place = place + actions[i]
    return states, actions


@dataclass
class Demonstrations:
    """A `Source` of their moments: row i is frame i % LENGTH of episode i // LENGTH. Robots take turns, by the episode's number."""

    assets: Assets
    robots: Sequence[str] = ("",)

    def expect(self, rows: Iterable[PlanRow]) -> None:
        """Everything is in memory."""

    def samples(self, rows: Sequence[PlanRow]) -> list[Sample | BadRow]:
        return [self.sample(row.index) for row in rows]

    def sample(self, row: int) -> Sample:
        episode, frame = divmod(row, LENGTH)
        states, actions = demonstration(episode)
        times, absent = np.arange(LENGTH) / HZ, (HandState.ABSENT, HandState.ABSENT)
        return Sample(
            *(f"episode{episode}", "control", absent, np.zeros((2, 0), bool)),
            *(
                np.zeros((2, 0, self.assets.spec.vocab.chunk_tokens), np.int64),
                ("Go to the goal.",),
                "",
                LENGTH / HZ,
                row,
            ),
            signals={"observation.state": Signal(states, times), "action": Signal(actions, times)},
            at_s=frame / HZ,
            embodiment=self.robots[episode % len(self.robots)],
        )

    def pictures(self, looks: Sequence[Look]) -> Iterator[Pictures | UserError]:
        return (self._seen(look) if look.image else {} for look in looks)

    def _seen(self, look: Look) -> Pictures:
        """Noise, another for each row and view."""
        side, rng = self.assets.spec.image_size, np.random.default_rng(look.sample.row)
        return {"image": rng.integers(0, 256, (len(look.views), 3, side, side), np.uint8)}

    def blank(self) -> Pictures:
        side = self.assets.spec.image_size
        return {"image": np.zeros((3, side, side), np.uint8)}

    def __call__(self) -> tuple[Demonstrations, Assets]:
        return self, self.assets


def statistics(robots: Sequence[str] = ("",), episodes: int = 40) -> Statistics:
    """Of the demonstrations; each robot's own where they have names."""
    states, actions = zip(*map(demonstration, range(episodes)), strict=True)
    times = np.arange(LENGTH) / HZ
    found = {}
    for robot in robots:
        for name, values in (("observation.state", states), ("action", actions)):
            of = SignalStatistics.of(name, [Signal(x, times) for x in values])
            found[f"{robot}:{name}" if robot else name] = of
    return Statistics(found, "demonstrations")


def flow_config(root: Path | str = "runs", **values: Any) -> RunConfig:
    """A model of milliseconds without pictures or LSP, that learns from demonstrations."""
    base: dict[str, Any] = {
        "name": "run",
        "storage__root": str(root),
        "objective__views": (),
        "objective__latents": "none",
        "train__steps": 4,
        "train__batch": 4,
        "train__micro_batch": 4,
        "train__log_every": 1,
        "train__checkpoint_every": 4,
        "train__validate_every": 4,
        "train__monitor_every": 4,
        "train__val_samples": 4,
        "train__evaluate": (),
        "log__tensorboard": False,
    }
    sizes = {"width": 16, "layers": 2, "heads": 2, "hidden": 8, "state_dim": 6, "action_dim": 3, "horizon": 4}
    base |= {f"objective__head__{name}": size for name, size in sizes.items()}
    return small(PRESETS[PRESET], **(base | values))


def flow_assets(config: RunConfig, robots: Sequence[str] = ("",)) -> Assets:
    return replace(make_assets(config), statistics=statistics(robots))


def builder(
    config: RunConfig, source: Demonstrations, rows: np.ndarray, seed: int, shuffle: bool = True
) -> StepBuilder:
    plan = Plan(by_number(rows), config.train.batch, config.seed, shuffle=shuffle)
    return StepBuilder(ShareBuilder(config, source, seed, trains=seed == config.seed), plan)


def flow_batch(config: RunConfig, assets: Assets, rows: Sequence[int], robots: Sequence[str] = ("",)) -> Batch:
    """One batch of training rows, drawn and laid out."""
    made = builder(config, Demonstrations(assets, robots), np.arange(HELD_OUT), config.seed).builder
    laid, errors = made.lay_out([PlanRow(0, row, row) for row in rows], 0)
    assert not errors, errors
    return made.recipe.collate(laid)


def flow_run(config: RunConfig, rank: int = 0, world: int = 1, episodes: int = 8) -> Pretraining:
    """A run of one process, or of one of several ranks, over so many episodes."""
    assets = flow_assets(config)
    source, steps = Demonstrations(assets), config.train.steps or 0
    training = builder(config, source, np.arange(episodes * LENGTH), config.seed)
    held_out = builder(config, source, HELD_OUT * LENGTH + np.arange(8), config.seed + setup.VAL_SEED, shuffle=False)
    return Pretraining(
        config=config,
        folder=setup.run_folder(config),
        learner=make_learner(config, assets),
        assets=assets,
        device=torch.device("cpu"),
        total_steps=steps,
        steps_per_epoch=training.plan.steps_per_epoch,
        shares=lambda first: (training.build(step, rank, world) for step in range(first, steps)),
        validation={
            "robot": lambda: (held_out.build(step, rank, world) for step in range(held_out.plan.steps_per_epoch))
        },
        resume_from=history.newest(setup.run_folder(config), setup.storage_options(config)),
        rank=rank,
        world=world,
        parallel=parallel(config.train, world, torch.device("cpu")),
    )


@dataclass
class PointPolicy:
    """Acts by what a run has learned: so many actions of each window, then it looks again."""

    config: RunConfig
    assets: Assets
    learner: Learner
    executed: int = 4
    seed: int = 0

    def __call__(self, states: np.ndarray) -> np.ndarray:
        """States (S, 4) -> actions (S, executed, 2)."""
        recipe = FlowRecipe(self.config, self.assets)
        laid = [recipe.observe({"observation.state": state}, 0, "Go to the goal.") for state in states]
        for one in laid:
            recipe.seen(one, trains=False)
        batch, objective = recipe.collate(laid), self.learner.objective
        noise = torch.randn(batch.signals["noise"].shape, generator=torch.Generator().manual_seed(self.seed))
        with torch.no_grad():
            _, out, _ = self.learner.eval().run(batch)
            made = objective.sample(self.learner.vla, batch, out, noise)  # type: ignore[operator]
        return recipe.restored(made.numpy())[:, : self.executed]


def reached(policy: PointPolicy, trials: int = 20, steps: int = 48) -> int:
    """How many points come within 0.05 of their goals in so many steps, from places and to goals that no demonstration has."""
    place, goal = np.random.default_rng(77).uniform(-1, 1, (2, trials, 2))
    nearest = np.full(trials, np.inf)
    for _ in range(steps // policy.executed):
        actions = policy(np.concatenate([place, goal], -1).astype(np.float32))
        for step in range(policy.executed):
            place = place + np.clip(actions[:, step], -REACH, REACH)
            nearest = np.minimum(nearest, np.linalg.norm(place - goal, axis=-1))
    return int((nearest < 0.05).sum())
