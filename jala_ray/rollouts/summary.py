"""What rollouts say: their lines as forms of the real robot's protocol, its scores, and what policy and blind policy differ by."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jala_ray import storage
from jala_ray.evaluation.rollouts.forms import FORMAT, RobotTask, RolloutForm, RolloutRecord, TaskVariant, plain_form
from jala_ray.evaluation.rollouts.scores import Figures, score, share
from jala_ray.rollouts.films import Film
from jala_ray.rollouts.job import Session, outcomes

UNSEEN = {"seen": "As in the demonstrations", "unseen": "Another texture and colour of the table"}


def forms(session: Session, lines: Sequence[Mapping[str, Any]]) -> dict[str, RolloutForm]:
    """One of each arm that has an outcome. A rollout's class of failure is the first subtask that it missed."""
    tasks = tuple(_task(session, name) for name in session.job.tasks)
    found = {}
    for arm in session.job.arms:
        records = tuple(_record(session, line) for line in lines if line["arm"] == arm and "success" in line)
        if records:
            robot = f"{session.job.simulator}, simulated"
            found[arm] = RolloutForm(FORMAT, label(session, arm), tasks, records, "the simulator", robot)
    return found


def label(session: Session, arm: str) -> str:
    return session.job.name if arm == "policy" else f"{session.job.name}, blind" if arm == "blind" else arm


def _task(session: Session, name: str) -> RobotTask:
    told = session.hello["tasks"][name]
    subtasks = tuple(told["subtasks"])
    variants = tuple(TaskVariant(variant, UNSEEN.get(variant, "")) for variant in session.job.variants)
    return RobotTask(name, name, told["instruction"], subtasks, subtasks, variants, session.job.rollouts)


def _record(session: Session, line: Mapping[str, Any]) -> RolloutRecord:
    completed, subtasks = tuple(line["completed"]), session.hello["tasks"][line["task"]]["subtasks"]
    missed = next((name for name, done in zip(subtasks, completed, strict=True) if not done), "")
    return RolloutRecord(line["task"], line["variant"], line["number"], completed, missed, f"seed {line['seed']}")


def summary(session: Session, films: Sequence[Film] = ()) -> dict[str, Any]:
    """All figures, plain values."""
    lines = outcomes(session)
    found = forms(session, lines)
    scores = score([*found.values()]) if found else None
    failed = [line for line in lines if "error" in line]
    return {
        **session.facts(),
        "fps": session.hello["fps"],
        "subtasks": {name: session.hello["tasks"][name]["subtasks"] for name in session.job.tasks},
        "labels": {arm: label(session, arm) for arm in session.job.arms},
        "asked": len(session.trials),
        "done": len(lines) - len(failed),
        "failed": [{"rollout": _named(line), "error": line["error"]} for line in failed],
        "scores": scores,
        "success": {arm: _success(session, lines, arm) for arm in session.job.arms},
        "over_blind": over_blind(session, lines),
        "costs": {arm: _costs([line for line in lines if line["arm"] == arm]) for arm in session.job.arms},
        "films": [vars(film) for film in films],
    }


def _named(line: Mapping[str, Any]) -> str:
    return f"{line['arm']}, {line['task']}, {line['variant']}, {line['number']}"


def _success(session: Session, lines: Sequence[Mapping[str, Any]], arm: str) -> Figures:
    """{task: {variant: share}}, with Wilson's intervals."""
    return {
        task: {variant: _share(lines, arm, task, variant) for variant in session.job.variants}
        for task in session.job.tasks
    }


def _share(lines: Sequence[Mapping[str, Any]], arm: str, task: str, variant: str) -> Figures:
    own = [line for line in lines if (line["arm"], line["task"], line["variant"]) == (arm, task, variant)]
    done = [line["success"] for line in own if "success" in line]
    return share(sum(done), len(done))


def over_blind(session: Session, lines: Sequence[Mapping[str, Any]]) -> Figures:
    """{task: {variant: success of the policy less that of the blind one}}; none where one of the two was not asked for."""
    if not {"policy", "blind"} <= set(session.job.arms):
        return {}
    return {
        task: {
            variant: difference(*(_share(lines, arm, task, variant) for arm in ("policy", "blind")))
            for variant in session.job.variants
        }
        for task in session.job.tasks
    }


def difference(first: Figures, other: Figures) -> Figures:
    """`first` less `other`, shares with Wilson's limits, with Newcombe's interval (1998, method 10), which holds for few rollouts."""
    if first["mean"] is None or other["mean"] is None:
        return {"mean": None, "low": None, "high": None}
    mean = first["mean"] - other["mean"]
    below = math.hypot(first["mean"] - first["low"], other["high"] - other["mean"])
    above = math.hypot(first["high"] - first["mean"], other["mean"] - other["low"])
    return {"mean": mean, "low": mean - below, "high": mean + above}


def _costs(lines: Sequence[Mapping[str, Any]]) -> Figures:
    """Seconds a rollout, a step and a question, over all of an arm's rollouts."""
    done = [line for line in lines if "success" in line]
    steps, asked = sum(line["steps"] for line in done), sum(line["asked"] for line in done)
    seconds, ask_s = sum(line["seconds"] for line in done), sum(line["ask_s"] for line in done)
    return {
        "rollouts": len(done),
        "steps": steps,
        "rollout_s": seconds / len(done) if done else None,
        "step_s": (seconds - ask_s) / steps if steps else None,
        "ask_s": ask_s / asked if asked else None,
    }


def write_forms(session: Session) -> list[str]:
    """The arms' forms, which `jala rollouts score` reads; returns their files."""
    places = []
    for arm, form in forms(session, outcomes(session)).items():
        place = str(session.folder / "forms" / f"{arm}.json")
        storage.write_bytes(place, json.dumps(plain_form(form), indent=1).encode())
        places.append(place)
    return places
