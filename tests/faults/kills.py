"""A run that is killed again and again, at moments that are chosen or drawn from a seed: what it leaves each time, and where it ends."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jala_ray import storage
from jala_ray.config import RunConfig
from jala_ray.parsing import to_dict
from jala_ray.storage import StorageOptions, is_s3
from jala_ray.training import history, setup
from tests.faults.chain import NUMBERS
from tests.faults.processes import KILL_AFTER, KILL_AT, KILL_OF, KILL_UNDER, Command
from tests.faults.proxy import FaultProxy
from tests.support import small

LOGGED = re.compile(r"step (\d+)/")
BETWEEN_SHARE = 0.3
"""Of the kills; the others hit a file operation or a request, which are those of starts and saves."""
NEVER = 10**9
OF_A_SAVE = 60
"""File operations or requests on a checkpoint's files, about, until it is committed."""


class Broken(Exception):
    """A promise that a kill broke: what, after which kill."""


Part = Literal["start", "save", "step", "end"]
"""Of an attempt: until its first step is logged; while a checkpoint is written behind the steps, until it is committed and older ones are
gone; all other steps; after the last checkpoint.
"""


@dataclass(frozen=True)
class Moment:
    """When an attempt is killed."""

    seen: int = 0
    """As soon as this step is seen to be logged, be it in what comes next."""
    logged: int = 0
    """When this step is logged, before what comes next."""
    number: int = NEVER
    """At this file operation or request, counted from 0,"""
    of: str = ""
    """of those in whose path or address this regular expression is found."""

    def named(self, what: str) -> str:
        """`after step N`, or `WHAT N` of operations or requests."""
        if step := self.seen or self.logged:
            return f"after step {step}"
        return f"{what} {self.number}" + (f" of {self.of}" if self.of else "")


def drawn(rng: random.Random, newest: int, steps: int, horizon: int) -> Moment:
    """Of an attempt that goes on from step `newest`; a run makes about `horizon` operations or requests."""
    if rng.random() < BETWEEN_SHARE and newest < steps:
        return Moment(seen=rng.randint(newest + 1, steps))
    return Moment(number=rng.randrange(horizon))


def drawn_behind(rng: random.Random, newest: int, steps: int, every: int) -> Moment:
    """While one of the next checkpoints is written: at one of the operations or requests on its files."""
    step = rng.randrange(newest + every, steps + 1, every) if newest < steps else steps
    return Moment(number=rng.randrange(OF_A_SAVE), of=rf"checkpoints/\.?step-{step:08d}")


@dataclass(frozen=True)
class Kill:
    """One kill and what it left."""

    number: int
    run: str
    moment: str
    """`operation N`, `request N` of the attempt, or `after step N`."""
    within: Part
    logged: int
    """The last step that the attempt printed, 0 before its first."""
    newest: int
    """Step of the newest checkpoint afterwards, 0 without."""
    left: tuple[str, ...]
    """Unfinished files, uploads and temporary folders afterwards."""


