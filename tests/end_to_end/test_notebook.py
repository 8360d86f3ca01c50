"""The notebook of the first hour, its training shortened, run from its first cell to its last in a kernel of its own."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/first_hour.ipynb"


def outputs(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """Of all cells, what has this MIME type."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [out["data"][kind] for cell in cells for out in cell.outputs if kind in out.get("data", {})]


def printed(notebook: nbformat.NotebookNode) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return "".join(out.get("text", "") for cell in cells for out in cell.outputs)


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_the_first_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    notebook = nbformat.read(PAGE, 4)
    for cell in notebook.cells:
        for steps, fewer in ((300, 50), (80, 15)):  # of the tokenizer, of JALA
            cell.source = cell.source.replace(f"--train.steps {steps}", f"--train.steps {fewer}")
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = printed(done)
    assert "0 with problems" in said and "memory per GPU (computed)" in said and "error:" not in said, said[-4000:]
    assert len(outputs(done, "image/png")) == 3, "frames with hands, losses, a generated motion"
    (table,) = outputs(done, "text/markdown")
    assert "MPJPE" in table and "hold_first" in table
    folder = tmp_path / "runs/first_hour"
    assert (folder / "generated.mp4").stat().st_size > 1000 and (folder / "exported/README.md").exists()


def test_the_stored_page_was_run_in_order() -> None:
    """What readers see without running it is what its cells print."""
    notebook = nbformat.read(PAGE, 4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(outputs(notebook, "image/png")) == 3 and "error:" not in printed(notebook)
    assert "/tmp/" not in PAGE.read_text() and PAGE.stat().st_size < 1_500_000
