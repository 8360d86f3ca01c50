"""Weights of others, from the hub or a folder. All of a model comes from their files, or the files are refused by name.

transformers fills what is missing with random numbers and says so in its log alone: a model that was hardly there would be trained
as if it were pretrained.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from jala_ray.models.tensor_files import WEIGHTS, TensorFiles, file_name, index_name
from jala_ray.types import ConfigError

LFS = b"version https://git-lfs"
"""How a file begins that Git left as a pointer to its content."""
AGAIN = "Fetch the files again, or save them anew from the model that has them (`save_pretrained`)."


@dataclass(frozen=True)
class Pretrained:
    """Where weights lie, and how errors speak of them."""

    field: str
    """The setting that names them."""
    name: str
    """On the hub, or a folder."""
    revision: str | None
    remedy: str
    """What else the setting could say."""

    def config_dict(self, kind: type[PreTrainedConfig]) -> dict[str, Any]:
        """`config.json` as it is. Raises `ConfigError` where it can't be read or is of another model than `kind`."""
        # `from_pretrained` would only warn about another architecture; the raw dictionary tells.
        try:
            raw, _ = kind.get_config_dict(self.name, revision=self.revision or "main")
            found = raw.get("model_type")
        except Exception as error:  # a file of others can break the library in any way
            raise self._unreadable(error) from error
        if found != kind.model_type:
            raise ConfigError(self.field, (self.name, found), f"model type {kind.model_type}", self.remedy)
        return raw

    def config(self, kind: type[PreTrainedConfig]) -> Any:
        """The architecture, of class `kind`. Raises `ConfigError`."""
        self.config_dict(kind)
        try:
            return kind.from_pretrained(self.name, revision=self.revision or "main")
        except Exception as error:
            raise self._unreadable(error) from error

    def load(self, model: type[PreTrainedModel], *, unused: Collection[str] = (), **options: Any) -> Any:
        """The model in float32, all of its weights from the files.

        Parts named in `unused` are thrown away by the caller, and may be absent. Tensors of parts that the model doesn't have (another
        task's head) are passed over; one that has no place in a part that the model does have means other weights than the
        configuration describes. Raises `ConfigError` that names the tensor, or the file that is damaged.
        """
        try:
            made, told = self._read(model, options, ignore_mismatched_sizes=False)
        except Exception as error:
            self._refuse_shapes(model, options, error)
            raise self._unreadable(error) from error
        missing = {name for name in told["missing_keys"] if name.split(".")[0] not in unused}
        parts = {name for name, _ in made.named_children()}
        extra = set(told["unexpected_keys"])
        if missing:
            self._refuse("absent", missing, f"; there are others: {_some(extra)}" if extra else "")
        if misplaced := {name for name in extra if name.split(".")[0] in parts}:
            self._refuse("without a place in it by config.json", misplaced)
        return made

    def _read(self, model: type[PreTrainedModel], options: dict[str, Any], *, ignore_mismatched_sizes: bool) -> Any:
        revision = self.revision or "main"
        how: dict[str, Any] = {
            "dtype": torch.float32,
            "output_loading_info": True,
            "ignore_mismatched_sizes": ignore_mismatched_sizes,
        }
        if (files := self._weight_files()) is None:
            return model.from_pretrained(self.name, revision=revision, **how, **options)
        # The library maps files into memory, where their pages stay until all is read: the weights once more.
        kind: Any = model.config_class
        config = options.get("config") or kind.from_pretrained(self.name, revision=revision, **options)
        loaded: Any = model.from_pretrained(None, config=config, state_dict=TensorFiles(files).lazy(), **how)
        made, told = loaded
        made.config.name_or_path = made.name_or_path = self.name
        return made, told

    def _weight_files(self) -> list[Path] | None:
        """The safetensors files, fetched where they are on the hub; None where there are none."""
        for name in (file_name(WEIGHTS, 1, 1), index_name(WEIGHTS)):
            try:
                found = cached_file(self.name, name, revision=self.revision or "main")
            except OSError:  # weights of the older kind, or no access: the library tells
                continue
            if name == file_name(WEIGHTS, 1, 1):
                return [Path(str(found))]
            shards, _ = get_checkpoint_shard_files(self.name, found, revision=self.revision or "main")
            return [Path(shard) for shard in shards]
        return None

    def _refuse_shapes(self, model: type[PreTrainedModel], options: dict[str, Any], cause: Exception) -> None:
        """Name tensors of other shapes, which transformers only logs; nothing where `cause` is another."""
        if not isinstance(cause, RuntimeError):
            return
        try:
            _, told = self._read(model, options, ignore_mismatched_sizes=True)
        except Exception:  # `cause` is not the shapes, and is told
            return
        if told["mismatched_keys"]:
            _, stored, wanted = min(told["mismatched_keys"])
            shapes = f" (stored {tuple(stored)}, wanted {tuple(wanted)})"
            self._refuse("of other shapes", {key[0] for key in told["mismatched_keys"]}, shapes, cause)

    def _refuse(self, how: str, names: set[str], more: str = "", cause: Exception | None = None) -> None:
        expected = f"every tensor of the model that config.json describes; {how}: {_some(names)}{more}"
        raise ConfigError(self.field, self.name, expected, f"{AGAIN} {self.remedy}") from cause

    def _unreadable(self, error: Exception) -> ConfigError:
        remedy = f"{self.remedy} ({type(error).__name__}: {error})"
        return ConfigError(self.field, self.name, "weights that can be read", self._damaged() or remedy)

    def _damaged(self) -> str | None:
        """The first file of weights that can't be opened, why, and what to do: the library's errors don't name it."""
        try:
            config = cached_file(self.name, "config.json", revision=self.revision or "main", local_files_only=True)
        except OSError:  # not on this machine
            return None
        for path in sorted(Path(str(config)).parent.glob("*.safetensors")):
            if not path.exists():
                return f"{path} is damaged (a link to a file that is gone). {AGAIN}"
            try:
                with path.open("rb") as file:
                    if file.read(len(LFS)) == LFS:
                        return f"{path} is a Git LFS pointer: run `git lfs pull` in its folder."
                with safe_open(path, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                return f"{path} is damaged ({error}). {AGAIN}"
        return None


def _some(names: Collection[str]) -> str:
    """a, b, c and 7 more"""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
