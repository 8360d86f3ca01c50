"""The documents say what is there: links, files, modules, presets, commands and code. `end_to_end/test_documents.py` runs the commands."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from infra.site_pages import OUTSIDE, relinked
from jala_ray import moved
from jala_ray.data.adapters import ADAPTERS
from jala_ray.data.manifest.table import Manifest, validate
from jala_ray.parsing import flatten
from jala_ray.presets import PRESETS, TOKENIZER_PRESETS
from tests.documents import DOCUMENTS, NOT_RUN, ROOT, Printed, blocks, printed, read

IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
PATH = re.compile(r"\b((?:jobs|tune|infra|jala_ray|docs|tests)/[\w/]+\.(?:py|yaml|md|svg))")
ROOM_FILE = re.compile(r"`((?:\w+/)*\w+\.py)\b")

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)


@documents
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text()))
    pages = {name for name in IDS if not name.startswith("docs/api/")}
    assert pages - {"README.md"} <= links


@documents
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    for path in PATH.findall(text):
        assert (ROOT / path).is_file(), path
    for path in ROOM_FILE.findall(text):  # as `data/sampling/draw.py`, below jala_ray/ unless it is a job
        places = (ROOT, ROOT / "jala_ray", ROOT / "jobs", ROOT / "tune", ROOT / "infra")
        inside = [*(ROOT / "jala_ray").rglob(path)] if "/" not in path else []
        assert inside or any((place / path).is_file() for place in places), path


@documents
def test_named_modules_run(document: Path) -> None:
    for name in re.findall(r"python -m (jala_ray[\w.]*)", document.read_text()):
        path = ROOT / (moved.new_name(f"{name}.__main__") or name).replace(".", "/")
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert '__name__ == "__main__"' in file.read_text(), name


@pytest.mark.parametrize("command", printed(), ids=str)
def test_printed_arguments_are_those_of_the_command(command: Printed) -> None:
    try:
        read(command.words)
    except SystemExit as error:
        pytest.fail(f"{command.document}: {command}: {error}")


def test_what_is_not_run_is_still_printed() -> None:
    reasons = {command.why_not for command in printed()}
    assert set(NOT_RUN.values()) <= reasons and None in reasons
    texts = [f"{command} " for command in printed()]
    assert not [beginning for beginning in NOT_RUN if not any(text.startswith(f"{beginning} ") for text in texts)]


@documents
def test_dotted_keys_in_the_text_are_settings(document: Path) -> None:
    known = set().union(*(flatten(config) for config in [*PRESETS.values(), *TOKENIZER_PRESETS.values()]))
    text = re.sub(
        r"^(lerobot-eval|prometheus) .*$", "", document.read_text(), flags=re.MULTILINE
    )  # settings of their own
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
    sources = [
        (ROOT / f"jala_ray/{name}").read_text() for name in ("training/pretraining.py", "objectives/monitors.py")
    ]
    written = set(
        re.findall(
            r'"((?:effective_rank|spread|varying|cos)_\w+|rho|data_wait|step_s|padding|quarantined)"',
            "".join(sources),
        )
    )
    assert len(written) >= 12
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
    ADAPTERS.forget("studio")
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


def test_the_site_has_every_page_and_every_room() -> None:
    nav = re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2], re.MULTILINE)
    there = {name.removeprefix("docs/") for name in IDS if name.startswith("docs/")} | set(OUTSIDE.values())
    assert len(nav) == len(there) and set(nav) == there
    rooms = {folder.parent.name for folder in (ROOT / "jala_ray").glob("*/__init__.py")}
    assert {f"api/{room}.md" for room in rooms} <= there
    for room in rooms:
        assert f"\n::: jala_ray.{room}\n" in (ROOT / f"docs/api/{room}.md").read_text()


def test_the_site_documents_modules_that_are_there() -> None:
    named = [
        name for page in (ROOT / "docs/api").glob("*.md") for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)
    ]
    assert len(named) > 15
    for name in named:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), name


def test_links_of_the_site_lead_to_its_pages() -> None:
    given = "[a](docs/manifest.md) ![b](docs/images/overview.svg) [c](LICENSE) [d](https://x.org/y.md) [e](#f) [g](infra/README.md#h)"
    shown = "[a](manifest.md) ![b](images/overview.svg) c [d](https://x.org/y.md) [e](#f) [g](infra.md#h)"
    assert relinked(given, "index.md") == shown
    assert relinked("[a](../../README.md) [b](../../jala_ray/presets.py)", "guides/sweep.md") == "[a](../index.md) b"


def test_the_index_of_decisions_leads_to_them() -> None:
    """Not every decision has a line yet: new ones are appended without."""
    _, index, *areas = re.split(r"^## ", (ROOT / "docs/decisions.md").read_text(), flags=re.MULTILINE)
    below = {re.sub(r"[^\w\- ]", "", area.partition("\n")[0].lower()).replace(" ", "-"): area for area in areas}
    lines = re.findall(r"^- \d{4}-\d\d-\d\d: \[(.+)\]\(#([\w-]+)\)$", index, re.MULTILINE)
    assert len(lines) == index.count("\n- ") > 100 and len({title for title, _ in lines}) == len(lines)
    for title, heading in lines:
        assert re.search(rf"^\*\*{re.escape(title)}[.,]?\*\*", below[heading], re.MULTILINE), title
