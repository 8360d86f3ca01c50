"""What must hold while stores stumble, heads are lost and processes die. Tests run it in short, `python -m tests.faults` at length.

Every trial returns its figures, and raises `Broken` or `StepFailed` where a promise is not kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.rgw import ObjectStore
from infra.local_head import Head, local_head
from jala_ray import storage
from jala_ray.storage import StorageOptions
from jala_ray.training import history
from tests.faults.chain import Chain, Outcome, StepFailed, put_raw_world
from tests.faults.kills import Broken, Campaign, Moment, killed_config, summary
from tests.faults.plan import KINDS, Outage
from tests.faults.proxy import FaultProxy

CAUSES = (
    "InternalError",
    "ServiceUnavailable",
    "SlowDown",
    "ConnectionClosed",
    "ConnectionReset",
    "EndpointConnection",
)
ORPHANS_S = 60.0
"""In which orphaned workers that have gone on come to write something."""


def same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Broken(f"{what}: {found} is not {expected}")


@dataclass
class Trials:
    """Over one gateway, whose keys are in the environment; every chain has a bucket of its own."""

    gateway: ObjectStore
    raw_world: Path
    """Labelled raw clips with their manifest."""
    logs: Path
    head: Head | None = None
    """Chains go through this Ray; without one, each step is one process."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def direct(self) -> StorageOptions:
        return StorageOptions(endpoint_url=self.gateway.endpoint)

    def bucket(self) -> str:
        """Address of a new one."""
        name = f"trial{next(self._numbers)}-{self.gateway.port}"
        self.gateway.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def chain(self, root: str, endpoint: str, name: str = "run", **settings: Any) -> Chain:
        environment = {"AWS_ENDPOINT_URL": endpoint} | through(self.head)
        logs = self.logs / f"{next(self._numbers)}-{name}"
        logs.mkdir(parents=True)
        return Chain(root, environment, logs, name=name, ray=self.head is not None, **settings)

    @functools.cached_property
    def unbroken(self) -> tuple[Chain, Outcome]:
        """A chain over a store without faults."""
        root = self.bucket()
        put_raw_world(self.raw_world, root, self.direct)
        chain = self.chain(root, self.gateway.endpoint)
        chain.all()
        outcome = chain.outcome(self.direct)
        same("samples without faults", outcome.metrics[-1]["samples"], 4 * chain.steps)
        same("rows set aside without faults", outcome.errors, 0)
        return chain, outcome

    @contextmanager
    def beside(self, name: str, **settings: Any) -> Iterator[tuple[Chain, FaultProxy]]:
        """Another run over what the unbroken chain prepared, behind a proxy."""
        chain, _ = self.unbroken
        with FaultProxy(self.gateway.endpoint) as proxy:
            yield self.chain(chain.root, proxy.endpoint, name, **settings), proxy

    def same_run(self, chain: Chain) -> None:
        _, expected = self.unbroken
        same(f"history of {chain.name}", chain.metrics(self.direct), expected.metrics)
        same(f"weights of {chain.name}", chain.weights(self.direct), expected.weights)

    # --- the trials --------------------------------------------------------------------------------------------------

    def tenth(self, seed: int) -> dict[str, Any]:
        """A tenth of all requests fails, in five ways, from preparation to scores; SIGKILL between two checkpoints of the training."""
        _, expected = self.unbroken
        root = self.bucket()
        put_raw_world(self.raw_world, root, self.direct)
        with FaultProxy(self.gateway.endpoint, seed=seed, rate=0.1, stall_s=0.5) as proxy:
            chain = self.chain(root, proxy.endpoint)
            chain.all(kill_at=[6])
            state = proxy.plan.state()
        same("kinds of fault", set(state["counts"]), set(KINDS))
        self._same_outcome(chain, expected)
        return {
            "requests": state["requests"],
            "faults": state["counts"],
            "samples": expected.metrics[-1]["samples"],
            "lost": 0,
        }

    def outages(self, seconds: float) -> dict[str, Any]:
        """One as the chain starts and one in the middle of its training: whoever asks a store that is away waits for it."""
        _, expected = self.unbroken
        root = self.bucket()
        put_raw_world(self.raw_world, root, self.direct)
        with FaultProxy(self.gateway.endpoint) as proxy:
            chain = self.chain(root, proxy.endpoint)
            proxy.plan.configure(outages=[Outage(after=0, seconds=seconds)])
            refused = [self._slowed(chain.prepare, proxy, seconds)]
            chain.tokenizer()
            proxy.plan.call_at(0, lambda: proxy.plan.begin_outage(seconds), of=saving(chain, 4))
            refused.append(self._slowed(chain.pretrain, proxy, seconds))
            chain.evaluate()
        self._same_outcome(chain, expected)
        return {"outages_s": [seconds, seconds], "requests refused": sum(refused)}

    @staticmethod
    def _slowed(step: Callable[[], None], proxy: FaultProxy, seconds: float) -> int:
        """How many requests an outage refused to a step that waited it out. Raises `Broken` where the outage did not meet it."""
        began, before = time.monotonic(), proxy.plan.counts["outage"]
        step()
        refused = proxy.plan.counts["outage"] - before
        if time.monotonic() - began < seconds or refused < 2:
            raise Broken(f"the outage did not meet the step: {refused} requests refused")
        return refused

    def _same_outcome(self, chain: Chain, expected: Outcome) -> None:
        found = chain.outcome(self.direct)
        for name, value in vars(expected).items():
            same(name, vars(found)[name], value)

    def gone(self, patience_s: float, within_s: float) -> dict[str, Any]:
        """The store goes away for good: the run ends when its patience does, says why in a line, and can be started again."""
        with self.beside("gone", patience_s=patience_s) as (chain, proxy):
            began = list[float]()

            def leave() -> None:
                proxy.plan.begin_outage(3600)
                began.append(time.monotonic())

            proxy.plan.call_at(0, leave, of=saving(chain, 8))
            with chain.begin() as command:
                rc, ended = command.wait(), time.monotonic()
            if not began:
                raise StepFailed(f"it ended with {rc} before it saved its eighth step:\n{command.output[-4000:]}")
            seconds = ended - began[0]
            *_, last = command.output.strip().splitlines()
            same("exit code", rc, 1)
            if seconds > within_s:
                raise Broken(f"it took {seconds:.0f} s to end")
            if not last.startswith("error: ") or proxy.endpoint not in last or not any(c in last for c in CAUSES):
                raise Broken(f"it does not say why: {last}")
            if self.head is None and "Traceback" in command.output:
                raise Broken(f"more than a line: {command.output[-4000:]}")
            same("newest", history.newest(chain.folder, self.direct), history.address(chain.folder, 4))
            storage.verify_dir(history.address(chain.folder, 4), self.direct)
            proxy.plan.begin_outage(0)
            chain.pretrain()
        self.same_run(chain)
        return {"patience_s": patience_s, "ended after s": round(seconds, 1), "said": last}

    def head_lost(self) -> dict[str, Any]:
        """A head and its driver are killed, the job is submitted to another head, and the first one's workers still run.

        Of an `unbroken` that went through Ray; the orphans are stopped where they are and go on when their successors have trained
        some steps.
        """
        chain, _ = self.unbroken
        # The first raylet is to outlive its GCS, for as long as the second job takes to come to its sixth step.
        with variable("RAY_gcs_rpc_server_reconnect_timeout_s", "600"), local_head(2) as lost, local_head(2) as other:
            environment = {"AWS_ENDPOINT_URL": self.gateway.endpoint}
            first = replace(chain, environment=environment | through(lost), name="orphaned")
            second = replace(first, environment=environment | through(other))
            orphans, woken = list[psutil.Process](), False
            with first.begin() as command:
                for line in command.lines():
                    if "step 5/" in line and not orphans:
                        orphans = workers_of(lost)
                        # `ray start --block`, too, which would end the raylet with the GCS.
                        for process in (supervisor_of(lost), *orphans):
                            process.suspend()
                        gcs_of(lost).kill()
                        command.signal(signal.SIGKILL)
                if not orphans:
                    raise StepFailed(command.output[-4000:])
            with second.begin() as heir:
                for line in heir.lines():
                    if "step 6/" in line and not woken:
                        woken = True
                        for process in orphans:
                            process.resume()
                rc = heir.wait()
            refused = refusals(lost, ORPHANS_S)
        same("exit code of the second", rc, 0)
        same("orphans that were refused", bool(refused), True)
        self.same_run(second)
        return {"orphans": len(orphans), "said": refused[0]}

    def kills(self, kills: int, seed: int, tokenizer: str, *, on_store: bool) -> dict[str, Any]:
        """SIGKILL at seeded moments of starts, saves and steps."""
        with self._campaign(tokenizer, on_store=on_store) as campaign:
            campaign.run(kills, seed)
        return summary(campaign)

    def kills_behind(self, kills: int, seed: int, tokenizer: str) -> dict[str, Any]:
        """SIGKILL while checkpoints are written behind the steps: half of them on disk, half on the store."""
        parts = {}
        for where, on_store in {"disk": False, "store": True}.items():
            with self._campaign(tokenizer, on_store=on_store) as campaign:
                campaign.run_behind(kills // 2, seed)
            parts[where] = summary(campaign)
        return {"kills in saves": sum(part["within"]["save"] for part in parts.values()), **parts}

    def chosen_kills(self, moments: Sequence[Moment], tokenizer: str, *, on_store: bool) -> dict[str, Any]:
        """SIGKILL at these moments of one run."""
        with self._campaign(tokenizer, on_store=on_store) as campaign:
            campaign.run_chosen(moments)
        return summary(campaign)

    @contextmanager
    def _campaign(self, tokenizer: str, *, on_store: bool) -> Iterator[Campaign]:
        folder = self.logs / f"{next(self._numbers)}-kills"
        folder.mkdir(parents=True)
        root = f"{self.bucket()}/runs" if on_store else str(folder / "runs")
        config = killed_config(str(self.raw_world / "manifest.parquet"), tokenizer, root)
        if not on_store:
            yield Campaign(config, folder)
        else:
            with FaultProxy(self.gateway.endpoint) as proxy:
                yield Campaign(config, folder, proxy=proxy, client=self.gateway.client(), direct=self.direct)


def saving(chain: Chain, step: int) -> str:
    """A regular expression of the requests of a checkpoint's files. What a driver prints comes late through Ray, these do not."""
    return rf"/runs/{chain.name}/checkpoints/step-0*{step}/"


def refusals(head: Head, seconds: float) -> list[str]:
    """What workers under a head said when they found their run folder taken over; waited for as long as `seconds`."""
    end = time.monotonic() + seconds
    while True:
        logs = head.log.parent.glob("session_*/logs/worker-*")
        found = [line for path in logs for line in path.read_text(errors="replace").splitlines() if "LeaseLost" in line]
        if found or time.monotonic() > end:
            return found
        time.sleep(0.5)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """In this process's environment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def through(head: Head | None) -> dict[str, str]:
    """Environment of a job that joins a head."""
    if head is None:
        return {}
    settings = {name: value for name, value in head.environment.items() if name.startswith("RAY_")}
    return settings | {"RAY_ADDRESS": head.gcs}


def processes_of(head: Head, wanted: Callable[[str], bool]) -> list[psutil.Process]:
    """Those that a head or its raylet started, by command line. A worker's own is overwritten; its parent's tells the head's folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if wanted(" ".join(process.cmdline())):
                lines = [" ".join(p.cmdline()) for p in (process, *process.parents())]
                if any(str(head.log.parent) in line for line in lines):
                    found.append(process)
    return found


def workers_of(head: Head) -> list[psutil.Process]:
    return processes_of(head, lambda words: "RayTrainWorker" in words)


def gcs_of(head: Head) -> psutil.Process:
    (process,) = processes_of(head, lambda words: "gcs_server" in words.split(" ")[0])
    return process


def supervisor_of(head: Head) -> psutil.Process:
    """`ray start --block`."""
    (process,) = processes_of(head, lambda words: "start --head --block" in words)
    return process
