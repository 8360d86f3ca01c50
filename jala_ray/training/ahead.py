"""The next step's batches, brought to the device while this one's are computed."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from jala_ray.batch import Batch
from jala_ray.data.samples.share import StepShare

DEPTH = 2
"""Shares that wait on the device at most, beside the one that is trained on."""
PAUSE_S = 0.1
"""How often a thread that is not asked for more looks whether it ever will be."""
GRACE_S = 10.0
"""How long the end waits for the thread, which may hang in a read; it is no reason for the process to stay."""

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class Arriving:
    """A share on the host, and its batches on their way to the device."""

    host: StepShare
    micro: list[Batch]
    copied: torch.cuda.Event | None = None
    """After their copies; None where there was nothing to copy."""

    def batches(self) -> list[Batch]:
        """To be computed with on the current stream, which waits for the copies; the host does not."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for batch in self.micro:
                for tensor in batch.tensors().values():
                    if (
                        tensor.is_cuda
                    ):  # it was allocated for another stream, which must not reuse it before this one is done
                        tensor.record_stream(stream)
        return self.micro


def ahead(shares: Iterator[StepShare], device: torch.device) -> Iterator[Arriving]:
    """`shares`, in order. For a GPU a thread reads, pins and copies up to `DEPTH` of them before they are asked for, on a stream of its
    own. What reading raises is raised here, in its turn. Close it: the thread ends then, and closes `shares`.
    """
    if device.type != "cuda":
        return (Arriving(share, share.micro) for share in shares)
    stream = torch.cuda.Stream(device)

    def copied(share: StepShare) -> Arriving:
        with torch.cuda.stream(stream):
            micro = [batch.pin().to(device) for batch in share.micro]
            event = torch.cuda.Event()
            event.record()
        return Arriving(share, micro, event)

    return in_thread(shares, copied, DEPTH)


@dataclass(frozen=True)
class Raised:
    """How the thread's iterator ended."""

    error: BaseException


def in_thread(items: Iterator[T], change: Callable[[T], U], depth: int) -> Iterator[U]:
    """`change(item)` of each of `items`, by a thread that is up to `depth` of them ahead."""
    waiting: queue.Queue[U | Raised] = queue.Queue(depth)
    over = threading.Event()
    args = (items, change, waiting, over)
    thread = threading.Thread(target=_fill, args=args, name="reads and copies ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := waiting.get(), Raised):
            yield item
        if not isinstance(item.error, StopIteration):
            raise item.error
    finally:
        over.set()
        thread.join(GRACE_S)


def _fill(
    items: Iterator[T], change: Callable[[T], U], waiting: queue.Queue[U | Raised], over: threading.Event
) -> None:
    with contextlib.ExitStack() as closing:
        if (close := getattr(items, "close", None)) is not None:
            closing.callback(close)
        while not over.is_set():
            try:
                made: U | Raised = change(next(items))
            except BaseException as error:
                made = Raised(error)
            _put(waiting, made, over)
            if isinstance(made, Raised):
                return


def _put(waiting: queue.Queue[U], item: U, over: threading.Event) -> None:
    """Unless it is over before there is room."""
    while not over.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=PAUSE_S)
            return
