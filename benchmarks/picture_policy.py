"""Does a small policy that learns from 50 demonstrations look? In Meta-World, beside one that sees nothing, on two tasks chosen beforehand.

`python benchmarks/picture_policy.py --out runs/picture [--camera gripper|corner] [--candidates TASK ...] [--steps N] [--seed S]`, after
`jala rollouts setup metaworld`. A stage that is done is not done again, so the same command continues. Stages:

1. `record`: 50 demonstrations of the scripted expert for each candidate, 128 px, one camera, with noise on what is executed;
2. `unseeing`: a policy of words and state alone for each, and 100 rollouts. Candidates are those whose expert succeeds in at least 95 %
   (docs/results/metaworld_experts.json); the first two, in the order given, where the policy that sees nothing has at most 35 % are
   chosen;
3. `seeing`: for each of the two a policy that sees the camera at 112 px; language model, vision tower and head learn from random weights;
4. `judged`: 100 rollouts of each, beside the same policy with black pictures.

JSON: {"chosen": [...], "unseeing": {TASK: n}, "minutes": {TASK: x}, "success": {TASK: {"policy": n, "black": n, "unseeing": n}},
"over_unseeing": {TASK: [low, middle, high]}}, intervals of Newcombe at 95 %. Seeds of demonstrations are 10,000 and up, those of rollouts 0
and up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.form import report
from jala_ray.rollouts.summary import difference

ROOT = Path(__file__).resolve().parents[1]
EXPERTS = ROOT / "docs/results/metaworld_experts.json"
CANDIDATES = ("button-press-v3", "drawer-open-v3", "reach-v3", "push-v3", "window-open-v3", "door-open-v3")
ROBOT = "sawyer"
EPISODES, ROLLOUTS, BLIND = 50, 100, 0.35
MODEL = {
    "model.backbone.image-size": 112,
    "model.backbone.vision.hidden": 96,
    "model.backbone.vision.layers": 3,
    "objective.layer": 4,
    "objective.reads": "all",
    "objective.latents": "none",
    "objective.learns": "all",
    "objective.head.width": 128,
    "objective.head.hidden": 64,
    "objective.head.horizon": 16,
    "objective.head.dropout": 0.0,
    "objective.augment.rotation": 0.0,
    "objective.augment.brightness": 0.1,
    "objective.augment.contrast": 0.1,
    "objective.augment.saturation": 0.1,
    "objective.augment.hue": 0.02,
}
"""Beside the preset tiny_libero_spatial."""
LEARNING = {"optim.lr": 1e-3, "train.batch": 32, "train.micro-batch": 32, "train.average": 0.999, "data.workers": 1}


def jala(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "jala_ray", *map(str, words)], check=True, cwd=ROOT)


def once(out: Path, work: Any) -> Any:
    """What a stage's file holds, after the stage's work where there is none yet."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(work(), indent=1))
    return json.loads(out.read_text())


def timed(*words: object) -> dict[str, float]:
    began = time.perf_counter()
    jala(*words)
    return {"minutes": (time.perf_counter() - began) / 60}


@dataclass(frozen=True)
class Trial:
    """A policy of one kind, taught and judged on one task."""

    root: Path
    task: str
    kind: Literal["unseeing", "seeing"]
    camera: str
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """What never sees has one policy for all cameras."""
        camera = (self.camera,) if self.kind == "seeing" else ()
        return "-".join((self.kind, *camera, self.task, str(self.seed)))

    @property
    def view(self) -> str:
        return f"observation.images.{self.camera}"

    def done(self) -> dict[str, Any]:
        """Teach and judge; minutes of teaching, and successes of the policy and of the same with black pictures with Wilson's intervals."""
        stages = self.root / "stages"
        return once(stages / f"{self.name}.json", self.taught) | once(stages / f"judged-{self.name}.json", self.judged)

    def demonstrations(self) -> Path:
        out = self.root / "sets" / f"{self.task}-{self.camera}"
        what = ("--tasks", self.task, "--episodes", EPISODES, "--size", 128, "--cameras", self.view, "--noise", 0.2)
        once(self.root / "stages" / f"record-{out.name}.json", lambda: timed("rollouts", "record", *what, "--out", out))
        return out

    def taught(self) -> dict[str, float]:
        views = ("--objective.views", *((self.view,) if self.kind == "seeing" else ()))
        settings = [word for key, value in (MODEL | LEARNING).items() for word in (f"--{key}", value)]
        settings += ["--data.robot-sets", self.demonstrations(), ROBOT, "--seed", self.seed]
        settings += ["--train.steps", self.steps, "--train.checkpoint-every", self.steps]
        settings += ["--train.validate-every", max(1, self.steps // 4), "--train.evaluate"]
        place = ["--name", self.name, "--storage.root", self.root / "runs", "--log.tensorboard", "False"]
        return timed("posttrain", "tiny_libero_spatial", "--local", *place, *settings, *views)

    def judged(self) -> dict[str, dict[str, float]]:
        policy, out = self.root / "runs" / self.name, self.root / "rollouts" / self.name
        words = ("--tasks", self.task, "--rollouts", ROLLOUTS, "--size", 128, "--cameras", self.view, "--out", out)
        jala("rollouts", "run", policy, *words, "--workers", 1, "--videos", 1)
        found = json.loads((out / "scores.json").read_text())["success"]
        return {arm: found[arm][self.task]["seen"] for arm in ("policy", "blind")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--camera", choices=("gripper", "corner"), default="gripper")
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--blind-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    root, camera, seed = asked.out.absolute(), asked.camera, asked.seed
    able = json.loads(EXPERTS.read_text())["expert_at_least_95_percent"]
    blind, chosen = dict[str, Any](), list[str]()
    for task in (task for task in asked.candidates if task in able):
        blind[task] = Trial(root, task, "unseeing", camera, asked.blind_steps, seed).done()["policy"]
        print(f"{task}: {blind[task]['count']} of {ROLLOUTS} without pictures", flush=True)
        chosen = [task for task, own in blind.items() if own["mean"] <= BLIND][:2]
        if len(chosen) == 2:
            break
    found = {task: Trial(root, task, "seeing", camera, asked.steps, seed).done() for task in chosen}
    success = {
        task: {"policy": own["policy"]["count"], "black": own["blind"]["count"], "unseeing": blind[task]["count"]}
        for task, own in found.items()
    }
    over = {task: rounded(difference(own["policy"], blind[task])) for task, own in found.items()}
    rows = [(task, *own.values(), over[task], f"{found[task]['minutes']:.1f}") for task, own in success.items()]
    minutes = {task: round(own["minutes"], 1) for task, own in found.items()}
    never = {task: own["count"] for task, own in blind.items()}
    figures = {"chosen": chosen, "unseeing": never, "minutes": minutes, "success": success, "over_unseeing": over}
    header = ("task", "policy", "black pictures", "never saw", "over never saw", "minutes")
    report(f"successes of {ROLLOUTS}", header, rows, figures)


def rounded(found: Mapping[str, Any]) -> list[float]:
    """[low, middle, high]."""
    return [round(found[name], 3) for name in ("low", "mean", "high")]


if __name__ == "__main__":
    main()
