"""A pretraining run: data, optimiser, training, cluster, storage and log around a model and an objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jala_ray.config.checking import at_least
from jala_ray.config.evaluators import check_evaluators
from jala_ray.config.model import ModelConfig
from jala_ray.config.objectives import JalaConfig, ObjectiveConfig
from jala_ray.types import ConfigError


@dataclass(frozen=True)
class DataConfig:
    manifest: str = ""
    """Parquet file or folder, local or s3://. Rows of split `train` are trained on, rows of `val` validated on."""
    cache: str = ""
    """Folder made by `jala cache`, local or s3://: codes, and features where it holds them, come from there. `manifest` may be left
    out then; where it is given, the cache must be of that manifest."""
    robot_sets: tuple[tuple[str, str], ...] = ()
    """LeRobot data sets in place of a manifest, each with the name of its embodiment: `--data.robot-sets s3://bucket/pick arm
    my_sets/fold arm`. A row is a frame of an episode; sets of one embodiment share their statistics."""
    held_out_episodes: float = 0.05
    """Share of every robot set's episodes that is validated on, never trained on; of two or more episodes at least one."""
    trim_idle: float = 0.0
    """Frames at both ends of an episode in which no dimension of state and action has moved by more than this share of its range in the
    set are not trained on; 0: all are."""
    kept_rows_mb: int = 512
    """Decoded columns of robot sets that a process keeps, MiB. Parquet files of few large row groups, as converted data sets have them, are
    decoded again and again where it is less than they take."""
    labels: Literal["all", "labelled_only"] = "all"
    """`labelled_only` leaves out every row without a labelled chunk."""
    source_weights: tuple[tuple[str, float], ...] = ()
    """Share of every source in an epoch, normalised: `--data.source-weights ego4d 2 arctic 1`. Empty: by its rows."""
    task_weights: tuple[tuple[str, float], ...] = ()
    """Share of every task type, normalised too (the paper: generation 42.4, continuation 15.5, description 12.9, pure_video 29.1)."""
    epoch_rows: int | None = None
    """Length of an epoch in samples; None: as many as there are rows. With weights rows may come more than once, or not at all."""
    wild_fraction: float = 1.0
    """Share of the wild clips that is trained on; the clips of a smaller share are among those of a larger one."""
    window: int = 2
    """Rows of one video that lie next to one another in the manifest come together, up to so many: their frames are read at once."""
    packing: bool = True
    """Lay the samples of a micro-batch end to end in one row; False pads each to a row of its own."""
    max_tokens: int = 4096
    """Longest sample. A longer one is quarantined with its length."""
    pad_multiple: int = 128
    """Rows are padded to a multiple of so many tokens."""
    max_error_share: float = 0.1
    """The run stops when more than this share of the rows read was quarantined (after `min_rows_for_share` rows)."""
    min_rows_for_share: int = 50
    """Rows read before `max_error_share` can stop the run."""
    steps_per_block: int = 4
    """m: consecutive steps of one rank in a block, so of one task. At 1 a task's start and hand-over cost a quarter of the rate on
    two cores (docs/results/data_engine.md); a larger block takes more memory, and longer until the first one is there."""
    workers: int = 2
    """Processes of the torch DataLoader on the path without Ray; 0 reads in the trainer's process."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        self._check_address()
        counts = ("pad_multiple", "min_rows_for_share", "steps_per_block", "window")
        shares = ("max_error_share", "workers", "wild_fraction", "kept_rows_mb")
        at_least("data.", self, dict.fromkeys(counts, 1) | dict.fromkeys(shares, 0) | {"max_tokens": 64})
        if self.epoch_rows is not None and self.epoch_rows < 1:
            raise ConfigError("data.epoch_rows", self.epoch_rows, "an integer >= 1, or None for the manifest's rows")
        if self.wild_fraction > 1:
            raise ConfigError("data.wild_fraction", self.wild_fraction, "a share from 0 to 1")
        for name in ("held_out_episodes", "trim_idle"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"data.{name}", getattr(self, name), "a share from 0 to below 1")

    def _check_address(self) -> None:
        """Robot sets, or a manifest and what was cached of it."""
        if not self.robot_sets:
            if not self.manifest and not self.cache:
                remedy = "Pass --data.manifest PATH, or --data.robot-sets PATH EMBODIMENT."
                raise ConfigError("data.manifest", self.manifest, "a manifest", remedy)
            return
        if self.manifest or self.cache:
            named = "data.manifest" if self.manifest else "data.cache"
            remedy = "A run reads robot sets or a manifest: leave out one of the two."
            raise ConfigError(named, self.manifest or self.cache, "nothing beside data.robot_sets", remedy)
        if self.labels != "all":
            remedy = "Robot sets have no labels of hands."
            raise ConfigError("data.labels", self.labels, "all, with data.robot_sets", remedy)
        for address, embodiment in self.robot_sets:
            if not address or not embodiment or ":" in embodiment:
                remedy = "Pass --data.robot-sets PATH EMBODIMENT [PATH EMBODIMENT ...]."
                raise ConfigError(
                    "data.robot_sets", (address, embodiment), "a folder and a name without a colon", remedy
                )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 3e-5
    """Peak learning rate of AdamW; after the warm-up it falls to 0 along a cosine."""
    weight_decay: float = 0.05
    """Of AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Of AdamW."""
    warmup: float = 0.05
    """Share of the steps."""
    clip: float = 1.0
    """Largest gradient norm."""
    states: Literal["fp32", "8bit"] = "fp32"
    """AdamW's two moments: 8 bytes a learned parameter, or 2 with torchao (`pip install 'jala-ray[8bit]'`), in blocks of 256 numbers."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        at_least("optim.", self, {"lr": 0, "weight_decay": 0})
        if not 0 <= self.warmup <= 1 or self.clip <= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("optim", self, "warmup in [0, 1], clip > 0 and betas in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    steps: int | None = None
    """Optimizer steps; None: `epochs` passes over the plan."""
    epochs: int = 1
    """Passes over the plan, where `steps` is None."""
    batch: int = 128
    """Sequences of one optimizer step over all ranks."""
    micro_batch: int = 16
    """Sequences of one forward pass of one rank, at most."""
    micro_tokens: int = 16384
    """Tokens of one forward pass of one rank, at most: what its activations take of a GPU's memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks of the language model and of the frozen towers; auto: on a GPU."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several ranks share the model: whole copies of it (ddp), or parts of weights, gradients and moments (fsdp). auto: ddp."""
    reshard: bool = False
    """With fsdp: weights of blocks are gathered for each pass over them, and not once a step. Less memory, more traffic."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of forward and backward passes; weights and optimizer are fp32."""
    average: float = 0.0
    """Decay a step of a moving average of all weights that learn, as 0.999; evaluations measure it, and checkpoints hold it beside the
    weights. 0: there is none."""
    log_every: int = 10
    """Steps between two logged rows."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 3
    """Newest checkpoints kept."""
    validate_every: int = 1000
    """Steps between two validations on held-out rows."""
    val_samples: int = 512
    """Held-out rows per domain of one validation."""
    evaluate: tuple[tuple[str, int], ...] = ()
    """What else is measured on the way, and every how many steps: `--train.evaluate generation 500 my_code:my_figures 100`. Names are
    those of evaluators, or a function's address; figures are `eval/NAME/...` in metrics. It changes nothing of the training."""
    generation_clips: int = 8
    """Held-out clips with hand poses, per domain, of the evaluator `generation`."""
    generation_passes: int = 4
    """Forward passes per chunk of the evaluator `generation`."""
    monitor_every: int = 100
    """Steps between two measurements of what is aligned."""
    deterministic: bool = False
    """Only deterministic kernels: slower, and the same bits again."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        every = ("log_every", "checkpoint_every", "validate_every", "monitor_every")
        counts = (
            "epochs",
            "batch",
            "micro_batch",
            "micro_tokens",
            *every,
            "keep",
            "generation_clips",
            "generation_passes",
        )
        at_least("train.", self, dict.fromkeys(counts, 1) | {"val_samples": 0})
        if not 0 <= self.average < 1:
            raise ConfigError("train.average", self.average, "0 <= decay < 1", "At 1 it would stay as the run begins.")
        if self.reshard and self.parallel != "fsdp":
            raise ConfigError(
                "train.reshard", True, "train.parallel fsdp", "Pass --train.parallel fsdp, or leave it out."
            )
        if self.steps is not None and self.steps < 1:
            raise ConfigError("train.steps", self.steps, "an integer >= 1, or None for train.epochs")


@dataclass(frozen=True)
class ClusterConfig:
    """Ray Train and Ray Data resources."""

    workers: int = 1
    """Processes that train, one per GPU."""
    min_workers: int = 0
    """As few as so many will do: the run begins with what there is, goes on with less when nodes are lost, and grows up to `workers`
    when nodes come. The batches of all workers together stay the same. 0: always `workers`."""
    resize_every_s: float = 60.0
    """Seconds between two looks at whether more workers than there are have a place. Growing takes a restart of all of them."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray keeps for each."""
    gpus_per_worker: float = 0.0
    """GPUs that Ray keeps for each."""
    reading_cpus: float | None = None
    """CPUs at most that reading takes, and asks an autoscaler for; None: all there are, and more. Give what the nodes without GPUs have at
    their most: Ray's autoscaler starts none of what it is asked for where it cannot start all."""
    max_failures: int = 3
    """Restarts of the worker group after crashes. Preemptions do not count."""
    autoscaling: bool = False
    """The cluster grows on demand: don't compare the request with what is there now."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        at_least("cluster.", self, {"workers": 1, "min_workers": 0, "resize_every_s": 1, "max_failures": -1})
        at_least("cluster.", self, {"cpus_per_worker": 0, "gpus_per_worker": 0})
        if self.reading_cpus is not None and self.reading_cpus < 1:
            raise ConfigError("cluster.reading_cpus", self.reading_cpus, "at least 1 CPU, or None")
        if self.min_workers > self.workers:
            expected = f"<= cluster.workers = {self.workers}, to which the run may grow"
            raise ConfigError("cluster.min_workers", self.min_workers, expected)


@dataclass(frozen=True)
class StorageConfig:
    root: str = "runs"
    """Run folders live here: a folder or s3://bucket/prefix."""
    endpoint_url: str | None = None
    """For S3-compatible servers. This and the next four: where left out, the environment and the AWS configuration files say."""
    region: str | None = None
    """Of AWS, or as the server names it."""
    profile: str | None = None
    """Of the AWS configuration files."""
    anonymous: bool = False
    """Without credentials, for public buckets."""
    ca_bundle: str | None = None
    """PEM file of a private certificate authority; at the same path on every machine."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where requests name the bucket: in the path or in the host's name."""
    patience_s: float = 180.0
    """How long a store may fail to answer, seconds, before the step fails and the run ends; it can be resubmitted."""
    lease_s: float = 60.0
    """A run folder whose holder shows no sign of life for so many seconds may be taken over by another attempt."""


@dataclass(frozen=True)
class LogConfig:
    tensorboard: bool = True
    """Write TensorBoard's events into the run folder."""
    wandb: str | None = None
    """Weights & Biases project."""
    mlflow: str | None = None
    """MLflow experiment."""
    push_s: float = 60.0
    """A run folder on a bucket gets its metrics and other small files every so many seconds; 0: with checkpoints alone."""
    waiting_s: float = 60.0
    """A run that waits longer than so many seconds says what for, and again at doubled times."""
    peak_tflops: float | None = None
    """Dense bf16 TFLOP/s of a device, of which `mfu` is a share; None: as known by its name."""
    profile: int = 0
    """Steps whose trace is written into the run folder, a few after the start; 0: none."""

    def check(self) -> None:
        """Raises `ConfigError`."""
        at_least("log.", self, {"waiting_s": 1, "push_s": 0, "profile": 0})
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise ConfigError("log.peak_tflops", self.peak_tflops, "more than 0, or None for what is known")


@dataclass(frozen=True)
class RunConfig:
    """A pretraining run."""

    name: str
    """The run folder is `storage.root`/`name`."""
    motion_tokenizer: str = ""
    """Folder or s3:// address of a trained motion tokenizer. An objective without motion codes needs none."""
    init: str | None = None
    """Checkpoint, or run folder whose newest one is taken, whose weights the run starts from (not its optimizer or data position). Made
    with another objective, it gives its VLA and what the new one inherits; the rest starts anew (`training/checkpoint.py`)."""
    seed: int = 0
    """Of weights, order of rows and all draws."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=JalaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def check(self) -> None:
        """Refuse what cannot work, before anything starts; every part checks itself. Raises `ConfigError`."""
        self.data.check()
        if self.data.robot_sets and self.objective.codes:
            remedy = "Robot sets have no hand motion: a manifest has, and other objectives read signals."
            raise ConfigError("data.robot_sets", self.objective.kind, "an objective without motion codes", remedy)
        if not self.motion_tokenizer and self.objective.codes:
            remedy = "Train one with `jala tokenizer` and pass --motion-tokenizer PATH."
            raise ConfigError("motion_tokenizer", self.motion_tokenizer, "a trained motion tokenizer", remedy)
        if not self.name or ".." in self.name.split("/") or self.name.startswith("/"):
            raise ConfigError("name", self.name, "a folder name inside storage.root")
        self.train.check()
        if self.train.micro_tokens < self.data.max_tokens:
            expected = f">= data.max_tokens = {self.data.max_tokens}, which one sample may have"
            raise ConfigError("train.micro_tokens", self.train.micro_tokens, expected)
        self.optim.check()
        if self.train.parallel == "fsdp" and self.optim.states != "fp32":
            remedy = "With fsdp a GPU has a part of the moments: pass --optim.states fp32."
            raise ConfigError("optim.states", self.optim.states, "fp32 with train.parallel fsdp", remedy)
        at_least("storage.", self.storage, {"patience_s": 0, "lease_s": 1})
        self.log.check()
        self.cluster.check()
        at_least("", self, {"seed": 0})
        self.model.backbone.check()
        self.model.encoder.check()
        self.objective.check(self)
        check_evaluators(self)
