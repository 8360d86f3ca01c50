"""A backbone without the blocks that nobody reads: what is left computes the same, and builds itself from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jala_ray.models.backbones.base import Backbone
from jala_ray.models.masks import Intervals
from jala_ray.parsing import override
from jala_ray.types import ConfigError
from tests.support import small


def made(kind: str) -> Backbone:
    torch.manual_seed(1)
    config = override(small().model.backbone, {"kind": kind, "image_size": 56})
    return Backbone.build(config, text_vocab_size=50).eval()


def hidden(backbone: Backbone, tap: int) -> torch.Tensor:
    x = torch.randn(1, 9, backbone.hidden_size, generator=torch.Generator().manual_seed(2))
    places, none = torch.arange(9)[None], torch.full((1, 9), -1)
    mask = Intervals(torch.zeros(9, dtype=torch.int64), torch.arange(9) + 1, 9)
    with torch.no_grad():
        _, taps, _ = backbone(x, mask, backbone.positions(places, none), (tap,))
    return taps[tap]


@pytest.mark.parametrize("kind", ["internvl", "qwen2_5_vl"])
def test_what_is_read_is_the_same(kind: str, tmp_path: Path) -> None:
    whole, short = made(kind), made(kind)
    count = sum(p.numel() for p in short.parameters())
    short.shorten(3)
    assert (short.n_layers, len(short.blocks), short.shortened, whole.shortened) == (3, 3, True, False)
    assert torch.equal(hidden(short, 3), hidden(whole, 3))
    assert count - sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in whole.blocks[3].parameters())

    stored = json.loads(json.dumps(short.hf_config_dict()))
    again = Backbone.build(short.config, stored, text_vocab_size=50).eval()
    again.load_state_dict(short.state_dict())
    assert again.n_layers == 3 and torch.equal(hidden(again, 3), hidden(whole, 3))
    again.shorten(3)
    assert not again.shortened, "nothing was dropped of what was built"


def test_more_blocks_than_there_are(tmp_path: Path) -> None:
    for layers in (0, 5):
        with pytest.raises(ConfigError, match=r"objective\.layer.*1\.\.4"):
            made("internvl").shorten(layers)


@pytest.mark.parametrize("tied", [True, False])
def test_what_lies_beyond_the_blocks(tied: bool) -> None:
    config = override(small().model.backbone, {"language.tie_embeddings": tied})
    backbone = Backbone.build(config, text_vocab_size=50)
    names = {id(p): name for name, p in backbone.named_parameters()}
    found = {names[id(p)] for p in backbone.beyond_blocks()}
    assert found == {"language.norm.weight"} | (set() if tied else {"output.weight"})
