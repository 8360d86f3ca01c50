"""Generate or describe held-out clips with checkpoints and score them; leaves a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.config import GenerationConfig
from jala_ray.storage import StorageOptions
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class Arguments:
    """Generate the held-out clips of a manifest with every checkpoint; write evaluation.json, table.md and report.html into OUT.

    The same command again does only what is missing.
    """

    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """Folder of the evaluation, local or s3://."""
    checkpoints: Positional[Annotated[tuple[str, ...], arg(metavar="[LABEL=]CHECKPOINT ...")]]
    """Checkpoint folders, or run folders, whose newest one is taken; each with a label of its own if you like."""
    manifest: str | None = None
    """None: the one that the first checkpoint was trained on."""
    split: Literal["train", "val"] = "val"
    """Rows of the manifest that are evaluated."""
    samples: int | None = None
    """At most so many clips per domain; None: all."""
    task: Literal["generation", "continuation", "description"] = "generation"
    """Motion from the first picture and a text; continuation: the first half of the motion is given too; description: text from motion
    and picture."""
    generation: Annotated[GenerationConfig, arg(name="")] = field(default_factory=GenerationConfig)
    text_tokens: int = 64
    """Of a description, at most; other tasks write none."""
    batch: int = 8
    """Clips per forward pass."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the language blocks of decoding; auto: on a GPU."""
    videos: int = 3
    """Best, median and worst clips shown, of each domain; a description is shown with every clip's text instead."""
    no_latents: bool = False
    """Leave out what the latent space knows: probes, retrieval, t-SNE, and the map of h and z with its tables. Descriptions have none."""
    gpus_per_task: float = 0.0
    """GPUs that Ray keeps for each task, e.g. 0.5: two tasks share a GPU."""
    autoscaling: bool = False
    """The cluster grows on demand: GPUs that are not there yet are waited for."""
    local: bool = False
    """In this process, without Ray."""
    endpoint_url: str | None = None
    """The same as --storage.endpoint-url."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def labelled(text: str) -> tuple[str, str]:
    """(label or "", address); an address may hold a = of its own."""
    label, sign, address = text.partition("=")
    return (label, address) if sign and "/" not in label else ("", text)


def run(arguments: Arguments) -> int:
    if not arguments.checkpoints:
        raise ConfigError("checkpoints", (), "one or more, each a checkpoint or a run folder")
    from dataclasses import replace

    from jala_ray import storage
    from jala_ray.evaluation.job import EvaluationJob, begin, label_of, manifest_of, release, resolve
    from jala_ray.reports.motion.publish import publish, warnings_of
    from jala_ray.training.parts import TaskSize, do_parts

    asked, options = arguments, arguments.storage
    if asked.endpoint_url:
        options = replace(options, endpoint_url=asked.endpoint_url)
    given = [labelled(text) for text in asked.checkpoints]
    found = [(label, resolve(storage.absolute(address), options)) for label, address in given]
    job = EvaluationJob(
        out=storage.absolute(asked.out),
        manifest=storage.absolute(asked.manifest) if asked.manifest else manifest_of(found[0][1], options),
        checkpoints=tuple((label or label_of(address, options), address) for label, address in found),
        settings=asked.generation,
        task=asked.task,
        text_tokens=asked.text_tokens,
        batch=asked.batch,
        compile=asked.compile,
        gpu=asked.local or asked.gpus_per_task > 0,
        options=options,
    )
    work = begin(job, asked.split, asked.samples)
    size = TaskSize(gpus=asked.gpus_per_task, autoscaling=asked.autoscaling)
    do_parts(work.missing(), work.job, options, local=asked.local, task=size)
    release()
    print(publish(work, latents=not asked.no_latents, videos=asked.videos))
    for line in warnings_of(job.out, options):
        print(line)
    return 0
