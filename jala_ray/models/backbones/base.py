"""The contract of a vision-language backbone: what model, losses, generation, export, estimates and data workers need of one (method.md 3).

The backbone knows text and pictures. Embeddings of motion tokens, hands and latent states come from outside (`VLA`), as does the
attention mask, which is honoured exactly: nothing causal is added to it. Pictures are square, uint8, of `image_size`; how they are
normalised and cut is the backbone's own affair, and so are positions beyond a token's place in its sample.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jala_ray.config import BackboneConfig, LanguageSizes
from jala_ray.config.backbones import BACKBONES, BackboneFacts
from jala_ray.models.attention import Allowed
from jala_ray.models.compiling import compile_block
from jala_ray.models.frozen import precision
from jala_ray.models.kv_cache import KVCache, Past, run_over
from jala_ray.models.lora import adapt
from jala_ray.models.masks import Intervals
from jala_ray.models.pixels import normalise_pixels
from jala_ray.types import ConfigError, UserError

if TYPE_CHECKING:
    from jala_ray.models.text import TextTokenizer

__all__ = ["Backbone", "BackboneFacts", "KVCache", "backbone_facts", "module_of", "normalise_pixels"]


class Backbone(nn.Module, ABC):
    """A vision tower, a projector and a language model. A kind implements what is abstract here; the rest it has in common.

    Weights are float32 masters; run it under `torch.autocast` for bf16. Build it with `Backbone.build`. Names in `state_dict` begin with
    those of `parts`; `hub_name` says what files of others call them.
    """

    config: BackboneConfig
    sizes: LanguageSizes
    """Of the language model that was built, wherever its weights come from."""
    image_tokens: int
    """Tokens of a picture, row-major."""
    patches: int
    """Patches of a picture that the vision tower runs over."""
    axes: ClassVar[int] = 1
    """Coordinates of a token's position."""
    _run_over: Any = staticmethod(run_over)
    """How a block runs over a cache that holds something."""

    # --- building -------------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        config: BackboneConfig,
        hf_config_dict: dict[str, Any] | None = None,
        *,
        text_vocab_size: int | None = None,
    ) -> Backbone:
        """Make a backbone of `config.kind`: from its stored architecture, pretrained weights, or random from the sizes.

        `hf_config_dict` (see `hf_config_dict()`) rebuilds the architecture with random weights and never asks
        the hub: a checkpoint loads its own weights into it. `text_vocab_size` is what the text tokenizer
        needs: a random backbone gets exactly that many rows, a pretrained one grows to it and never shrinks.
        Random weights follow torch's global seed.

        Raises `ConfigError` when weights can't be found, lack a tensor or are of another architecture, or sizes don't fit.
        """
        if hf_config_dict is None and config.pretrained is None and text_vocab_size is None:
            raise ConfigError("text_vocab_size", None, "the text tokenizer's size for a random backbone")
        made = module_of(config.kind).make(config, hf_config_dict, text_vocab_size)
        made.train()
        if config.freeze_vision:
            made.freeze("vision")
        if config.lora.rank:
            adapt(made, config.lora)
        return made

    @classmethod
    @abstractmethod
    def make(cls, config: BackboneConfig, stored: dict[str, Any] | None, text_vocab_size: int | None) -> Backbone:
        """See `build`."""

    @classmethod
    @abstractmethod
    def facts(cls, config: BackboneConfig, text_vocab_size: int) -> BackboneFacts:
        """Facts from the architecture alone; `text_vocab_size` is the text tokenizer's. Raises `ConfigError`."""

    @abstractmethod
    def hf_config_dict(self) -> dict[str, Any]:
        """The architecture as JSON-able values, for `build`."""

    # --- as files of others -----------------------------------------------------------------------------------

    @classmethod
    def hub_name(cls, name: str) -> str:
        """A tensor's name in `state_dict` -> its name in files of others."""
        return name

    @classmethod
    def own_name(cls, name: str) -> str:
        """The inverse of `hub_name`."""
        return name

    @classmethod
    def describe(cls, folder: Path, architecture: dict[str, Any], text: TextTokenizer, precision: str) -> None:
        """Write config.json beside an export's weights, whose dtype is `precision`."""
        (folder / "config.json").write_text(json.dumps(architecture | {"dtype": precision}, indent=1))

    # --- sizes ------------------------------------------------------------------------------------------------

    @property
    def hidden_size(self) -> int:
        return self.sizes.hidden

    @property
    def n_layers(self) -> int:
        return self.sizes.layers

    @property
    def text_vocab_size(self) -> int:
        return self.words.num_embeddings

    @property
    def image_size(self) -> int:
        return self.config.image_size

    # --- who learns -----------------------------------------------------------------------------------------

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Modules by the name of their attribute: `vision` (the tower, frozen by the config), `language`, and what else there is."""

    def freeze(self, *names: str) -> None:
        """Stop the gradients of parts (the vision tower by the config; more for post-training, method.md 10)."""
        for name in names:
            if name not in self.parts():
                raise ConfigError("freeze", name, f"one of {', '.join(self.parts())}")
            self.parts()[name].requires_grad_(False)
        self.train(self.training)

    def trainable(self) -> list[str]:
        """Names of the parameters that learn."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def sometimes_unused(self) -> list[nn.Parameter]:
        """Parameters that a batch may leave without a gradient: image parts, and the untied language head."""
        modules: Iterable[nn.Module] = (m for name, m in self.parts().items() if name != "language")
        return [parameter for module in modules for parameter in module.parameters()]

    def vision_learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parts()["vision"].parameters())

    def train(self, mode: bool = True) -> Backbone:
        """As usual, but a frozen vision tower stays in evaluation mode."""
        super().train(mode)
        if not self.vision_learns():
            self.parts()["vision"].eval()
        return self

    # --- as many blocks as are read ---------------------------------------------------------------------------

    shortened: bool = False
    """Blocks were dropped from what was built."""

    def shorten(self, layers: int) -> None:
        """Keep the first `layers` blocks alone: nothing above them is read. Sizes and architecture follow, so that a checkpoint builds
        what is left. Raises `ConfigError` for more blocks than there are.
        """
        if not 1 <= layers <= self.n_layers:
            remedy = "Blocks are counted from 1; the papers read 14, 19, 24 or 28 of 28."
            raise ConfigError("objective.layer", layers, f"1..{self.n_layers} for this backbone", remedy)
        if layers < self.n_layers:
            del self.blocks[layers:]
            self.sizes, self.shortened = replace(self.sizes, layers=layers), True

    def beyond_blocks(self) -> list[nn.Parameter]:
        """Parameters that only what comes after the blocks has: the last norm, and a text head that is not the embedding."""
        parts = self.parts()
        before = {id(p) for p in (*self.blocks.parameters(), *self.words.parameters())}
        after = [parts["language"], *(parts[name] for name in ("output",) if name in parts)]
        return [p for part in after for p in part.parameters() if id(p) not in before]

    # --- embeddings -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def words(self) -> nn.Embedding:
        """The text embedding."""

    @abstractmethod
    def see(self, pixels: Tensor) -> Tensor:
        """`encode_image` of at least one picture of the right size. The tower keeps no graph where it doesn't learn."""

    def embed_text(self, ids: Tensor) -> Tensor:
        """Text token ids (...) -> (..., D)."""
        return self.words(ids)

    @torch.no_grad()
    def embedding_std(self) -> float:
        """Standard deviation of the text embeddings: the scale for embeddings that join them; 1 where they have sizes alone."""
        weight = self.words.weight
        return 1.0 if weight.is_meta else float(weight.std())

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 RGB tiles (S, 3, image_size, image_size) -> (S, image_tokens, D), tokens row-major."""
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, self.image_size, self.image_size):
            expected = f"uint8 (S, 3, {self.image_size}, {self.image_size})"
            raise UserError("pixels", (pixels.dtype, tuple(pixels.shape)), expected, "Resize when decoding.")
        if pixels.shape[0] == 0:
            return self.words.weight.new_zeros(0, self.image_tokens, self.hidden_size)
        with precision(self.parts()["vision"], pixels.device):
            return self.see(pixels)

    def positions(self, place: Tensor, image_k: Tensor) -> Tensor:
        """Positions for `forward`, (B, T) or (B, T, axes), of whole rows of a batch, packed or not.

        `place` (B, T) within the sample (`Batch.position`); `image_k` (B, T) of the picture's tokens, else -1.
        """
        return place

    # --- the language model ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The language model's blocks, in order."""

    @property
    @abstractmethod
    def head(self) -> Tensor:
        """(text_vocab_size, D), which next text tokens are predicted with."""

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:
        """The last norm."""

    @abstractmethod
    def block_arguments(self, x: Tensor, mask: Allowed, position_ids: Tensor, cache: KVCache | None) -> dict[str, Any]:
        """What every block is called with beside its input, for the checked arguments of `forward`; `attention` takes the mask.

        In the place of the cache, each block gets its own `Past`, to which it gives its keys and values (`update`).
        """

    def run_blocks(self, x: Tensor, first: int, last: int, arguments: dict[str, Any]) -> Tensor:
        """Blocks `first`..`last`, counted from 1, over (B, T, D)."""
        run = self._run_one_over if any(isinstance(value, KVCache) for value in arguments.values()) else self._run_one
        for number in range(first - 1, last):
            x = run(number, x, arguments)
        return x

    def _run_one(self, number: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        return self.run_block(self.blocks[number], x, **arguments)

    def _run_one_over(self, number: int, x: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Block `number`, from 0, over a cache. The first pass, which makes the buffers, is never compiled."""
        own = {name: value.blocks[number] if isinstance(value, KVCache) else value for name, value in arguments.items()}
        begun = all(value for value in own.values() if isinstance(value, Past))
        with precision(self.parts()["language"], x.device):
            return (self._run_over if begun else run_over)(self.blocks[number], x, own)

    def run_block(self, block: Any, *inputs: Any, **arguments: Any) -> Tensor:
        """A block, or what takes the place of one, whose activations are kept or made again."""
        with precision(self.parts()["language"], self.words.weight.device):
            if self._recomputes():  # nothing in it is random
                return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **arguments)
            return block(*inputs, **arguments)

    def run_last_block(self, x: Tensor, mask: Intervals, position_ids: Tensor, read: Tensor) -> Tensor:
        """The last block over one row (1, T, D), wanted at places `read` (M,) alone -> (1, M, D). A kind may do less than all of it."""
        arguments = self.block_arguments(x, self.form(mask, x.device), position_ids, None)
        return self.run_blocks(x, self.n_layers, self.n_layers, arguments)[:, read]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Blocks of tower and language model as kernels of their own, for every length. What they compute is the same."""
        for block in (*self.blocks, *self.tower_blocks()):
            compile_block(block, backend)

    def compile_decoding(self, backend: str = "inductor") -> None:
        """Language blocks in passes over a cache, all of them as one graph, for every length. What they compute is the same."""
        if self._run_over is run_over:
            self._run_over = torch.compile(run_over, dynamic=True, backend=backend)

    def tower_blocks(self) -> Iterable[nn.Module]:
        """The vision tower's blocks that can be compiled."""
        return repeated(self.parts()["vision"])

    def forward(
        self,
        inputs_embeds: Tensor,
        mask: Tensor | Intervals,
        position_ids: Tensor,
        taps: tuple[int, ...] = (),
        cache: KVCache | None = None,
        deep: int | None = None,
        read: Tensor | None = None,
    ) -> tuple[Tensor, dict[int, Tensor], KVCache | None]:
        """Run the language model.

        `inputs_embeds` (B, T, D); `mask` bool (B, 1, T, Tkv), True = may attend, Tkv = positions in the cache + T, or the intervals of one
        row (B = 1); `position_ids` as `positions` gives them, (B, T) with one axis, (B, T, axes) with more, free to restart for packed
        samples. Every query needs a key to attend to.

        With intervals, `deep` is how many places of the row are wanted above the last tap, and `read` (M,) the places, rising and below
        `deep`, whose last hidden state is wanted: no more is computed.

        Returns `(final, hidden, cache)`: `final` (B, T, D), with `read` (1, M, D), after the last norm; `hidden[tap]` (B, T, D) the
        output of language block `tap`, counted from 1, before the last norm (method.md 5). Raises `ConfigError`
        for a tap that isn't there, `UserError` for a mask, positions or cache that don't fit.
        """
        if outside := [tap for tap in taps if not 1 <= tap <= self.n_layers]:
            raise ConfigError("taps", outside, f"language blocks 1..{self.n_layers}, counted from 1")
        if self._recomputes() and cache is not None:
            raise UserError("cache", "given", "none under gradient checkpointing", "Call eval() to generate.")
        self._check_positions(inputs_embeds, position_ids)
        self._check_mask(mask, inputs_embeds, cache, deep is not None or read is not None)
        x, hidden, done = inputs_embeds, dict[int, Tensor](), 0
        if cache is not None:
            cache.open(self.n_layers, x.shape[1])
        arguments = self.block_arguments(x, self.form(mask, x.device), position_ids, cache)
        for tap in sorted(set(taps)):
            x, done = self.run_blocks(x, done + 1, tap, arguments), tap
            hidden[tap] = x
        if isinstance(mask, Intervals) and deep is not None and done < self.n_layers:
            x, mask, position_ids = x[:, :deep], mask.cut(deep), position_ids[:, :deep]
            arguments = self.block_arguments(x, self.form(mask, x.device), position_ids, cache)
        if not isinstance(mask, Intervals) or read is None:
            x = self.run_blocks(x, done + 1, self.n_layers, arguments)
        elif done == self.n_layers:
            x = x[:, read]
        else:
            x = self.run_blocks(x, done + 1, self.n_layers - 1, arguments)
            x = self.run_last_block(x, mask, position_ids, read)
        if cache is not None:
            cache.close(inputs_embeds.shape[1])
        return self.norm(x), hidden, cache

    def form(self, mask: Tensor | Intervals, device: torch.device) -> Allowed:
        """What `attention` takes on a device, by `config.attention`."""
        if isinstance(mask, Tensor):
            return mask
        kind, on_cpu = self.config.attention, device.type == "cpu"
        if kind == "flex_attention" or (kind == "auto" and not on_cpu):
            return mask.blocks()
        return mask.dense() if kind == "eager" or not on_cpu else mask.spans()

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., D) -> next-text-token logits (..., text_vocab_size)."""
        with precision(self.parts()["language"], hidden.device):
            return F.linear(hidden, self.head)

    def _recomputes(self) -> bool:
        return self.config.gradient_checkpointing and self.training and torch.is_grad_enabled()

    def _check_positions(self, x: Tensor, position_ids: Tensor) -> None:
        expected = (*x.shape[:2], *([self.axes] if self.axes > 1 else []))
        if tuple(position_ids.shape) != expected:
            raise UserError("position_ids", tuple(position_ids.shape), str(expected), "Take them from `positions`.")

    def _check_mask(self, mask: Tensor | Intervals, x: Tensor, cache: KVCache | None, less: bool) -> None:
        batch, length, _ = x.shape
        if isinstance(mask, Intervals):
            if batch != 1 or len(mask.lo) != length or mask.keys != length or cache is not None:
                found = (batch, length, "a cache" if cache is not None else "no cache")
                raise UserError("mask", found, f"one row of {len(mask.lo)} tokens for its intervals, and no cache")
            return
        expected_shape = (batch, 1, length, (0 if cache is None else len(cache)) + length)
        if less or mask.dtype != torch.bool or tuple(mask.shape) != expected_shape:
            expected = f"bool {expected_shape}" if not less else "intervals, for `deep` and `read`"
            raise UserError("mask", (mask.dtype, tuple(mask.shape)), expected)


def repeated(module: nn.Module) -> nn.ModuleList:
    """The longest list of modules in one: the blocks of a tower. Empty where it has none."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def module_of(kind: str) -> type[Backbone]:
    """The class of a kind's models. Raises `ConfigError` for an unknown one."""
    return BACKBONES.find(kind, "model.backbone.kind")().module()


def backbone_facts(config: BackboneConfig, text_vocab_size: int) -> BackboneFacts:
    """Facts from the architecture alone; `text_vocab_size` is the text tokenizer's. Raises `ConfigError`."""
    return module_of(config.kind).facts(config, text_vocab_size)
