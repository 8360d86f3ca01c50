"""What `--dry-run` says, against the modules that a run really has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jala_ray.commands import shell
from jala_ray.config import RunConfig, VisionSizes
from jala_ray.config.backbones import BACKBONES
from jala_ray.data.manifest.table import write_manifest
from jala_ray.models.published import ENCODERS, unweighted
from jala_ray.parsing import override
from jala_ray.presets import PRESETS, TINY
from jala_ray.storage import StorageOptions
from jala_ray.training.estimate import Data, compute, on_meta, step_seconds
from jala_ray.types import ConfigError
from tests.data.manifest_clips import make_clip
from tests.support import make_learner, small

DATA = Data(1000, 5.0, "a test")
VARIANTS = sorted(
    {type(config.objective): name for name, config in PRESETS.items() if name.startswith("tiny")}.values()
)


def counts(learner) -> tuple[int, int]:
    every = list(learner.parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_modules(name: str) -> None:
    """But for the numbers of text and motion ids: the estimate has the paper's tokenizer."""
    config = small(PRESETS[name])
    real, computed = make_learner(config), on_meta(config)
    theirs = {n: p.numel() for n, p in real.named_parameters()}
    ours = {n: p.numel() for n, p in computed.named_parameters()}
    assert theirs.keys() == ours.keys()
    other = {n for n in ours if ours[n] != theirs[n]}
    assert all(
        any(word in n for word in ("motion_", "queries", "embed_tokens", "codebook", "tokenizer.")) for n in other
    ), other
    assert {n for n, p in real.named_parameters() if p.requires_grad} == {
        n for n, p in computed.named_parameters() if p.requires_grad
    }
    assert all(p.is_meta for p in computed.parameters())


def test_published_sizes() -> None:
    """InternVL3-2B has 2.09 G parameters, its hub page says; DINOv3 ViT-L 303 M."""
    learner = on_meta(PRESETS["jala"])
    backbone = sum(p.numel() for p in learner.vla.backbone.parameters())
    assert backbone == pytest.approx(2.09e9, rel=0.005)
    assert sum(p.numel() for p in learner.encoder.parameters()) == pytest.approx(303e6, rel=0.005)
    assert learner.vla.backbone.n_layers == 28 and learner.vla.backbone.image_tokens == 256
    for config in PRESETS.values():
        model = config.model
        known = BACKBONES.find(model.backbone.kind).published
        assert model.backbone.pretrained is None or model.backbone.pretrained in known
        assert model.encoder.pretrained is None or model.encoder.pretrained in ENCODERS


def test_a_folder_says_its_sizes_itself(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 16, "mlp_ratio": 2}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    model = override(TINY, {"model.encoder.pretrained": str(tmp_path)}).model
    assert unweighted(model).encoder.sizes == VisionSizes(96, 3, 4, 192, 16)
    with pytest.raises(ConfigError, match="not known offline"):
        unweighted(override(TINY, {"model.encoder.pretrained": "somebody/else"}).model)


def test_what_changes_what() -> None:
    base = compute(TINY, DATA)
    off = compute(override(TINY, {"model.backbone.gradient_checkpointing": True}), DATA)
    assert off.footprint.activations < base.footprint.activations and off.flops_step > base.flops_step
    half = compute(override(TINY, {"train.micro_batch": 4}), DATA).footprint
    assert half.activations == pytest.approx(base.footprint.activations / 2, rel=1e-6)
    assert half.weights == base.footprint.weights
    assert compute(override(TINY, {"train.batch": 32}), DATA).flops_step == pytest.approx(2 * base.flops_step)
    epochs = override(TINY, {"train.steps": None, "train.epochs": 3})
    assert compute(epochs, DATA).steps == 3 * 63  # 1000 rows, 16 a step
    assert compute(epochs, replace(DATA, rows=None)).steps is None


def run_folder(folder: Path, config: RunConfig, seconds: list[float]) -> Path:
    folder.mkdir()
    rows = [{"step": i + 1, "step_s": s, "loss": 1.0} for i, s in enumerate(seconds)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "st')
    return folder


def test_dry_run_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "tiny", "--data.manifest", "M", "--motion-tokenizer", "T", "--dry-run"]
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    assert "fits in 80 GB" in said and "hours: unknown" in said and said.count("(computed") >= 4
    like = run_folder(tmp_path / "like", TINY, [0.5, 9.0, 0.7])
    assert step_seconds(str(like), StorageOptions()) == 0.7
    gpu = ["--cluster.workers", "4", "--cluster.gpus-per-worker", "1", "--like", str(like), "--gpu-hour-price", "3"]
    assert shell.main([*words, *gpu, "--train.steps", "36000", "--gpu-memory-gb", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "does NOT fit in 0.2 GB" in said
    assert "7.00 h" in said and "GPU-hours: 28.00" in said and "at 3 a GPU-hour: 84.00" in said
    assert "36,000, 16 samples per step, 576,000 samples" in said
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_names_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "pretrain",
        "jala",
        "--data.manifest",
        "M",
        "--motion-tokenizer",
        "T",
        "--dry-run",
        "--cluster.workers",
        "1",
    ]
    assert shell.main(words) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "a GPU of 24 GB" in line)
    assert "would hold it with --model.backbone.gradient-checkpointing True --model.backbone.lora.rank 64" in line
    settings = line.partition(" with ")[2].partition(":")[0].split()
    assert shell.main([*words, *settings, "--gpu-memory-gb", "24"]) == 0
    said = capsys.readouterr().out
    assert "fits in 24 GB" in said and "LoRA of rank 64" in said and "a GPU of 24 GB holds it" in said
    assert all(
        f"  {part}" in said
        for part in ("weights", "gradients", "optimizer", "bf16 copies", "activations", "perceivers", "text")
    )


def test_dry_run_reads_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab_manifest = tmp_path / "lab"
    write_manifest([make_clip(f"c{i}", 2.0) for i in range(40)], lab_manifest)
    words = ["--data.manifest", str(lab_manifest), "--motion-tokenizer", "T", "--dry-run", "--train.steps", "None"]
    assert shell.main(["pretrain", "tiny", *words, "--tflops", "1"]) == 0
    said = capsys.readouterr().out
    assert f"computed from the manifest {lab_manifest}" in said and "assumed 1 TFLOP/s" in said
    assert " h\n" in said
