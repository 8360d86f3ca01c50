"""A checkpoint of the objective flow that acts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from jala_ray import storage
from jala_ray.data.samples.flow_recipe import FlowRecipe
from jala_ray.data.samples.layout import Laid
from jala_ray.data.samples.replay import FILE as REPLAY
from jala_ray.data.samples.signals import Statistics
from jala_ray.objectives.flow import Flow
from jala_ray.policy.pictures import as_filmed
from jala_ray.serving.contract import Observation, fitting
from jala_ray.storage import StorageOptions
from jala_ray.training import average, checkpoint, history
from jala_ray.training.device import autocast, best_device, to_device
from jala_ray.types import CheckpointError, ConfigError

VIDEO = "video"
"""How observations name the view "", a clip's own video or a robot set's first camera."""
Weights = Literal["average", "last"]


def load_policy(
    address: str,
    embodiment: str = "",
    options: StorageOptions | None = None,
    device: torch.device | str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    weights: Weights | None = None,
    seed: int = 0,
) -> CheckpointPolicy:
    """The policy of a checkpoint, of a run folder's newest one, or of an export; local or s3://.

    `embodiment`: the robot that it acts for, where the run has learned several. `device`: a GPU where there is one. `precision` of the
    model under the head, which computes in its own: as it was trained on a GPU, fp32 on a CPU. `weights`: the moving average
    (`train.average`) where the checkpoint has one, or the last step's. `seed` decides the noise that actions begin with.

    Raises `ConfigError` for an address without a checkpoint, another objective and an unknown robot, `CheckpointError` for a checkpoint
    that is damaged, has no statistics, or not the weights that are asked for.
    """
    where = history.resolve(storage.absolute(address), options)
    kind = json.loads(storage.read_bytes(storage.join(where, "config.json"), options))["objective"]["kind"]
    if kind != "flow":  # known before gigabytes of weights are read
        raise ConfigError("objective", kind, "flow", f"{where} is no policy: post-train it with `jala posttrain`.")
    files = storage.read_commit(where, options).files if weights is None else {}
    averaged = weights == "average" or any(name.startswith(average.KIND) for name in files)
    loaded = checkpoint.load(where, options, averaged=averaged)
    chosen = best_device() if device is None else torch.device(device)
    told = {"checkpoint": where, "weights": "average" if averaged else "last"}
    return CheckpointPolicy(loaded, embodiment, chosen, precision, seed, told)


class CheckpointPolicy:
    """Holds a loaded checkpoint on a device: `serving.contract.Policy`, with `replay`. One thread at a time."""

    def __init__(
        self,
        loaded: checkpoint.Loaded,
        embodiment: str = "",
        device: torch.device | None = None,
        precision: Literal["fp32", "bf16"] | None = None,
        seed: int = 0,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """`told`: what the metadata says beside. Raises as `load_policy`."""
        if loaded.assets.statistics is None:
            raise CheckpointError("signals.json", None, "the statistics of state and actions", "Start a new run.")
        self.recipe, self.spec = FlowRecipe(loaded.config, loaded.assets), loaded.assets.spec
        self.robot = _robot(embodiment, self.recipe.robots, loaded.assets.statistics)
        self.device, self.seed, self.replays = device or torch.device("cpu"), seed, loaded.assets.replays
        self.precision = precision or (loaded.config.train.precision if self.device.type == "cuda" else "fp32")
        self.learner = loaded.learner.eval().requires_grad_(False).to(self.device)
        self.learner.settle(precision=self.precision, compiled=False)
        objective = self.learner.objective
        assert isinstance(objective, Flow)
        self.flow = objective
        self.cameras = {view or VIDEO: view for view in self.recipe.flow.views}
        self.metadata: dict[str, Any] = self._described(loaded.assets.statistics, loaded.position.step) | dict(
            told or {}
        )

    def _described(self, statistics: Statistics, step: int) -> dict[str, Any]:
        """What clients are told. `fps`: rows a second of the robot's data, None where they do not say; `rate_hz`: actions a second."""
        flow, fps = self.recipe.flow, statistics.fps.get(self.robot)
        widths = {
            kind: {name: self.recipe.statistics(name, self.robot).size for name in names}
            for kind, names in (("state", flow.state), ("action", flow.action))
        }
        facts = {"cameras": list(self.cameras), **widths, "horizon": flow.head.horizon, "embodiment": self.robot}
        facts |= {"fps": fps, "rate_hz": flow.rate_hz or fps, "image_size": self.spec.image_size, "step": step}
        return facts | {"statistics": statistics.fingerprint, "precision": self.precision}

    # --- acting -------------------------------------------------------------------------------------------------------

    def act(self, observation: Observation, state: dict[str, Any] | None = None) -> np.ndarray:
        """(H, A) float32 in the robot's units. `state` counts its asker's calls, by which the noise differs; None: each is the first.

        Raises `UserError` for an observation that lacks a camera or a state, or has another size.
        """
        call = 0 if state is None else state.get("calls", 0)
        if state is not None:
            state["calls"] = call + 1
        noise = np.random.default_rng((self.seed, call)).standard_normal(self._shape, np.float32)
        return self.predicted([self._laid(observation)], noise[None])[0]

    @property
    def _shape(self) -> tuple[int, int]:
        return self.recipe.head.horizon, self.recipe.head.action_dim

    @torch.no_grad()
    def predicted(self, laid: Sequence[Laid], noise: np.ndarray) -> np.ndarray:
        """Moments (S) with their pictures, and noise (S, H, action_dim) -> (S, H, A) float32: one forward pass and the Euler steps."""
        batch, learner = to_device(self.recipe.collate(laid), self.device), self.learner
        with autocast(self.device, self.precision):
            out = learner.vla(batch, self.flow.taps, self.flow.extra(batch, learner.features(batch)))
            made = self.flow.sample(learner.vla, batch, out, torch.from_numpy(noise).to(self.device))
        return self.recipe.restored(made.double().cpu().numpy(), self.robot).astype(np.float32)

    def _laid(self, observation: Observation) -> Laid:
        fitting(observation, self.metadata)
        laid = self.recipe.observe(observation.state, len(self.cameras), observation.instruction, self.robot)
        if self.cameras:
            laid.pictures["image"] = np.stack(list(self.seen(observation).values()))
        self.recipe.seen(laid, trains=False)
        return laid

    def seen(self, observation: Observation) -> dict[str, np.ndarray]:
        """(3, side, side) uint8 by camera: what the model is shown, of an observation that has its cameras."""
        return {name: as_filmed(observation.pictures[name], self.spec.image_size) for name in self.cameras}

    # --- proof --------------------------------------------------------------------------------------------------------

    def replay(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of training rows, kept at the run's start: (N, A + S) actions as the data set has them and normalised states as the data
        path made them; the same of the normalised actions, restored, and of the states, as this policy reads them. Raises `ConfigError`.
        """
        if self.robot not in self.replays:
            remedy = "Nothing shows that its actions come back in the robot's units: start a new run."
            raise ConfigError(
                REPLAY, ", ".join(self.replays) or "none", f"training rows of {self.robot or 'the robot'}", remedy
            )
        kept = self.replays[self.robot]
        restored = self.recipe.restored(kept.action_normalised, self.robot)
        names, sizes = zip(*self.metadata["state"].items(), strict=True)
        parts = np.split(kept.state, np.cumsum(sizes)[:-1], axis=1)
        observed = [
            self.recipe.observe(dict(zip(names, one, strict=True)), len(self.cameras), "Go.", self.robot).signals[
                "state"
            ]
            for one in zip(*parts, strict=True)
        ]
        expected = np.concatenate([kept.action, kept.state_normalised], 1)
        return expected, np.concatenate([restored, np.stack(observed)[:, : kept.state.shape[1]]], 1)


def _robot(asked: str, known: Sequence[str], statistics: Statistics) -> str:
    """Of those that the run has learned. Raises `ConfigError`."""
    learned = [name for name in known if not name or any(key.startswith(f"{name}:") for key in statistics.signals)]
    learned = learned or list(known)  # a manifest's robots share their statistics
    if not asked and len(learned) == 1:
        return learned[0]
    if asked not in learned or not asked:
        expected = ", ".join(name for name in learned if name) or "none: the run has one robot, without a name"
        raise ConfigError("embodiment", asked, f"one of {expected}" if any(learned) else expected)
    return asked
