"""Every command that the documents print, run as printed in a folder that holds small stand-ins for what they name.

In a newcomer's order, so that one command's output is the next one's input; a test that runs alone runs what comes before it. Steps and
trials are cut short by what is appended to a command. What cannot be run is listed in `tests/documents.py`.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jala_ray.data.adapters.base import split_of
from jala_ray.data.manifest.table import Manifest, validate, write_manifest
from jala_ray.data.synthetic import WorldConfig, generate
from jala_ray.training.history import newest
from jala_ray.video.write import write_mp4
from tests.documents import ROOT, Printed, blocks, command_of, printed
from tests.end_to_end.conftest import World
from tests.faults.processes import Command
from tests.ray_start import local_ray

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

SHORT_STEPS = "--train.batch 4 --train.micro-batch 2 --train.log-every 1 --train.val-samples 2 --data.workers 0 --log.tensorboard False"
SHORT_RUN = f"{SHORT_STEPS} --train.steps 2 --train.checkpoint-every 2 --train.validate-every 2 --train.monitor-every 2"
ONE_WORKER = "--cluster.workers 1 --cluster.cpus-per-worker 0.4"
SHORT = {
    "pretrain": f"{SHORT_RUN} {ONE_WORKER}",
    "tokenizer": f"{ONE_WORKER} --train.steps 2 --train.batch 8 --allow-collapse True --log.tensorboard False",
    "prepare": "--short-side 48 --preset ultrafast --local",
    "generate": "--passes 1 --ensemble 1",
    "evaluate": "--samples 1 --passes 1 --ensemble 1 --no-latents --videos 1",
    "study": f"{SHORT_RUN} --local --rows dino --seeds 1 --samples 1 --generation.passes 1 --generation.ensemble 1",
    "sweep": f"{SHORT_STEPS} {ONE_WORKER} --train.steps 4 --trials 1 --report-every 2 --no-cache",
}
"""Command -> what is appended to it."""
COMMANDS = [command for command in printed() if command.why_not is None]
THROUGH_RAY = "my_run"
"""One run goes through Ray. The others of `jala pretrain` take the same words through the same loop without it."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout, with the inputs that a newcomer has."""
    here = tmp_path_factory.mktemp("newcomer")
    for name in ("jobs", "tune", "infra", "jala_ray"):
        (here / name).symlink_to(ROOT / name)
    (here / "my_videos").mkdir()
    names = [f"{i}.mp4" for i in range(100)]
    held_out = next(name for name in names if split_of(name, 0.1) == "val")  # as one is in ten
    for i, name in enumerate(["a.mp4", "b.mp4", held_out]):
        frames = (np.full((48, 64, 3), 40 * i + j, np.uint8) for j in range(15 * 7))
        write_mp4(here / "my_videos" / name, frames, 15)
    caption = {"file": "a.mp4", "start": 2.0, "end": 6.5, "text": "Pour the water."}
    (here / "captions.jsonl").write_text(json.dumps(caption) + "\n")
    made = WorldConfig(lab_train=4, wild_train=0, lab_val=2, wild_val=1, width=64, height=48, seconds=(1.0, 1.5))
    lab = Manifest(generate(here / "lab", made))
    write_manifest(lab, here / "lab_manifest")
    own = (clip for clip in lab if clip.task_type == "generation")  # as the guide's adapter makes them
    write_manifest(
        (replace(clip, clip_id=f"s{clip.clip_id}", source="studio") for clip in own), here / "studio_manifest"
    )
    labelled = (clip for clip in lab if len(clip.pose_time_s))
    write_manifest((replace(clip, video_uri=None, packets=None) for clip in labelled), here / "arctic.parquet")
    Image.new("RGB", (64, 48), "grey").save(here / "kitchen.jpg")
    words = ["--name", "demo/pretrain", "--data.manifest", "lab_manifest", "--motion-tokenizer", world.tokenizer]
    demo = ["-m", "jala_ray.training.local", "tiny", *words, *SHORT_RUN.split()]
    with Command.start(demo, {}, here / "demo.log", folder=here) as done:
        assert done.wait() == 0, done.output
    as_if(here, "demo/pretrain", 180)
    return here


def as_if(folder: Path, run: str, step: int) -> None:
    """A run's checkpoint under the name that the documents print."""
    made = newest(str(folder / "runs" / run))
    assert made is not None
    shutil.copytree(made, folder / f"runs/{run}/checkpoints/step-{step:08d}")


def in_short(command: Printed, folder: Path) -> list[str]:
    """What follows `python`."""
    words = [word.replace("$PWD", str(folder)) for word in command.words]
    name, _ = command_of(words)
    asked = ["-m", "jala_ray", *words[1:]] if words[0] == "jala" else words[1:]
    alone = name == "pretrain" and not {THROUGH_RAY, "--local", "--dry-run", "jala_ray.training.local"} & {*words}
    return [*asked, *SHORT.get(name, "").split(), *(["--local"] if alone else [])]


@dataclass
class Newcomer:
    """Runs the printed commands in `folder`, in their order and each once."""

    folder: Path
    cluster: str
    logs: Path
    done: dict[Printed, Command] = field(default_factory=dict)

    def until(self, last: Printed) -> Command:
        """Run a command and all before it that have not been run; returns it, ended."""
        for command in COMMANDS[: COMMANDS.index(last) + 1]:
            if command not in self.done:
                words, log = in_short(command, self.folder), self.logs / f"{len(self.done)}.log"
                with Command.start(words, {"RAY_ADDRESS": self.cluster}, log, folder=self.folder) as running:
                    self.done[command] = running
                    running.wait(600)
        return self.done[last]


@pytest.fixture(scope="module")
def newcomer(folder: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    return Newcomer(folder, cluster, tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_printed_command_works(command: Printed, newcomer: Newcomer) -> None:
    done = newcomer.until(command)
    assert done.rc == 0, done.output
    assert not re.search(r"^Traceback", done.output, re.MULTILINE), (
        done.output
    )  # Ray's own processes put their names before it


def test_what_they_leave_can_be_used(newcomer: Newcomer, folder: Path) -> None:
    """After all of them: manifests whose videos open, and reports."""
    newcomer.until(COMMANDS[-1])
    for name in ("my_manifest", "all_manifest", "my_set", "lab_set"):
        assert validate(folder / name, videos="all") == [] and len(Manifest(folder / name)), name
    for page in (
        "all_manifest/inspect.html",
        "runs/my_run/report.html",
        "my_evaluation/report.html",
        "runs/my_sweep/report.html",
    ):
        assert (folder / page).is_file(), page


def test_the_printed_code_reads_a_run(
    newcomer: Newcomer, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    newcomer.until(next(command for command in COMMANDS if THROUGH_RAY in command.words))
    as_if(folder, "my_run", 300)
    monkeypatch.chdir(folder)
    made = {}
    for document in ("README.md", "docs/guides/evaluate.md"):
        code = blocks(ROOT / document, "python")[
            0
        ]  # of others in a guide, those that are written into files have tests of their own
        (tmp_path / "printed.py").write_text(code)
        made |= runpy.run_path(str(tmp_path / "printed.py"))
    assert made["loaded"].config.name == "demo/pretrain" and made["joints"].shape == (45, 21, 3)
