"""The step of an older commit, in a process of its own with that commit's tree first on the path: driven by `step_sides.Before`.

`python benchmarks/step_before.py FOLDER` reads `settings.json`, `samples.pt` and `weights.pt` there, then answers each line of its input
with JSON: `check` with the first micro-batch's loss, `step` with the seconds that one training step took. It knows the names of da3699e and
none of today's. Batches are packed as that commit packs by default; the step is its loop's (`training/loop.py:run_steps`) without logs.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jala_ray.data.collate import Laid, collate
from jala_ray.data.layout import Sequence
from jala_ray.models.backbone import Backbone

from jala_ray.config import (
    BackboneConfig,
    DataConfig,
    EncoderConfig,
    JalaConfig,
    LanguageSizes,
    OptimConfig,
    VisionSizes,
)
from jala_ray.models.encoders import FrameEncoder
from jala_ray.models.vla import VLA
from jala_ray.models.vocab import Vocab
from jala_ray.objectives.build import build_objective
from jala_ray.parsing import override
from jala_ray.training.learner import Learner
from jala_ray.training.optim import build_optimizer, clip_gradients, set_lr


def laid(sample: dict[str, Any], number: int) -> Laid:
    sequence = Sequence(sample["columns"], sample["pairs"])
    return Laid(number, 1.0, sequence, sample["image"], sample["boundaries"], frames=sample["frames"])


class Step:
    """A learner, its optimizer, and one step's micro-batches."""

    def __init__(self, settings: dict[str, Any], samples: list[Any], weights: dict[str, torch.Tensor]) -> None:
        self.device, self.precision = torch.device(settings["device"]), settings["precision"]
        sizes = {name: VisionSizes(**settings[name]) for name in ("vision", "encoder")}
        language = LanguageSizes(**settings["language"])
        backbone = BackboneConfig(image_size=settings["image_size"], vision=sizes["vision"], language=language)
        encoder = FrameEncoder.build(EncoderConfig(image_size=settings["frame_size"], sizes=sizes["encoder"]))
        vocab = Vocab(**settings["vocab"] | {"token_slots": tuple(settings["vocab"]["token_slots"])})
        vla = VLA(Backbone.build(backbone, text_vocab_size=vocab.text), vocab)
        objective = build_objective(override(JalaConfig(), settings["objective"]), vla, encoder.dim, encoder.grid)
        self.learner = Learner(vla, encoder, objective)
        self.learner.load_state_dict(weights)
        self.learner.to(self.device).train()
        self.optim = OptimConfig(**settings["optim"])
        self.optimizer = build_optimizer(self.learner, self.optim)
        data, size = DataConfig(), settings["micro_batch"]
        groups = [samples[i : i + size] for i in range(0, len(samples), size)]
        self.micro = [
            collate(
                [laid(sample, i) for i, sample in enumerate(group)],
                packing=data.packing,
                max_tokens=data.max_tokens,
                pad_multiple=data.pad_multiple,
            )
            for group in groups
        ]

    def forward(self, batch: dict[str, torch.Tensor]) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.learner(batch)

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """On the device."""
        if self.device.type == "cpu":
            return self.micro
        return [{k: v.pin_memory().to(self.device, non_blocking=True) for k, v in b.items()} for b in self.micro]

    @torch.no_grad()
    def check(self) -> dict[str, Any]:
        """The loss of the first micro-batch."""
        batch = self.batches()[0]
        return {"loss": float(self.forward(batch).loss) / float(batch["weight"].sum())}

    def step(self) -> dict[str, Any]:
        """One update; seconds."""
        with seconds(self.device) as taken:
            micro = self.batches()
            scale = 1 / torch.stack([batch["weight"].sum() for batch in micro]).sum().clamp(min=1.0)
            self.learner.objective.before_step(0.0)
            set_lr(self.optimizer, self.optim.lr)
            for batch in micro:
                (self.forward(batch).loss * scale).backward()
            clip_gradients(self.learner, self.optim.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.learner.objective.after_step()
        return taken


@contextlib.contextmanager
def seconds(device: torch.device) -> Any:
    """`wall_s` and `cpu_s` of all of this process's threads, filled when the context ends; the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: dict[str, float] = {}
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    wait()
    taken |= {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def main(folder: Path) -> None:
    import jala_ray

    settings = json.loads((folder / "settings.json").read_text())
    if not Path(jala_ray.__file__).is_relative_to(settings["tree"]):
        raise RuntimeError(f"jala_ray was imported from {jala_ray.__file__}, not from {settings['tree']}")
    torch.set_num_threads(settings["threads"])
    made = Step(settings, *(torch.load(folder / f"{name}.pt", weights_only=False) for name in ("samples", "weights")))
    answers = {"check": made.check, "step": made.step}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
