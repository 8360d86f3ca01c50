"""The golden harness sees one changed bit, names it, and lets only listed changes pass."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.golden.compare import Difference, Intended, differences, judged, read_intended
from tests.golden.in_tree import arguments, rows
from tests.golden.inputs import CACHES
from tests.golden.recording import INDEX, Record, digest, recording
from tests.golden.runs import RUNS, SHARED, STEPS
from tests.golden.speed import ratios
from tests.golden.trees import BASE, Tree, git


@dataclass
class Output:
    loss: Tensor
    sums: dict[str, Tensor]


class Learner(nn.Module):
    """Stands for the project's: a class of this name takes a batch and gives a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Tensor]) -> Output:
        loss = self.inner(batch["x"]).square().sum()
        return Output(loss, {"count": batch["mask"].sum()})


def train(
    folder: Path, *, lr: float = 0.1, batch: Callable[[int, dict[str, Tensor]], object] = lambda step, b: None
) -> Path:
    """Three steps of two micro-batches, recorded; `batch` may change what goes in."""
    torch.manual_seed(0)
    learner = Learner()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=lr)
    with recording(folder) as record:
        for step in range(3):
            for _ in range(2):
                given = {"x": torch.randn(4, 3), "mask": torch.tensor([True, False, True, True])}
                batch(step, given)
                learner(given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            record.add(f"metrics/step {step + 1:04d}", {"lr": lr, "void": None, "bad": float("nan")})
    return folder


def first(base: Path, head: Path) -> Difference | None:
    return next(differences("toy", base, head), None)


def test_equal_runs_have_no_differences(tmp_path: Path) -> None:
    base, head = train(tmp_path / "base"), train(tmp_path / "head")
    assert list(differences("toy", base, head)) == []
    names = list(json.loads((base / INDEX).read_text()))
    assert names[:4] == [f"step 0000/train 0/{name}" for name in ("in/x", "in/mask", "out/loss", "out/sums/count")]
    assert {"step 0002/train 1/out/loss", "weights/inner.bias", "optimizer/inner.weight/exp_avg", "steps"} <= set(names)
    assert "optimizer/inner.bias/lr" in names and "metrics/step 0003/bad" in names


def flip(step: int, given: dict[str, Tensor]) -> None:
    """A low bit of one number of one batch, not the lowest, which the rounding of a product may swallow."""
    if step == 1:
        given["x"].view(torch.int32)[2, 1] ^= 4


def test_one_changed_bit_is_named(tmp_path: Path) -> None:
    base, head = train(tmp_path / "base"), train(tmp_path / "head", batch=flip)
    found = list(differences("toy", base, head))
    assert str(found[0]).startswith("toy: step 0001/train 0/in/x: 1 of 12 elements differ, max abs diff ")
    gap = float(found[0].what.partition("max abs diff ")[2].partition(";")[0])
    assert 0 < gap < 1e-6 and "element 7: " in found[0].what
    # What comes of it is found too: the later weights and moments.
    assert {"weights/inner.weight", "optimizer/inner.weight/exp_avg"} <= {difference.name for difference in found}
    assert not any(difference.name.startswith("step 0000") for difference in found)


def test_zeros_of_two_signs_differ(tmp_path: Path) -> None:
    assert digest(torch.zeros(2)) != digest(-torch.zeros(2))
    nan = torch.full((2,), float("nan"))
    assert digest(nan) == digest(nan.clone())
    assert digest(torch.zeros(0, 2)) == digest(torch.zeros(0, 2))


@pytest.mark.parametrize(
    ("change", "name", "what"),
    [
        (lambda s, b: b.update(x=b["x"].double().float().t().contiguous().t()), None, ""),
        (lambda s, b: b.update(extra=torch.ones(1)), "step 0000/train 0/in/extra", "new here"),
        (
            lambda s, b: b.update(mask=b["mask"].long()),
            "step 0000/train 0/in/mask",
            "torch.bool [4] before, torch.int64 [4] here",
        ),
        (
            lambda s, b: b.update(mask=b["mask"][:3]),
            "step 0000/train 0/in/mask",
            "torch.bool [4] before, torch.bool [3] here",
        ),
    ],
    ids=["other strides", "new column", "other type", "other shape"],
)
def test_names_types_and_shapes(
    tmp_path: Path, change: Callable[[int, dict[str, Tensor]], object], name: str | None, what: str
) -> None:
    base, head = train(tmp_path / "base"), train(tmp_path / "head", batch=change)
    if name is None:
        # Nothing that goes in differs. A product over other strides may round otherwise, and does on some processors.
        assert not [found.name for found in differences("toy", base, head) if "/in/" in found.name]
    else:
        found = first(base, head)
        assert found is not None and (found.name, found.what) == (name, what)


def test_settings_of_the_optimizer_and_metrics_count(tmp_path: Path) -> None:
    base, head = train(tmp_path / "base"), train(tmp_path / "head", lr=0.125)
    found = {difference.name: difference.what for difference in differences("toy", base, head)}
    assert found["metrics/step 0001/lr"] == "0.1 before, 0.125 here" and "optimizer/inner.bias/lr" in found


def test_a_run_that_fails_is_a_difference_even_if_both_do(tmp_path: Path) -> None:
    def stop(step: int, given: dict[str, Tensor]) -> None:
        if step == 2:
            raise ValueError("no more")

    for name in ("base", "head"):
        with pytest.raises(ValueError, match="no more"):
            train(tmp_path / name, batch=stop)
    found = [str(difference) for difference in differences("toy", tmp_path / "base", tmp_path / "head")]
    assert found == [
        "toy: ended: the base itself: ValueError: no more",
        "toy: ended: this checkout: ValueError: no more",
    ]


def test_a_run_that_nobody_saw_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the recording saw nothing"), recording(tmp_path / "none"):
        pass
    Record(tmp_path / "a").close()
    Record(tmp_path / "b").close()
    assert first(tmp_path / "a", tmp_path / "b") == Difference("toy", "", "the base recorded nothing")


def test_only_listed_changes_pass(tmp_path: Path) -> None:
    base, head = train(tmp_path / "base"), train(tmp_path / "head", batch=flip)
    every = [Intended("toy/step */in/*", "another draw"), Intended("other/*", "not of this run")]
    unmeant, meant = judged(differences("toy", base, head), every)
    assert meant == every[0].met == 2 and every[1].met == 0
    assert unmeant and not any("/in/" in difference.name for difference in unmeant)
    file = tmp_path / "intended.json"
    for entry in ({"where": "toy/*"}, {"where": "toy/*", "reason": " "}):
        file.write_text(json.dumps([entry]))
        with pytest.raises(ValueError, match=r"intended\.json: got .*expected a pattern `where` and its `reason`"):
            read_intended(file)


def test_the_runs_are_what_the_page_says() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS) >= 5 and all(run.why for run in RUNS)
    used = {word for run in RUNS for word in (*SHARED, *run.settings) if "{" in word}
    assert used == {"{world}", "{tokenizer}", *(f"{{{name}}}" for name in CACHES)} | {
        "{runs}",
        f"{{runs}}/tiny_lapa_actions/checkpoints/step-{STEPS:08d}",
    }
    page = (Path(__file__).resolve().parents[2] / "docs" / "golden.md").read_text()
    assert all(f"`{run.name}`" in page for run in RUNS)
    assert len(BASE.read_text().strip()) == 40


