"""docs/guides/fifty_demonstrations.md, line by line in its order, on small data: the model is tiny, and steps and rollouts are few."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jala_ray import storage
from jala_ray.commands import shell
from jala_ray.data.robots.sets import open_set
from jala_ray.parsing import override, to_dict
from jala_ray.presets import PRESETS
from jala_ray.rollouts import workers
from jala_ray.storage import StorageOptions
from jala_ray.training import checkpoint
from jala_ray.training.build import build_assets, build_learner
from jala_ray.training.checkpoint import Position
from jala_ray.training.local_head import free_ports
from tests.documents import FENCE, NOT_RUN, ROOT
from tests.support import make_assets, small
from tests.training.test_loop import rows

GUIDE = ROOT / "docs/guides/fifty_demonstrations.md"
WORLD = Path(__file__).with_name("pick_world.py")
TAKES, LENGTH, SIDE, STEPS, WORDS = 12, 14, 64, 4, 400
PRINTED = "libero_spatial", "ws://127.0.0.1:8000"
"""What is another thing here: a preset of the same fields, and a port that is free."""
EVERY = " ".join(f"--train.{name}-every {STEPS}" for name in ("checkpoint", "validate", "monitor"))
SHORT = {
    "posttrain": f"--local --train.steps {STEPS} --train.log-every 1 {EVERY} --train.evaluate action_error {STEPS}",
    "rollouts run": "--rollouts 2 --videos 1 --size 64 --answer-s 60",
    "serve": "--port {port}",
}
"""Command -> what is appended to it."""


def script() -> list[tuple[str, str]]:
    """(language, text) of every block of the guide; of a shell's, one for every command."""
    found = []
    for language, body in FENCE.findall(GUIDE.read_text()):
        lines = body.replace("\\\n", " ").splitlines() if language == "bash" else [body]
        found += [(language, line) for line in lines]
    return found


@dataclass
class Walk:
    """Goes through the page in a folder."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports(1)[0])
    said: dict[str, str] = field(default_factory=dict)
    """What every command printed."""
    space: dict[str, Any] = field(default_factory=dict)
    """What its Python has."""
    server: subprocess.Popen[str] | None = None

    def go(self) -> None:
        for language, text in script():
            getattr(self, f"_{language}")(text)

    def _python(self, text: str) -> None:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(text.replace(PRINTED[1], f"ws://127.0.0.1:{self.port}"), self.space)
        self.said[text] = out.getvalue()

    def _json(self, text: str) -> None:
        """Under the name that the lines before it give."""
        before = GUIDE.read_text().partition(text)[0]
        (self.folder / re.findall(r"`(\w+\.json)`", before)[-1]).write_text(text)

    def _bash(self, line: str) -> None:
        words = shlex.split(line)
        assert words.pop(0) == "jala", line
        named = {PRINTED[0]: "tiny.json", PRINTED[1]: f"ws://127.0.0.1:{self.port}"}
        words = [named.get(word, word) for word in words]
        short = next((more for name, more in SHORT.items() if line.startswith(f"jala {name} ")), "")
        words += short.format(port=self.port).split()
        if words[0] == "serve":
            self.said[line] = self._serve(words)
            return
        if words[:2] == ["rollouts", "score"]:
            people(self.folder)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert shell.main(words) == 0, line
        self.said[line] = out.getvalue()

    def _serve(self, words: list[str]) -> str:
        """As a user does; until the end of the page."""
        command, environment = [sys.executable, "-m", "jala_ray", *words], os.environ | {"PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment)
        assert self.server.stdout is not None
        said = ""
        while "serving at" not in said:
            line = self.server.stdout.readline()
            assert line, said
            said += line
        return said

    def told(self, beginning: str) -> str:
        (found,) = (said for line, said in self.said.items() if line.startswith(beginning))
        return found


def people(folder: Path) -> None:
    """What raters saved: the policy's rollouts, and its control's."""
    (task,) = json.loads((folder / "pick_tasks.json").read_text())["tasks"]
    for policy, whole in (("pick", 7), ("pick_control", 3)):
        done = [
            {"task": "pick", "variant": variant["name"], "number": number, "completed": [True, True, number <= whole]}
            | {"failure": "" if number <= whole else "dropped"}
            for variant in task["variants"]
            for number in range(1, task["rollouts"] + 1)
        ]
        form = {"format": "jala rollouts 1", "policy": policy, "tasks": [task], "rollouts": done}
        (folder / f"rollouts_{policy}.json").write_text(json.dumps(form))


def record(folder: Path, world: dict[str, Any]) -> None:
    """Takes of the expert, as somebody has recorded them."""
    (folder / "takes").mkdir()
    for number in range(TAKES):
        rng, joints = np.random.default_rng(100 + number), np.zeros(world["JOINTS"], np.float32)
        cube, states, actions, pictures = rng.uniform(-0.8, 0.8, 2), [], [], []
        for _ in range(LENGTH):
            pictures.append(world["seen"](SIDE, joints, cube))
            states.append(joints)
            actions.append(world["commanded"](joints, cube))
            joints = joints + actions[-1]
        seen = {name: np.stack([one[f"observation.images.{name}"] for one in pictures]) for name in ("front", "wrist")}
        take = {"state": np.stack(states), "action": np.stack(actions), "task": np.array("Pick the cube."), **seen}
        np.savez(folder / f"takes/{number:03}.npz", allow_pickle=False, **take)


def pretrain(folder: Path) -> None:
    """A motion tokenizer, and a run whose objective is JALA's, as of its beginning."""
    motion = make_assets(small()).motion
    assert motion is not None
    motion.save(folder / "runs/my_tokenizer")
    sizes = {"motion_tokenizer": str(folder / "runs/my_tokenizer"), "model.text.vocab_size": WORDS}
    config = override(small(PRESETS["tiny"], seed=11), sizes)
    assets = build_assets(config, folder / "scratch")
    checkpoint.write(folder / "made", config, build_learner(config, assets), assets, None, Position())
    storage.upload_dir(folder / "made", str(folder / "runs/my_run/checkpoints/step-00000010"), StorageOptions())


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder, before = tmp_path_factory.mktemp("fifty"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(workers.__file__).parent))
        record(folder, runpy.run_path(str(WORLD)))
    (folder / "pick_world.py").write_text(WORLD.read_text())
    pretrain(folder)
    few = {"train__batch": 4, "train__micro_batch": 4, "train__val_samples": 4, "data__workers": 0}
    sizes = {"model__text__vocab_size": WORDS, "data__manifest": "", "log__tensorboard": False}
    config = small(PRESETS[f"tiny_{PRINTED[0]}"], **few, **sizes)
    (folder / "tiny.json").write_text(json.dumps(to_dict(config)))
    found = Walk(folder)
    os.chdir(folder)
    try:
        found.go()
        yield found
    finally:
        os.chdir(before)
        if found.server is not None:
            found.server.kill()
            found.server.communicate()


