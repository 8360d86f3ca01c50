"""Rows, padding and pictures are those of lerobot's own reader, which runs in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jala_ray.data.robots.films import Films, shots_of
from jala_ray.data.robots.source import RobotSource
from jala_ray.data.samples.signals import at_times
from jala_ray.data.samples.source import Sample
from tests.data.robots import oracle
from tests.data.robots.made import DEPTH, FEATURES, FRONT, WRIST, opened, rows_of, write_set

LEROBOT = "lerobot==0.6.1"
BESIDE = (
    *("torch", "torchvision", "numpy", "av<16", "datasets", "pandas", "pyarrow", "huggingface-hub", "einops", "pillow"),
    *(
        "draccus",
        "gymnasium",
        "opencv-python-headless",
        "safetensors",
        "packaging",
        "termcolor",
        "tqdm",
        "requests",
        "jsonlines",
    ),
)
"""What its reader imports. With its own bounds a resolver takes another torch: it is installed without its dependencies."""


def make(*words: str | Path) -> None:
    """Run a command; the test is skipped, with the reason, where it can't be."""
    surroundings = {**os.environ, "PYTHONPATH": "", "PYENV_VERSION": os.environ.get("PYENV_VERSION", "3.12")}
    found = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=surroundings)
    if found.returncode:
        pytest.skip(f"no environment for {LEROBOT}: {' '.join(map(str, words[:4]))}: {found.stderr[-1500:]}")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with lerobot: `LEROBOT_PYTHON`, or made anew."""
    if "LEROBOT_PYTHON" in os.environ:
        return Path(os.environ["LEROBOT_PYTHON"])
    folder, uv = tmp_path_factory.mktemp("lerobot") / "venv", Path(sys.executable).with_name("uv")
    make(uv, "venv", "--no-python-downloads", "--python", "python3.12", folder)
    make(uv, "pip", "install", "--python", folder / "bin/python", *BESIDE)
    make(uv, "pip", "install", "--python", folder / "bin/python", "--no-deps", LEROBOT)
    return folder / "bin/python"


def compared(source: RobotSource, camera: str, chosen: list[int], python: Path, tmp_path: Path) -> int:
    """Assert that samples are lerobot's; the largest difference of their pictures, of 255."""
    rows, of, films, most = rows_of(source.sets), source.sets.sets[0], Films(), 0
    words = [python, oracle.__file__, of.base, camera, tmp_path / "o.npz", *chosen]
    subprocess.run([str(word) for word in words], check=True, env={**os.environ, "PYTHONPATH": ""})
    theirs = np.load(tmp_path / "o.npz")
    assert int(theirs["length"]) == len(rows)
    for i, sample in enumerate(source.samples([rows[index] for index in chosen])):
        assert isinstance(sample, Sample) and sample.at_s is not None
        at = source.sets.anchor(sample.row)
        place = (int(theirs["episode"][i]), int(theirs["frame"][i]), int(theirs["index"][i]))
        assert place == (at.episode, at.frame, chosen[i]) and str(theirs["task"][i]) == sample.instructions[0]
        times = sample.at_s + np.array(oracle.DELTAS) / of.info.fps
        action, pad = at_times(sample.signals["action"], times)
        np.testing.assert_array_equal(action, theirs["action"][i])
        np.testing.assert_array_equal(pad, theirs["action_is_pad"][i])
        state, _ = at_times(sample.signals["observation.state"], [sample.at_s])
        np.testing.assert_array_equal(state[0].astype(np.float32), theirs["state"][i])  # lerobot's are all float32
        shots = shots_of(of, at.episode, camera, [sample.at_s])
        (picture,) = films.pictures(films.visit(shots[0].film, shots), None).values()
        assert isinstance(picture, np.ndarray)
        most = max(most, int(np.abs(picture.astype(int) - theirs["picture"][i].astype(int)).max()))
    print(f"{of.name}, {camera}: {len(chosen)} rows, pictures within {most} levels of 255")
    return most


@pytest.mark.slow
def test_samples_of_a_real_set_are_lerobot_s(shared_data: Path, python: Path, tmp_path: Path) -> None:
    folder = shared_data / "g1_inspire_v30"
    if not folder.is_dir():
        pytest.skip("g1_inspire_v30 is absent")
    ends = [end + off for end in (0, 221, 498, 765, 1025) for off in (-2, -1, 0, 1)]
    chosen = sorted({i for i in [*ends, *range(0, 1025, 13)] if 0 <= i < 1025})
    assert compared(opened(folder), "observation.images.cam_high", chosen, python, tmp_path) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("camera", [FRONT, WRIST])
def test_samples_of_several_files_are_lerobot_s(python: Path, tmp_path: Path, camera: str) -> None:
    """Every frame of five episodes in two data files, one camera in two films and the other in one."""
    read = {name: one for name, one in FEATURES.items() if name != DEPTH}
    source = opened(write_set(tmp_path / "made", "v3.0", features=read))
    assert compared(source, camera, list(range(55)), python, tmp_path) <= 1
