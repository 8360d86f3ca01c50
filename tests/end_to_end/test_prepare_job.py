"""The preparation job as it is run: through Ray, killed and started again, from bucket to bucket, in a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jala_ray import storage
from jala_ray.data.manifest.table import Manifest, validate
from jala_ray.types import ConfigError
from jala_ray.video.write import write_mp4
from jobs.prepare import main
from tests import ray_start
from tests.end_to_end.test_s3 import bucket as bucket
from tests.video.numbered import numbered

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = 10
SETTINGS = ["--short-side", "64", "--preset", "ultrafast"]


def job(folder: object, out: object, *options: str, status: int = 0) -> str:
    """The job in this process, without Ray: what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["--folder", str(folder), "--out", str(out), *SETTINGS, "--local", *options]) == status
    return said.getvalue()


def command(folder: object, out: object, *options: str) -> list[str]:
    """The job through Ray."""
    return [sys.executable, "jobs/prepare.py", "--folder", str(folder), "--out", str(out), *SETTINGS, *options]


def through_ray(words: list[str], address: str) -> str:
    environment = os.environ | {"RAY_ADDRESS": address}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def videos_and_rows(out: str | Path, options: storage.StorageOptions | None = None) -> dict[str, bytes]:
    names = [name for name in storage.list_files(out, options) if name.endswith((".mp4", ".rows"))]
    return {name: storage.read_bytes(storage.join(out, name), options) for name in names}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray with 2 CPUs, by its address; tasks inherit its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            name for name in os.environ if name.startswith(("AWS_", "RAY_")) and name not in ray_start.SETTINGS
        ]:
            patch.delenv(name)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        with ray_start.local_ray() as address:
            yield address


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 7 s, one of them cut off."""
    folder = tmp_path_factory.mktemp("raw")
    for i in range(VIDEOS):
        write_mp4(folder / f"{i}.mp4", numbered(210), 30, crf=18 + i, preset="ultrafast")
    (folder / "3.mp4").write_bytes((folder / "3.mp4").read_bytes()[:-4000])
    return folder


@pytest.fixture(scope="module")
def unbroken(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set, made in one go."""
    out = tmp_path_factory.mktemp("unbroken") / "set"
    said = job(raw, out)
    assert f"{VIDEOS} videos, {VIDEOS} of them to be done" in said and "\n100% | 10/10, 20 clips, 1 set aside" in said
    assert f"{raw}/3.mp4: frames from 5.50 to 7.00 s: got" in said
    assert validate(out) == []
    return out


def kill_halfway(words: list[str], out: str | Path, options: storage.StorageOptions | None = None, **more: str) -> int:
    """SIGKILL the job when it has left three parts; returns how many it left. Tasks on Ray must end with it."""

    def parts() -> int:
        return sum(bool(re.fullmatch(r"_parts/\w+\.parquet", name)) for name in storage.list_files(out, options))

    process = subprocess.Popen(words, env=os.environ | more, cwd=ROOT, stdout=subprocess.DEVNULL)
    at_work = set[psutil.Process]()
    while parts() < 3:
        assert process.poll() is None, "it ended, see its errors above"
        at_work |= workers()
        time.sleep(0.1 if at_work else 0.03)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(at_work, timeout=60)
    assert not alive and bool(at_work) == ("RAY_ADDRESS" in more)
    assert 3 <= parts() < VIDEOS and not any(name.startswith("part-") for name in storage.list_files(out, options))
    return parts()


def workers() -> set[psutil.Process]:
    """Processes in which pieces are being done; the cluster's are this process's children."""
    family = psutil.Process().children(recursive=True)
    return {process for process in family if process.name().startswith("ray::MapBatches")}


def check_alike(out: str | Path, unbroken: Path, options: storage.StorageOptions | None = None) -> None:
    assert videos_and_rows(out, options) == videos_and_rows(unbroken)
    assert Manifest(out, options).index.equals(Manifest(unbroken).index) and validate(out, options) == []
    assert storage.read_bytes(f"{out}/summary.json", options) == (unbroken / "summary.json").read_bytes()


def test_a_killed_job_goes_on_where_it_was(raw: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    done = kill_halfway(command(raw, out, "--local"), out)
    assert f"{VIDEOS} videos, {VIDEOS - done} of them to be done" in job(raw, out)
    check_alike(out, unbroken)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert f"{VIDEOS} videos, 0 of them to be done" in job(raw, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.cluster
def test_from_bucket_to_bucket_through_ray(raw: Path, unbroken: Path, cluster: str, bucket: str) -> None:
    """Killed halfway and run again; workers learn the store's place from the job alone."""
    options = storage.StorageOptions(endpoint_url=bucket)
    for path in raw.iterdir():
        storage.write_bytes(f"s3://lab/raw/{path.name}", path.read_bytes(), options)
    place = ("s3://lab/raw/", "s3://lab/set/", "--storage.endpoint-url", bucket)
    done = kill_halfway(command(*place), "s3://lab/set", options, RAY_ADDRESS=cluster)
    said = through_ray(command(*place), cluster)
    assert f"{VIDEOS} videos, {VIDEOS - done} of them to be done" in said and "\n100% | " in said
    assert "s3://lab/raw/3.mp4: frames from 5.50 to 7.00 s: got" in said
    check_alike("s3://lab/set", unbroken, options)
    assert f"{VIDEOS} videos, 0 of them to be done" in job(*place)


def test_a_set_without_clips_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.mp4").touch()
    said = job(tmp_path / "raw", tmp_path / "out", status=2)
    assert "0 clips" in said and "a.mp4: a video that opens: got 'an empty file', expected a video." in said


def test_one_input_is_asked_for(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        job(raw, tmp_path, "--manifest", "raw.parquet")
    with pytest.raises(ConfigError, match="one of the two"):
        job("", tmp_path)
    with pytest.raises(ConfigError, match="its own texts"):
        job("", tmp_path, "--manifest", "raw.parquet", "--captions", "captions.jsonl")


def test_shots_in_the_background_of_a_terminal() -> None:
    """Where Ray's workers are: a program that takes hold of the terminal there is stopped, and they with it."""
    script = """if True:
        import os, pty, sys
        pid, terminal = pty.fork()
        if not pid:
            worker = os.fork()
            if not worker:
                os.setpgid(0, 0)
                from jala_ray.video.shots import ShotDetector
                ShotDetector()
                os._exit(7)
            _, status = os.waitpid(worker, os.WUNTRACED)
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)
        while True:
            try:
                if not os.read(terminal, 1000): break
            except OSError: break
        sys.exit(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 7