@dataclass
class Campaign:
    """Kills runs of one configuration; each run is then let to its end. Raises `Broken`.

    `proxy` stands before the store of an s3:// root; a local root needs none.
    """

    config: RunConfig
    scratch: Path
    """An empty folder for logs and for the runs' TMPDIR."""
    proxy: FaultProxy | None = None
    client: Any = None
    """boto3's, directly to the store."""
    direct: StorageOptions = field(default_factory=StorageOptions)
    kills: list[Kill] = field(default_factory=list)
    repeated: int = 0
    """Steps trained twice."""

    def run(self, kills: int, seed: int) -> None:
        """Make so many kills at moments drawn from the seed, over as many runs as it takes."""
        horizon, rng, number = self._unbroken(), random.Random(seed), 0
        steps = self.config.train.steps or 1
        while len(self.kills) < kills:
            config, number = replace(self.config, name=f"{self.config.name}{number}"), number + 1
            Life(self, config, lambda newest: drawn(rng, newest, steps, horizon)).live(kills)

    def run_behind(self, kills: int, seed: int) -> None:
        """Until so many kills fell into saves, over as many runs as it takes."""
        self._unbroken()
        rng, number, train = random.Random(seed), 0, self.config.train

        def moment(newest: int) -> Moment:
            return drawn_behind(rng, newest, train.steps or 1, train.checkpoint_every)

        while (missing := kills - sum(kill.within == "save" for kill in self.kills)) > 0:
            config, number = replace(self.config, name=f"{self.config.name}{number}"), number + 1
            Life(self, config, moment).live(len(self.kills) + missing)

    def run_chosen(self, moments: Sequence[Moment]) -> None:
        """Kill one run at these moments, an attempt each."""
        self._unbroken()
        chosen = iter(moments)
        Life(self, replace(self.config, name=f"{self.config.name}0"), lambda _: next(chosen)).live(len(moments))
        if len(self.kills) < len(moments):
            raise Broken(f"the run ended before {moments[len(self.kills)]}")

    @property
    def tmp(self) -> Path:
        return self.scratch / "tmp"

    def environment(self, **more: str) -> dict[str, str]:
        endpoint = {} if self.proxy is None else {"AWS_ENDPOINT_URL": self.proxy.endpoint}
        return {"TMPDIR": str(self.tmp), **endpoint, **more}

    def start(self, config: RunConfig, **more: str) -> Command:
        path = self.scratch / f"{config.name}.json"
        path.write_text(json.dumps(to_dict(config)))
        words = ["-m", "jala_ray.training.local", str(path)]
        return Command.start(words, self.environment(**more), self.scratch / f"{config.name}.log")

    def _unbroken(self) -> int:
        """Take down what the run is without a kill; returns how many operations or requests it makes."""
        self.tmp.mkdir(exist_ok=True)
        config = replace(self.config, name="unbroken")
        before = self.proxy.plan.requests if self.proxy is not None else 0
        with self.start(config, **{KILL_AT: str(NEVER), KILL_UNDER: self.under(config)}) as command:
            if command.wait() != 0:
                raise Broken(f"the unbroken run: {command.output[-3000:]}")
        operations = int(command.output.split()[-3])
        horizon = operations if self.proxy is None else self.proxy.plan.requests - before
        if left := self.left(config):
            raise Broken(f"the unbroken run leaves {left}")
        self.reference = self.ended(config)
        return horizon

    def under(self, config: RunConfig) -> str:
        return f"{setup.run_folder(config)}:{self.tmp}"

    def left(self, config: RunConfig) -> set[str]:
        """Whatever a finished run would not have: unfinished files, folders and uploads, temporary copies."""
        folder = setup.run_folder(config)
        names = {f"TMPDIR/{path.name}" for path in self.tmp.iterdir()}
        if is_s3(folder):
            bucket, _, prefix = folder.removeprefix("s3://").partition("/")
            listed = self.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", ())
            names |= {f"upload {upload['Key']} {upload['UploadId']}" for upload in listed}
            found = list(storage.list_files(folder, self.direct))
        else:
            found = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")]
        names |= {name for name in found if re.search(r"\.part(/|$)|\.new$|UPLOADING", name)}
        whole = {name.split("/")[1] for name in found if re.fullmatch(r"checkpoints/step-\d+/COMMIT.json", name)}
        return names | {name for name in found if name.startswith("checkpoints/") and name.split("/")[1] not in whole}

    def ended(self, config: RunConfig) -> Ended:
        folder = setup.run_folder(config)
        text = storage.read_bytes(f"{folder}/metrics.jsonl", self.direct).decode()
        steps = tuple(
            {name: row[name] for name in NUMBERS if name in row} for row in map(json.loads, text.splitlines())
        )
        newest = history.newest(folder, self.direct)
        assert newest is not None
        entries = storage.read_commit(newest, self.direct).files
        weights = {name: entries[name].sha256 for name in ("model.safetensors", "optimizer.safetensors")}
        names = {name for name in storage.list_files(folder, self.direct) if not name.startswith("leases/")}
        names = {name for name in names if not name.endswith(".cut.jsonl")}
        return Ended(steps, weights, frozenset(names))


@dataclass(frozen=True)
class Ended:
    """A finished run: its history, its weights, and the names of its files."""

    steps: tuple[Mapping[str, Any], ...]
    weights: Mapping[str, str]
    names: frozenset[str]


