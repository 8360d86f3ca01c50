"""Qwen2.5-VL's modules, as transformers has them, fed square pictures of one size."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from jala_ray.config import BackboneConfig
from jala_ray.models.backbones._transformers import TransformersBackbone, qwen2_sizes
from jala_ray.models.backbones.qwen2_5_vl import AXES
from jala_ray.models.pixels import CLIP_MEAN, CLIP_STD, normalise_pixels
from jala_ray.models.text import TextTokenizer
from jala_ray.types import ConfigError

WINDOW_PATCHES = 8
"""Side of a window of the random tower, in patches, as the published one has it: 112 px of 14."""
FOLD = 2
"""Patches to a side of the random tower's tokens."""


class Merged(nn.Module):
    """In the place of the tower's patch merger: the patches of each token side by side. (N * n, d) -> (N, n, d)."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, self.patches))


class Qwen2_5VLBackbone(TransformersBackbone):
    """Vision transformer of windows, patch merger (`projector`), Qwen2 with rotary positions in time, row and column (M-RoPE)."""

    axes = AXES
    config_class = Qwen2_5_VLConfig
    model_class = Qwen2_5_VLForConditionalGeneration
    hub_names: ClassVar = {"vision": "visual", "projector": "visual.merger", "language": "model", "output": "lm_head"}

    @classmethod
    def random_config(cls, config: BackboneConfig, text_vocab_size: int) -> Qwen2_5_VLConfig:
        vision, language = config.vision, config.language
        # A quarter, rounded down, of the rotated pairs for time, the rest for row and column, as 16 + 24 + 24 of 64.
        pairs = language.hidden // language.heads // 2
        time = max(1, pairs // 4)
        column = (pairs - time) // 2
        return Qwen2_5_VLConfig(
            vision_config={
                "depth": vision.layers,
                "hidden_size": vision.hidden,
                "num_heads": vision.heads,
                "intermediate_size": vision.mlp,
                "patch_size": vision.patch,
                "spatial_merge_size": FOLD,
                "out_hidden_size": language.hidden,
                "window_size": WINDOW_PATCHES * vision.patch,
                "fullatt_block_indexes": full_blocks(vision.layers),
            },
            text_config={
                "model_type": "qwen2_5_vl_text",
                **qwen2_sizes(language, text_vocab_size),
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": language.rope_theta,
                    "mrope_section": [time, pairs - time - column, column],
                },
                "bos_token_id": None,
                "eos_token_id": None,
            },
            tie_word_embeddings=language.tie_embeddings,
        )

    @classmethod
    def prepared(cls, hf: Any) -> Any:
        text = hf.text_config
        if any(kind != "full_attention" for kind in text.layer_types):
            raise ConfigError("text_config.layer_types", text.layer_types, "full attention in every block")
        text.attention_dropout = 0.0
        hf.dtype = torch.float32
        return hf

    @classmethod
    def patch(cls, hf: Any) -> int:
        return hf.vision_config.patch_size

    @classmethod
    def fold(cls, hf: Any) -> int:
        return hf.vision_config.spatial_merge_size

    @classmethod
    def token_ids(cls, text: TextTokenizer) -> dict[str, int]:
        start, end = text.img_start, text.img_end
        return super().token_ids(text) | {"vision_start_token_id": start, "vision_end_token_id": end}

    def split(self, model: Any) -> tuple[nn.Module, nn.Module, Any]:
        """The merger learns while the tower is frozen, so it is taken out of it."""
        tower = model.model.visual
        merger, tower.merger = tower.merger, Merged(tower.spatial_merge_unit)
        return tower, merger, model.model.language_model

    def see(self, pixels: Tensor) -> Tensor:
        vision = self.hf_config.vision_config
        normalised = normalise_pixels(pixels, CLIP_MEAN, CLIP_STD)
        # Patches in the order of the tokens that they become; a picture is a clip of twice the same frame.
        flat = rearrange(
            normalised,
            "s c (h a p) (w b q) -> (s h w a b) c p q",
            **{"a": vision.spatial_merge_size, "b": vision.spatial_merge_size},
            **{"p": vision.patch_size, "q": vision.patch_size},
        )
        flat = repeat(flat, "n c p q -> n (c t p q)", t=vision.temporal_patch_size)
        grid, places = placed(
            *(len(pixels), self.image_size // vision.patch_size),
            *(vision.spatial_merge_size, vision.window_size, vision.patch_size),
        )
        on_device = {name: places[name].to(flat.device, non_blocking=True) for name in ("position_ids", "window_index")}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision_learns()):
            # Where windows end is read by the host, and stays there.
            merged = self.vision(flat, grid_thw=grid, **(places | on_device)).pooler_output
        return self.projector(merged).unflatten(0, (len(pixels), -1))

    def tower_blocks(self) -> Iterable[nn.Module]:
        return ()  # where windows end is read by the host in each of them: compiled, they would be two halves and a wait

    def positions(self, place: Tensor, image_k: Tensor) -> Tensor:
        """(B, T, 3): time, row and column. A picture's tokens share a time and count rows and columns from it; what follows goes on
        after the larger of them, as in the library's `get_rope_index`.
        """
        inside = image_k >= 0
        seen = inside.cumsum(-1) - inside.long()
        first = (torch.arange(place.shape[-1], device=place.device) - place).clamp(min=0)
        pictures = (seen - seen.gather(-1, first)) // self.image_tokens
        side = round(self.image_tokens**0.5)
        step = torch.where(inside, image_k, 0)
        time = place - pictures * (self.image_tokens - side) - step
        return torch.stack([time, time + step // side, time + step % side], -1)

    def rotation(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.language.rotary_emb(x, position_ids.movedim(-1, 0))


def full_blocks(layers: int) -> list[int]:
    """Blocks of the tower that see the whole picture, counted from 0: the last one of each quarter, as 7, 15, 23 and 31 of 32."""
    return sorted({layers * quarter // 4 - 1 for quarter in range(1, 5)} - {-1})


@functools.lru_cache(maxsize=64)
def placed(pictures: int, side: int, fold: int, window: int, patch: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Grids (S, 3) of `pictures` of `side` x `side` patches, and what the tower makes of them: on the CPU, once for each number."""
    grid = torch.tensor([[1, side, side]] * pictures)
    index, windows = get_vision_window_index(grid, fold, window, patch)
    places = {"position_ids": get_vision_position_ids(grid, fold), "cu_seqlens": get_vision_cu_seqlens(grid)}
    return grid, places | {"window_index": index, "cu_window_seqlens": windows}
