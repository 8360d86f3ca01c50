"""The recipe of robots: words, pictures of a moment, the state then, and the actions from then on (method.md 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jala_ray.config import FlowConfig, RunConfig
from jala_ray.data.samples.augment import NUMBERS, augmented, resized
from jala_ray.data.samples.instructions import render
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.recipe import Recipe
from jala_ray.data.samples.signals import at_times
from jala_ray.data.samples.source import Sample
from jala_ray.tasks import TASKS
from jala_ray.types import Hand, UserError

if TYPE_CHECKING:
    from jala_ray.data.samples.assets import Assets

TIME_SHAPE, TIME_SCALE = (1.5, 1.0), 0.999
"""Flow time is (TIME_SCALE - Beta(1.5, 1)) / TIME_SCALE, at least 0: most of it near the noise."""


@dataclass(frozen=True)
class FlowDraw:
    """What chance decides for a sample."""

    at_s: float
    """The moment, seconds after the clip's beginning."""
    template: int
    instruction: int
    time: float
    """Of flow: 0 is noise, 1 the actions."""
    noise: np.ndarray
    """(H, A) float32, normal."""
    dropout: int
    """Key of its masks."""
    augment: np.ndarray
    """(NUMBERS,) float32."""


class FlowRecipe(Recipe[FlowDraw]):
    """A batch's signals, of each sample:

    state (state_dim,), action (H, action_dim) and noise likewise, normalised, 0 at dimensions that the robot has not; units (H, action_dim)
    the actions as they are; dims (action_dim,) bool those that it has; action_is_pad (H,) bool: past the episode's end, or not measured;
    flow_time (); robot () int64, its number; dropout () int64; augment (NUMBERS,).
    """

    def __init__(self, config: RunConfig, assets: Assets) -> None:
        super().__init__(config, assets)
        assert isinstance(config.objective, FlowConfig)
        self.flow, self.head = config.objective, config.objective.head
        self.robots = self.flow.robots(() if assets.statistics is None else assets.statistics.signals)
        k = self.spec.vocab.chunk_tokens
        if self.flow.reads == "chunk" and not k:
            remedy = "Pass --motion-tokenizer, or --objective.reads all."
            raise UserError("objective.reads", "chunk", "a model with motion tokens", remedy)

    # --- a training sample --------------------------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, sample: Sample) -> FlowDraw:
        at_s = sample.at_s if sample.at_s is not None else self._moment(rng, sample)
        template = int(rng.integers(len(TASKS[sample.task].templates)))
        instruction = int(rng.integers(max(len(sample.instructions), 1)))
        time = max(0.0, (TIME_SCALE - float(rng.beta(*TIME_SHAPE))) / TIME_SCALE)
        noise = rng.standard_normal((self.head.horizon, self.head.action_dim), np.float32)
        dropout, augment = int(rng.integers(2**63)), rng.uniform(-1, 1, NUMBERS).astype(np.float32)
        return FlowDraw(at_s, template, instruction, time, noise, dropout, augment)

    def _moment(self, rng: np.random.Generator, sample: Sample) -> float:
        """One of the times at which the first action was measured, within the clip. Raises `UserError` where there is none."""
        action = self.signal(sample, self.flow.action[0])
        times = np.asarray(action.time_s)[action.usable]
        span = sample.seconds * (sample.clip.time_scale if sample.clip is not None else 1.0)
        within = times[(times >= 0) & (times <= span)]
        if not len(within):
            raise UserError(f"signal {self.flow.action[0]} of {sample.clip_id}", "no time", f"one from 0 to {span:g} s")
        return float(within[rng.integers(len(within))])

    def lay_out(self, sample: Sample, chance: FlowDraw) -> Laid:
        laid = self._sequence(self.words(sample, chance.template, chance.instruction).user, chance.at_s)
        robot = self._named(sample.embodiment or (sample.clip.source if sample.clip is not None else ""))
        state = {name: self._now(sample, name, chance.at_s) for name in self.flow.state}
        times = chance.at_s + np.arange(self.head.horizon) * self._period(sample)
        found = {name: at_times(self.signal(sample, name), times) for name in self.flow.action}
        actions = {name: values for name, (values, _) in found.items()}
        pad = np.any([pad for _, pad in found.values()], axis=0)
        action = _filled(self._normalised(actions, robot), self.head.action_dim)
        action[pad] = np.nan_to_num(action[pad])  # what was not measured may be anything
        laid.signals = self._known(state, robot) | {
            "action": action,
            "units": _filled(_joined(list(actions.values())), self.head.action_dim),
            "action_is_pad": pad,
            "noise": chance.noise * self._dims(robot),
            "flow_time": np.array(chance.time, np.float32),
            "dropout": np.array(chance.dropout, np.int64),
            "augment": chance.augment,
        }
        return laid

    def _now(self, sample: Sample, name: str, at_s: float) -> np.ndarray:
        """A signal at the moment. Raises `UserError` where it was not measured then."""
        (value,), (pad,) = at_times(self.signal(sample, name), [at_s])
        if pad:
            raise UserError(f"signal {name} of {sample.clip_id}", "not measured", f"a value at {at_s:g} s")
        return value

    def _period(self, sample: Sample) -> float:
        """Seconds from an action to the next."""
        if self.flow.rate_hz is not None:
            return 1 / self.flow.rate_hz
        times = self.signal(sample, self.flow.action[0]).time_s
        if len(times) < 2:
            name = f"signal {self.flow.action[0]} of {sample.clip_id}"
            raise UserError(name, f"{len(times)} values", "at least 2", "Or set objective.rate_hz.")
        return float(np.median(np.diff(times)))

    def padding(self) -> Laid:
        """Of the first robot, at rest."""
        laid = self._sequence(".", 0.0)
        laid.signals, laid.weight = self._nothing(self.robots[0]), 0.0
        return laid

    # --- a policy's observation ---------------------------------------------------------------------------------------

    def observe(self, signals: Mapping[str, np.ndarray], pictures: int, instruction: str, embodiment: str = "") -> Laid:
        """A moment in which the robot's state is `signals` (D,) by name, and so many pictures, of `objective.views`, are seen.

        The caller puts them, (M, 3, H, W) uint8 of the backbone's size, into `pictures["image"]` and calls `seen` with trains False. Raises
        `UserError` for a state that lacks a signal or has another size, and for another number of pictures.
        """
        if pictures != len(self.flow.views):
            raise UserError("pictures", pictures, f"{len(self.flow.views)}, of {', '.join(self.flow.views) or 'none'}")
        if lacking := [name for name in self.flow.state if name not in signals]:
            raise UserError("state", ", ".join(sorted(signals)) or "nothing", f"{', '.join(lacking)} as well")
        embodiment = self._named(embodiment)
        for name in self.flow.state:
            if np.shape(signals[name]) != (shape := self.statistics(name, embodiment).shape):
                raise UserError(f"state {name}", np.shape(signals[name]), f"{shape}, as in training")
        laid = self._sequence(render("control", 0, instruction=instruction, seconds=0.0, hands=()), 0.0)
        laid.signals = self._nothing(embodiment) | self._known(signals, embodiment)
        return laid

    def restored(self, actions: np.ndarray, embodiment: str = "") -> np.ndarray:
        """Normalised actions (..., action_dim) -> (..., D) float64 in the robot's units, its action's signals one after another."""
        parts, at = list[np.ndarray](), 0
        for name in self.flow.action:
            of = self.statistics(name, self._named(embodiment))
            flat = actions[..., at : at + of.size]
            parts.append(of.restored(flat.reshape(-1, *of.shape), self.flow.scale).reshape(flat.shape))
            at += of.size
        return np.concatenate(parts, -1)

    def mean_action(self, embodiment: str = "") -> np.ndarray:
        """(D,) over the training rows, in the robot's units."""
        robot = self._named(embodiment)
        return np.concatenate([self.statistics(name, robot).mean for name in self.flow.action])

    def _named(self, embodiment: str) -> str:
        """The only robot where no name is given. Raises `UserError` for one that the run has not; where all rows are one, for none."""
        if not embodiment and len(self.robots) == 1:
            return self.robots[0]
        if self.robots != ("",) and embodiment not in self.robots:
            raise UserError("embodiment", embodiment, f"one of {', '.join(self.robots)}", "See objective.embodiments.")
        return embodiment

    # --- pictures -----------------------------------------------------------------------------------------------------

    def seen(self, laid: Laid, trains: bool) -> None:
        side = self.spec.image_size
        if laid.blind:
            laid.pictures = {"image": np.zeros((0, 3, side, side), np.uint8)}
            return
        if trains and self.flow.augment.on:
            laid.pictures["image"] = augmented(laid.images, laid.signals["augment"], self.flow.augment)
        if self.flow.latents != "none":  # LSP reads the moment's first picture, as the model sees it
            laid.boundaries = [0]
            laid.pictures["frames"] = resized(laid.images[:1], self.spec.frame_size)

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _sequence(self, text: str, at_s: float) -> Laid:
        """Words and pictures; then, where it is read, a chunk of [MASK] for each hand. `state` marks what the head reads."""
        turns, vocab, views = self.turns(), self.spec.vocab, self.flow.views
        turns.ask(text, self.spec.image_tokens, pictures=len(views))
        turns.answer()
        hands = () if self.flow.reads == "all" else tuple(Hand) if self.flow.hands == "both" else (Hand.RIGHT,)
        for hand in hands:
            place = {"block": int(hand), "hand": int(hand)}
            turns.add([vocab.mot_open], **place)
            turns.add([vocab.mask] * vocab.chunk_tokens, k=np.arange(vocab.chunk_tokens), state=1, **place)
            turns.add([vocab.mot_close], **place)
        columns = turns.columns()
        if not hands:
            columns["state"] = np.ones_like(columns["state"])
        return Laid(columns, views={view: (at_s,) for view in views}, blind=not views)

    def _known(self, state: Mapping[str, np.ndarray], robot: str) -> dict[str, np.ndarray]:
        """Signals of a moment, whatever its actions."""
        number = self.robots.index(robot) if self.robots != ("",) else 0
        at_once = {name: state[name][None] for name in self.flow.state}
        return {
            "state": _filled(self._normalised(at_once, robot), self.head.state_dim)[0],
            "dims": self._dims(robot),
            "robot": np.array(number, np.int64),
        }

    def _nothing(self, robot: str) -> dict[str, np.ndarray]:
        """Signals of a sample without a state or actions."""
        steps, size = self.head.horizon, self.head.action_dim
        actions = np.zeros((steps, size), np.float32)
        return {
            "state": np.zeros(self.head.state_dim, np.float32),
            "dims": self._dims(robot),
            "robot": np.array(0, np.int64),
            "action": actions,
            "units": actions,
            "noise": actions,
            "action_is_pad": np.ones(steps, bool),
            "flow_time": np.array(0, np.float32),
            "dropout": np.array(0, np.int64),
            "augment": np.zeros(NUMBERS, np.float32),
        }

    def _normalised(self, values: Mapping[str, np.ndarray], robot: str) -> np.ndarray:
        """Signals (T, ...) one after another -> (T, D) float32."""
        return _joined([self.statistics(name, robot).normalised(x, self.flow.scale) for name, x in values.items()])

    def _dims(self, robot: str) -> np.ndarray:
        """(action_dim,) bool: those that the robot's actions have."""
        size = sum(self.statistics(name, robot).size for name in self.flow.action)
        return np.arange(self.head.action_dim) < size


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Values (T, ...) laid flat, one after another -> (T, D) float32."""
    return np.concatenate([np.asarray(part, np.float32).reshape(len(part), -1) for part in parts], -1)


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """(T, D) -> (T, size), zeros behind. Raises `UserError` where D is larger."""
    if x.shape[1] > size:
        raise UserError(
            "signals", f"{x.shape[1]} numbers", f"at most {size}", "Raise objective.head.action_dim or state_dim."
        )
    return np.pad(x, ((0, 0), (0, size - x.shape[1])))