@dataclass
class Life:
    """One run, from its first attempt to its end."""

    campaign: Campaign
    config: RunConfig
    moment: Callable[[int], Moment]
    """Of the next kill, by the step of the newest checkpoint."""
    newest: int = 0
    pending: set[str] = field(default_factory=set)
    """What kills left behind since the last start that came to a step."""

    def live(self, kills: int) -> None:
        campaign = self.campaign
        while len(campaign.kills) < kills and self._attempt(self.moment(self.newest)):
            self._check_checkpoints()
        if len(campaign.kills) >= kills:
            self._attempt(None)
        found, expected = campaign.ended(self.config), campaign.reference
        if found != expected:
            raise Broken(f"{self._after()} the run ended otherwise: {difference(found, expected)}")
        if left := campaign.left(self.config):
            raise Broken(f"{self._after()} the finished run leaves {sorted(left)}")
        shutil.rmtree(self.campaign.scratch / "runs" / self.config.name, ignore_errors=True)

    def _attempt(self, moment: Moment | None) -> bool:
        """Start it, and kill it at this moment; whether it was killed. Without one, and often with one, it gets to its end."""
        campaign, proxy, moment = self.campaign, self.campaign.proxy, moment or Moment()
        more = {KILL_AFTER: f"step {moment.logged}/"} if moment.logged else {}
        if proxy is None:
            more |= {KILL_AT: str(moment.number), KILL_UNDER: campaign.under(self.config), KILL_OF: moment.of}
        logged = 0
        with campaign.start(self.config, **more) as command:
            if proxy is not None:
                proxy.plan.call_at(moment.number, lambda: command.signal(signal.SIGKILL), moment.of)
            for step in steps_of(command):
                if logged == 0:
                    self._check_start(step)
                logged = step
                if step == moment.seen:
                    command.signal(signal.SIGKILL)
            rc = command.wait()
        if rc == 0:
            return False
        if rc != -signal.SIGKILL:
            raise Broken(f"{self._after()} the next attempt ended with {rc}: {command.output[-3000:]}")
        newest = history.newest(setup.run_folder(self.config), campaign.direct)
        step = history.step_of(newest) if newest is not None else 0
        if step < self.newest:
            raise Broken(f"kill {moment}: the newest checkpoint was of step {self.newest} and is of step {step}")
        self.newest = step
        campaign.repeated += max(0, logged - step)
        left = campaign.left(self.config)
        self.pending |= left
        name = moment.named("request" if proxy else "operation")
        facts = (name, self._within(logged, left), logged, step, tuple(sorted(left)))
        campaign.kills.append(Kill(len(campaign.kills), self.config.name, *facts))
        return True

    def _within(self, logged: int, left: set[str]) -> Part:
        """What a kill fell into, by the last step that the attempt printed and by what is there."""
        if logged == 0:
            return "start"
        settings, last = self.config.train, logged == self.config.train.steps
        due = logged if last else logged - logged % settings.checkpoint_every
        kept = history.committed_steps(setup.run_folder(self.config), self.campaign.direct)
        unfinished = len(kept) > settings.keep or any("checkpoints/" in name for name in left)
        if self.newest < due or unfinished:
            return "save"
        return "end" if last else "step"

    def _check_start(self, step: int) -> None:
        """At an attempt's first step: it goes on from the newest checkpoint, and nothing is left of the attempts before."""
        if step != self.newest + 1:
            raise Broken(f"{self._after()} the next attempt began with step {step}, not {self.newest + 1}")
        if still := self.pending & self.campaign.left(self.config):
            raise Broken(f"{self._after()} the next start left behind {sorted(still)}")
        self.pending = set()
        self._check_kept()

    def _check_kept(self) -> None:
        kept = history.committed_steps(setup.run_folder(self.config), self.campaign.direct)
        if len(kept) > self.config.train.keep:
            raise Broken(f"{self._after()} {len(kept)} checkpoints are kept, not {self.config.train.keep}")

    def _check_checkpoints(self) -> None:
        """All that call themselves whole are, byte by byte."""
        for address in history.committed_steps(setup.run_folder(self.config), self.campaign.direct):
            storage.verify_dir(address, self.campaign.direct)

    def _after(self) -> str:
        return f"after {self.campaign.kills[-1]}" if self.campaign.kills else "before the first kill"


def steps_of(command: Command) -> Iterator[int]:
    for line in command.lines():
        if found := LOGGED.match(line):
            yield int(found[1])


def difference(found: Ended, expected: Ended) -> str:
    for a, b in zip(found.steps, expected.steps, strict=False):
        if a != b:
            return f"{a} is not {b}"
    if len(found.steps) != len(expected.steps):
        return f"{len(found.steps)} steps, not {len(expected.steps)}"
    if found.names != expected.names:
        return f"names {sorted(found.names ^ expected.names)}"
    return f"weights {found.weights} are not {expected.weights}"


def killed_config(manifest: str, tokenizer: str, root: str) -> RunConfig:
    """A run of some seconds whose checkpoints have files of several parts; it saves often, so that kills meet saves."""
    return small(
        name="killed",
        storage__root=root,
        data__manifest=manifest,
        motion_tokenizer=tokenizer,
        data__workers=0,
        model__backbone__language__mlp=4096,
        train__steps=10,
        train__batch=4,
        train__micro_batch=2,
        train__log_every=1,
        train__checkpoint_every=2,
        train__validate_every=10,
        train__monitor_every=10,
        train__val_samples=2,
        train__keep=2,
        log__tensorboard=False,
    )


def summary(campaign: Campaign) -> dict[str, Any]:
    """For a result's JSON."""
    made = campaign.kills
    return {
        "kills": len(made),
        "runs": len({kill.run for kill in made}),
        "within": {part: sum(kill.within == part for kill in made) for part in get_args(Part)},
        "that left something": sum(bool(kill.left) for kill in made),
        "steps repeated": campaign.repeated,
        "moments": [asdict(kill) | {"left": len(kill.left)} for kill in made],
    }
