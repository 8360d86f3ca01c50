"""What a call of the study asks for. Imports nothing heavy, so that help comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import AvoidSubcommands, FlagConversionOff, arg

from jala_ray.config import GenerationConfig, RunConfig
from jala_ray.parsing import arguments, override
from jala_ray.presets import BASE as JALA
from jala_ray.presets import PRESETS, TOKENIZER_PRESETS, named_or_read
from jala_ray.studies.paper.rows import ROWS, Row, check_base, named, table
from jala_ray.types import ConfigError

TRAIN = "train"
NAME = "paper"
BEGIN = (
    "jala, tiny or demo, or the config.json of an earlier run of them: the settings that all runs begin with, but for its data.manifest, "
    "data.cache and init."
)
SOME = f"Of the table's rows only these: {', '.join(ROWS)}; empty: all."
SIZES = f"Preset of a motion tokenizer that is trained ({', '.join(TOKENIZER_PRESETS)}), or a config.json; None: that of --preset's size."


def begun_from(preset: RunConfig) -> RunConfig:
    """A preset as the settings that all runs begin with; its name is the study's, and what an earlier run read or began from is not."""
    data = replace(preset.data, manifest="", cache="")
    return replace(preset, name=NAME, data=data, init=None, motion_tokenizer=preset.motion_tokenizer or TRAIN)


@dataclass(frozen=True)
class PaperStudy:
    """The paper's own table on your clips: five models trained alike, scored on the split val, beside the printed numbers.

    What all runs share follows as --dotted.key value. The study's folder is `storage.root`/`name`; the same command again does what is
    missing, and other settings are refused. --motion-tokenizer train (the default) trains one on the labelled clips first.
    """

    manifest: str = ""
    """Clips: split train is trained on, split val scored. The same as --data.manifest."""
    preset: Annotated[str, arg(help=BEGIN)] = "jala"
    dry_run: bool = False
    """List the runs with what each changes, what the manifest can't give, and hours, memory, storage and cost, all computed; start
    nothing."""
    local: bool = False
    """In this process, on its GPU where there is one, without Ray."""
    rows: Annotated[tuple[str, ...], arg(help=SOME)] = ()
    controls: bool = False
    """Add a row that the paper has not: masked chunks without alignment on labelled clips alone, between no_align and next_token_dino."""
    ours: bool = False
    """Add two rows of ours that the paper has not: grounded, and its control on labelled clips alone. What grounded gains over that one is
    due to unlabelled video."""
    seeds: int = 1
    """Runs of each row, with seeds --seed, --seed + 1 ...; one seed pairs all rows. More may be asked for later."""
    tokenizer_preset: Annotated[str | None, arg(help=SIZES)] = None
    vjepa: str | None = None
    """Hub name or folder of V-JEPA 2 for the row vjepa; None: facebook/vjepa2-vitl-fpc64-256, or random weights where the base has them."""
    cache: bool = False
    """Compute codes, features and first pictures once, a cache for each frozen encoder."""
    samples: int | None = None
    """Score at most so many clips per domain; None: all of the split val."""
    batch: int = 8
    """Clips per forward pass of the evaluation."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    like: str | None = None
    """For --dry-run: run folder of the row dino whose speed all rows are given, by their computed FLOP."""
    tflops: float | None = None
    """For --dry-run: sustained TFLOP/s per GPU that the estimate assumes where no run is named."""
    gpu_memory_gb: float = 80.0
    """For --dry-run: memory of one GPU, GB."""
    gpu_hour_price: float | None = None
    """For --dry-run: price of a GPU-hour, in any currency."""
    config: Annotated[AvoidSubcommands[FlagConversionOff[RunConfig]], arg(name="")] = field(
        default_factory=lambda: begun_from(JALA)
    )

    @classmethod
    def read(cls, words: Sequence[str], prog: str) -> PaperStudy:
        """Of the command line. Raises `ConfigError` for an unknown preset or option; exits on --help and on a bad value."""
        preset = named_or_read(_value(words, "--preset") or cls.preset, PRESETS, RunConfig)
        return arguments(cls, words, prog, cls(config=begun_from(preset)))

    def run(self) -> int:
        self.base()  # what is wrong with the words is said before anything heavy is there
        self.chosen()
        from jala_ray.studies.paper.whole import run

        return run(self)

    def chosen(self) -> tuple[Row, ...]:
        """The rows that are asked for. Raises `ConfigError` for an unknown one."""
        return named(table(self.controls, self.ours), self.rows)

    def base(self) -> RunConfig:
        """The row `dino` as the words have it. Raises `ConfigError` for all that can be refused without a look at the data."""
        given = self.config.data.manifest
        if self.manifest and given and self.manifest != given:
            raise ConfigError("--manifest", self.manifest, f"as --data.manifest, {given}", "Pass one of the two.")
        if not (self.manifest or given):
            raise ConfigError("--manifest", "", "clips to train on and to score", "Pass --manifest PATH.")
        base = override(self.config, {"data.manifest": self.manifest or given})
        if base.data.cache:
            remedy = "The rows need a cache for each of two encoders: pass --cache, which makes both."
            raise ConfigError("data.cache", base.data.cache, "to be left out", remedy)
        if self.tokenizer_preset is not None and base.motion_tokenizer != TRAIN:
            remedy = "One that is given is not trained: leave one of the two out."
            raise ConfigError("--tokenizer-preset", self.tokenizer_preset, "no --motion-tokenizer", remedy)
        for name in ("seeds", "batch", "samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"--{name}", value, "an integer >= 1")
        check_base(base)
        base.check()
        return base


def _value(words: Sequence[str], option: str) -> str | None:
    """What follows an option among the words."""
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == option:
            return value if sign else next(iter(words[place + 1 :]), None)
    return None
