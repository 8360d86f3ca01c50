"""Export a checkpoint for transformers, jala_ray.load and the Hugging Face hub, with a model card."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagConversionOff, Positional, arg

from jala_ray.storage import StorageOptions


@dataclass(frozen=True)
class Arguments:
    """Write a checkpoint as a folder that transformers loads (OUT/backbone) and jala_ray.load (OUT), with a model card."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """A checkpoint folder, or a run folder, whose newest one is taken; local or s3://."""
    out: Positional[Annotated[str, arg(metavar="OUT")]]
    """A new folder, local or s3://."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the weights: float32 is what the checkpoint holds, bfloat16 is half the size and rounded."""
    evaluation: str | None = None
    """Folder that `jala evaluate` made of this checkpoint: its table goes into the card."""
    push_to: str | None = None
    """OWNER/NAME of a repository on the Hugging Face hub to upload the folder to (log in with `hf auth login`)."""
    public: bool = False
    """Make a new repository public; one that is there stays as it is."""
    storage: FlagConversionOff[StorageOptions] = field(default_factory=StorageOptions)


def run(arguments: Arguments) -> int:
    from jala_ray.reports.run.export import export, push_to_hub

    options = arguments.storage
    out = export(arguments.checkpoint, arguments.out, arguments.precision, arguments.evaluation, options)
    print(f"export: {out}")
    if arguments.push_to:
        print(f"pushed: {push_to_hub(out, arguments.push_to, private=not arguments.public, options=options)}")
    return 0
