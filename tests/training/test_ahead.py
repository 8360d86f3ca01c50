"""Reading ahead in a thread: order, how far, what is raised, and that nothing is left when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from jala_ray.training.ahead import PAUSE_S, ahead, in_thread
from jala_ray.training.trainer import train
from tests.training.run import make_run, run_config
from tests.training.test_watch import until


class Numbers:
    """0, 1, ... up to `count`, that tell which were asked for and whether they were closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.asked, self.closed, self.thread = list[int](), False, ""
        self.items = self._items(count, fails_at)

    def _items(self, count: int, fails_at: int | None) -> Iterator[int]:
        try:
            for i in range(count):
                self.asked.append(i)
                self.thread = threading.current_thread().name
                if i == fails_at:
                    raise OSError(f"no {i}")
                yield i
        finally:
            self.closed = True


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reads and copies ahead"]


def test_all_come_in_order_changed_by_the_thread() -> None:
    numbers = Numbers(20)
    assert list(in_thread(numbers.items, lambda i: -i, depth=2)) == [-i for i in range(20)]
    assert numbers.thread == "reads and copies ahead" and numbers.closed and not readers()


def test_it_is_so_far_ahead_and_no_further() -> None:
    numbers = Numbers(20)
    with closing(in_thread(numbers.items, lambda i: i, depth=2)) as items:  # type: ignore[type-var]
        assert next(items) == 0
        until(lambda: len(numbers.asked) == 4)  # one is used, two wait, one waits for room
        time.sleep(3 * PAUSE_S)
        assert numbers.asked == [0, 1, 2, 3]
    assert numbers.closed and not readers()


def test_what_is_raised_is_raised_in_its_turn() -> None:
    numbers = Numbers(20, fails_at=2)
    items = in_thread(numbers.items, lambda i: i, depth=5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="no 2"):
        next(items)
    assert numbers.closed and not readers()

    def odd(i: int) -> int:
        if i == 1:
            raise MemoryError("the device is full")
        return i

    with pytest.raises(MemoryError, match="full"):
        list(in_thread(Numbers(3).items, odd, depth=1))


def test_one_that_stops_early_leaves_no_thread() -> None:
    numbers = Numbers(20)
    for i in in_thread(numbers.items, lambda i: i, depth=2):
        if i == 3:
            break
    until(lambda: not readers() and numbers.closed)


def test_on_a_cpu_shares_pass_through_in_this_thread(tmp_path: Path) -> None:
    run = make_run(run_config(tmp_path))
    shares = list(run.shares(0))
    for share, arriving in zip(shares, ahead(iter(shares), torch.device("cpu")), strict=True):
        assert arriving.host is share and arriving.batches() is share.micro
    assert not readers()


@pytest.mark.parametrize("fails", [False, True])
def test_the_trainer_closes_what_it_reads(tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose shares come by a thread is the same run, and no thread is left, however it ends."""
    plain = make_run(run_config(tmp_path / "a"))
    train(plain)
    run = make_run(run_config(tmp_path / "b"))
    shares, closed = run.shares, list[bool]()

    def threaded(first: int) -> Iterator[object]:
        try:
            yield from shares(first)
        finally:
            closed.append(True)

    run.shares = lambda first: in_thread(threaded(first), lambda share: share, depth=2)  # type: ignore[assignment]
    if fails:
        monkeypatch.setattr(run.learner.objective, "after_step", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(run)
    else:
        train(run)
        for name, value in plain.learner.state_dict().items():
            assert torch.equal(value, run.learner.state_dict()[name]), name
    until(lambda: closed == [True] and not readers())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_are_copied_by_the_thread(tmp_path: Path) -> None:
    run, device = make_run(run_config(tmp_path)), torch.device("cuda", 0)
    shares = list(run.shares(0))
    for share, arriving in zip(shares, ahead(iter(shares), device), strict=True):
        for host, batch in zip(share.micro, arriving.batches(), strict=True):
            for name, tensor in batch.tensors().items():
                assert tensor.is_cuda or name == "deep"
                assert torch.equal(tensor.cpu(), host.tensors()[name]), name