def test_recordings_became_a_data_set(walk: Walk) -> None:
    of = open_set(str(walk.folder / "sets/pick"), "arm")
    assert of.cameras == ("observation.images.front", "observation.images.wrist") and of.info.fps == 10
    assert len(of.episodes) == TAKES and of.tasks == {0: "Pick the cube."}
    assert (walk.folder / "runs/pick.inspect.html").is_file()


def test_cost_is_told_before(walk: Walk) -> None:
    said = walk.told("jala posttrain libero_spatial --dry-run")
    assert "memory per GPU (computed)" in said and "a GPU of 24 GB" in said and f"steps {STEPS}," in said


def test_the_policy_begins_with_what_was_pretrained_and_the_control_does_not(walk: Walk) -> None:
    policy = walk.told("jala posttrain libero_spatial --name pick --init")
    assert "taken: encoder, vla, objective.lsp; new: objective.head" in policy
    assert "taken:" not in walk.told("jala posttrain libero_spatial --name pick_control")
    one, other = (rows(str(walk.folder / "runs" / name)) for name in ("pick", "pick_control"))
    assert len(one) == len(other) == STEPS and one[0]["rows_digest"] == other[0]["rows_digest"]
    assert one[0]["loss_flow"] != other[0]["loss_flow"]
    assert one[-1].keys() >= {"val/robot/loss_flow", *(f"eval/action_error/robot/{n}" for n in ("model", "blind"))}


def test_figures_that_the_page_explains_are_there(walk: Walk) -> None:
    text = GUIDE.read_text()
    for name in ("pick_openloop", "control_openloop"):
        found = json.loads((walk.folder / "runs" / name / "openloop.json").read_text())
        assert {"policy", "blind", "stateless"} <= found["rows"].keys() and found["episodes"] >= 1
    for name in re.findall(r"`((?:val|loss_flow)[\w/]*)`", text):
        assert name in rows(str(walk.folder / "runs/pick"))[-1], name
    assert "Only" in walk.told("jala openloop runs/pick_openloop"), "held-out episodes are few, and it says so"


def test_a_client_was_answered(walk: Walk) -> None:
    assert "normalisation: training rows come back as they were" in walk.told("jala serve")
    assert walk.space["chunk"].shape[1] == 7 and np.isfinite(walk.space["chunk"]).all()
    assert walk.told("import numpy as np\n\nfrom jala_ray.serving").startswith("off by [")
    assert walk.server is not None and walk.server.poll() is None
    walk.server.send_signal(signal.SIGTERM)
    assert walk.server.wait(60) == 0


def test_rollouts_were_counted(walk: Walk) -> None:
    found = json.loads((walk.folder / "runs/pick_rollouts/scores.json").read_text())["success"]
    assert {arm: own["pick"]["seen"]["of"] for arm, own in found.items()} == {"policy": 2, "blind": 2}
    scores = json.loads((walk.folder / "runs/pick_scores/scores.json").read_text())
    success = {name: own["tasks"]["pick"]["seen"]["success"]["count"] for name, own in scores["policies"].items()}
    assert success == {"pick": 7, "pick_control": 3} and "pick_control" in scores["against"]
    assert "beside the cube" in (walk.folder / "runs/form_pick.html").read_text()


def test_no_line_of_it_is_left_out() -> None:
    """Every block has a language that is run, and no other test is said to run its commands."""
    assert {language for language, _ in script()} == {"bash", "json", "python"}
    assert all("test_fifty.py" in NOT_RUN[name] for name in ("jala posttrain", "jala openloop", "jala serve"))
