"""The documents say what is there: links, files, modules, presets, flags and code."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from jala_ray.data.adapters import ADAPTERS
from jala_ray.data.adapters.video_folder import VideoFolder
from jala_ray.data.manifest import Manifest, validate
from jala_ray.data.prepare import PrepareConfig
from jala_ray.parsing import flatten
from jala_ray.presets import PRESETS, TOKENIZER_PRESETS
from jobs.cache import parser as cache_parser
from jobs.evaluate import parser as evaluate_parser
from jobs.prepare import PrepareJob
from tune.sweep import parser as sweep_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "infra/README.md", *(ROOT / "docs").rglob("*.md")])
IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"\b((?:jobs|tune|infra|jala_ray|docs|tests)/[\w/]+\.(?:py|yaml|md|svg))")
ROOM_FILE = re.compile(r"`((?:\w+/)*\w+\.py)\b")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)


def blocks(document: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(document.read_text()) if name == language]


def commands(document: Path) -> list[list[str]]:
    """Words of every command in the document's shell blocks, what precedes `--` of a submission left out."""
    lines = "".join(blocks(document, "bash") + blocks(document, "")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "python" in line]
    return [w[w.index("--") + 1 :] if w[:3] == ["ray", "job", "submit"] else w for w in words]


def flags(words: list[str]) -> set[str]:
    return {word.removeprefix("--").split("=")[0].replace("-", "_") for word in words if word.startswith("--")}


def fields(kind: type) -> set[str]:
    assert dataclasses.is_dataclass(kind)
    return {field.name for field in dataclasses.fields(kind)}


@documents
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@documents
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for path in PATH.findall(text):
        assert (ROOT / path).is_file(), path
    for path in ROOM_FILE.findall(text):  # as `data/draw.py`, below jala_ray/ unless it is a job
        places = (ROOT, ROOT / "jala_ray", ROOT / "jobs", ROOT / "tune", ROOT / "infra")
        inside = [*(ROOT / "jala_ray").rglob(path)] if "/" not in path else []
        assert inside or any((place / path).is_file() for place in places), path


@documents
def test_named_modules_run(document: Path) -> None:
    for name in re.findall(r"python -m (jala_ray[\w.]*)", document.read_text()):
        path = ROOT / name.replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert '__name__ == "__main__"' in file.read_text(), name


@documents
def test_flags_are_known(document: Path) -> None:
    for words in commands(document):
        script = next((i for i, word in enumerate(words) if word.startswith(("jobs/", "tune/", "jala_ray."))), None)
        if script is None:
            continue
        name, rest = words[script], words[script + 1 :]
        given = flags(rest) - {"help"}
        if name == "jobs/train_tokenizer.py":
            known = set(flatten(TOKENIZER_PRESETS[rest[0]]))
        elif name in ("jobs/pretrain.py", "jala_ray.training.local"):
            known = set(flatten(PRESETS["tiny" if rest[0].endswith(".json") else rest[0]]))
        elif name == "jobs/cache.py":
            known = set(flatten(PRESETS[rest[0]])) | set(vars(cache_parser().parse_args(["preset", "out"])))
        elif name == "jala_ray.data" and rest[0] == "convert":
            known = fields(ADAPTERS[rest[1]]) | {"on_error", "packets"}
        elif name == "jobs/evaluate.py":
            known = set(vars(evaluate_parser().parse_args(["out", "checkpoint"])))
        elif name == "tune/sweep.py":
            presets = TOKENIZER_PRESETS if "tokenizer" in rest else PRESETS
            known = set(flatten(presets[rest[0]])) | set(vars(sweep_parser().parse_args(["preset"])))
        elif name == "jobs/prepare.py":
            known = fields(PrepareJob) | fields(PrepareConfig) | fields(VideoFolder)
        else:
            known = set()
        assert given <= known, f"{' '.join(words)}: unknown {sorted(given - known)}"


@documents
def test_dotted_keys_in_the_text_are_settings(document: Path) -> None:
    known = set().union(*(flatten(config) for config in [*PRESETS.values(), *TOKENIZER_PRESETS.values()]))
    text = document.read_text()
    for key in re.findall(r"--([a-z_-]+(?:\.[a-z_-]+)+)", text):
        assert key.replace("-", "_") in known, key
    rooms = "data|train|cluster|storage|log|objective|optim"
    for key in re.findall(rf"`((?:{rooms})\.[a-z_.]+?)(?: = \w+)?`", text):
        assert key in known or key.endswith(".py"), key


def test_readme_lists_every_preset() -> None:
    table = re.search(r"## Presets\n(.*?)\n\n[^|]", (ROOT / "README.md").read_text(), re.DOTALL)
    assert table is not None
    rows = [
        line.split("|")[1:3] for line in table.group(1).splitlines() if line.startswith("| ") and "preset" not in line
    ]
    listed = {name for row in rows for cell in row for name in re.findall(r"`(\w+)`", cell)}
    assert listed == set(PRESETS)


def test_readme_s_checkpoint_is_the_demo_s_last() -> None:
    last = f"runs/{PRESETS['demo'].name}/checkpoints/step-{PRESETS['demo'].train.steps:08d}"
    assert last in (ROOT / "README.md").read_text()


def test_the_metrics_documented_are_those_written() -> None:
    text = (ROOT / "docs/run_folder.md").read_text()
    sources = [(ROOT / f"jala_ray/{name}").read_text() for name in ("training/loop.py", "objectives/monitors.py")]
    written = set(
        re.findall(
            r'"((?:effective_rank|spread|cos)_\w+|rho|data_wait|step_s|padding|quarantined)"',
            "".join(sources),
        )
    )
    assert len(written) >= 11
    assert not [name for name in written if f"`{name}`" not in text]


def test_the_guide_s_adapter_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, joining = blocks(ROOT / "docs/guides/own_data.md", "python")
    (tmp_path / "takes").mkdir()
    frames = 75
    take = {
        "time_s": np.arange(frames) / 30,
        "valid": np.stack([np.zeros(frames, bool), np.arange(frames) != 70]),
        "theta": np.full((2, frames, 15, 3), 0.1),
        "rot": np.full((2, frames, 3), 0.2),
        "wrist": np.full((2, frames, 3), 0.5),
        "beta": np.zeros((2, 10)),
        "text": np.array("Wave at the camera"),
    }
    np.savez(tmp_path / "takes/a.npz", allow_pickle=False, **take)
    (tmp_path / "takes/broken.npz").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studio.py").write_text(adapter)
    space = runpy.run_path("studio.py")
    assert (space["report"].rows, space["report"].quarantined) == (1, 1)
    assert validate("studio_manifest", videos="none") == []
    (clip,) = (Manifest("studio_manifest").clip(i) for i in range(1))
    assert (clip.n_chunks, clip.hands[0].state.name, clip.hands[1].state.name) == (2, "UNTRACKED", "LABELLED")

    space["write_manifest"](
        [dataclasses.replace(clip, clip_id="another", source="else")], "my_manifest", on_error="raise"
    )
    (tmp_path / "join.py").write_text(joining)
    runpy.run_path("join.py")
    assert len(Manifest("all_manifest")) == 2
