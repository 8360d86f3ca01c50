"""Compare a policy's actions with recorded episodes, without a robot; leaves a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Ask a policy at moments of recorded episodes; write openloop.json, table.md and report.html into OUT.

    It is asked as recorded, and without pictures, words or state; trivial rows stand beside. The same command again does only what is
    missing.
    """

    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """Folder of the comparison, local or s3://."""
    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """A checkpoint's folder, or a run folder, whose newest one is taken, local or s3://; or module:function, a function that returns an
    object with `act` and `metadata`."""
    robot_sets: tuple[tuple[str, str], ...] = ()
    """LeRobot data sets, each with the name of its embodiment; none: those that the checkpoint learned from."""
    embodiment: str = ""
    """Whose sets are compared, and statistics taken, where there are several robots."""
    split: Literal["val", "train", "all"] = "val"
    """Episodes that were held out, the others, or all."""
    held_out: float | None = None
    """Share of every set's episodes that was held out; None: the checkpoint's, 0.05 of module:function."""
    episodes: int | None = 32
    """At most so many, evenly spread; None: all."""
    numbers: tuple[int, ...] = ()
    """Episodes by LeRobot's numbers, of every set, instead of a split."""
    every: int | None = None
    """Actions from a moment to the next, at most those of an answer; None: half of them."""
    weights: Literal["average", "last"] | None = None
    """Of a checkpoint; None: the average where it has one."""
    seed: int = 0
    """Of the noise that actions begin with."""
    gpus_per_task: float = 0.0
    """GPUs that Ray keeps for each task, e.g. 0.5: two tasks share a GPU."""
    autoscaling: bool = False
    """The cluster grows on demand: GPUs that are not there yet are waited for."""
    local: bool = False
    """In this process, without Ray."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray import storage
    from jala_ray.policy.openloop.job import OpenLoopJob, begin, release, trained_on
    from jala_ray.reports.openloop.publish import publish, warnings_of
    from jala_ray.serving.loading import FUNCTION
    from jala_ray.training import history
    from jala_ray.training.parts import TaskSize, do_parts

    asked, options = arguments, arguments.storage
    sets = tuple((storage.absolute(address), robot) for address, robot in asked.robot_sets)
    address, held_out = asked.policy, 0.05
    if not FUNCTION.fullmatch(address):
        address = history.resolve(storage.absolute(address), options)
        data = trained_on(address, options)
        sets, held_out = sets or data.robot_sets, data.held_out_episodes
    job = OpenLoopJob(
        out=storage.absolute(asked.out),
        policy=address,
        sets=sets,
        embodiment=asked.embodiment,
        every=asked.every,
        held_out=held_out if asked.held_out is None else asked.held_out,
        weights=asked.weights,
        seed=asked.seed,
        gpu=asked.local or asked.gpus_per_task > 0,
        options=options,
    )
    most = None if asked.numbers else asked.episodes
    work = begin(job, asked.split, most, asked.numbers, asked.embodiment)
    size = TaskSize(gpus=asked.gpus_per_task, autoscaling=asked.autoscaling)
    do_parts(work.missing(), work.job, options, local=asked.local, task=size)
    release()
    print(publish(work))
    for line in warnings_of(job.out, options):
        print(line)
    return 0