def test_metrics_that_no_two_runs_share_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.5, "time_s": 7.0}\n')
    assert list(rows(file, leave_out=("time_s",))) == [{"step": 1, "loss": 2.5}]
    assert list(rows(tmp_path / "none")) == []


def test_a_tree_runs_its_own_code(tmp_path: Path) -> None:
    """The driver lies outside of the tree, and the tree's modules come first."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.py").write_text("WORD = 'of the tree'")
    (tmp_path / "driver" / "golden").mkdir(parents=True)
    (tmp_path / "driver" / "golden" / "__init__.py").touch()
    said = "import sys, os, mine; print(mine.WORD, os.environ['OMP_NUM_THREADS']); sys.exit(sys.argv[1])"
    (tmp_path / "driver" / "golden" / "say.py").write_text(said)
    tree = Tree("a tree", tmp_path / "tree", tmp_path / "own", tmp_path / "driver")
    with pytest.raises(RuntimeError, match=r"golden\.say failed in a tree with 1:\nof the tree 1\nbroken"):
        tree.run("say", "broken")


def test_git_says_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match="git frobnicate"):
        git("frobnicate")
    with arguments("a", "b"):
        import sys

        assert sys.argv == ["a", "b"]
    assert os.path.basename(sys.argv[0]) != "a"


def test_speed_compares_medians() -> None:
    """One slow turn of either side decides nothing."""
    base = [{"plan": 100.0, "decode": 50.0}, {"plan": 10.0, "decode": 50.0}, {"plan": 102.0, "decode": 50.0}]
    head = [{"plan": 90.0, "decode": 51.0}, {"plan": 95.0, "decode": 5.0}, {"plan": 96.0, "decode": 52.0}]
    assert ratios({"base": base, "head": head}) == {"plan": 0.95, "decode": 1.02}
