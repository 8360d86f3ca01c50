"""The user's official MANO pickle -> npz, without running what a pickle could run.

MANO ships as a Python 2 pickle of numpy arrays, one scipy sparse matrix and chumpy objects; neither scipy nor
chumpy is imported to read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jala_ray.hands.mano import ASSET_SHAPES, N_JOINTS, N_VERTICES, TIP_IDS, validate_asset
from jala_ray.hands.unpickle import ChumpyStandIn, RestrictedUnpickler, SparseStandIn
from jala_ray.types import HAND_NAMES, Hand, UserError

_FIELDS = tuple(name for name in ASSET_SHAPES if name not in ("tip_ids", "side"))


def convert_mano(source: Path, side: Hand | None = None, *, fix_left_shape: bool = False) -> dict[str, np.ndarray]:
    """Read an official MANO pickle into the arrays of `mano.ASSET_SHAPES`.

    side: None to read LEFT or RIGHT from the file name. fix_left_shape: negate the x components of the shape
    directions; the official left model has them mirrored wrongly, and data sets that repaired it need the
    repair to use their betas. Raises UserError when the file is absent, not a pickle, asks for anything
    outside the list, or is not a MANO hand.
    """
    side = _side_of(source) if side is None else side
    try:
        with source.open("rb") as file:
            content = RestrictedUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError("IN.pkl", str(source), f"a readable file ({error})", "Check the path.") from error
    except Exception as error:  # A hostile or damaged pickle can fail in any way; all of them mean: refused.
        remedy = "Give the unchanged MANO_LEFT.pkl or MANO_RIGHT.pkl from mano.is.tue.mpg.de."
        raise UserError("IN.pkl", str(source), f"a MANO pickle (refused: {error})", remedy) from error
    if not isinstance(content, dict):
        raise UserError("IN.pkl", type(content).__name__, "a pickled dictionary of MANO fields")
    arrays = {}
    for name in _FIELDS:
        if name not in content:
            raise UserError(f"{source}: {name}", "missing", f"a MANO field of shape {ASSET_SHAPES[name]}")
        integer = name in ("f", "kintree_table")
        arrays[name] = _cast(_to_array(content[name], f"{source}: {name}"), f"{source}: {name}", integer)
    # The root's parent is stored as 2**32 - 1; int32 keeps smplx's and our own arithmetic plain.
    arrays["kintree_table"][0, :1] = 2**31 - 1
    arrays = {k: v.astype(np.int32 if v.dtype.kind == "i" else np.float32) for k, v in arrays.items()}
    if fix_left_shape:
        if side is not Hand.LEFT:
            raise UserError("fix_left_shape", True, "False for a right hand", "Only the left model has this error.")
        arrays["shapedirs"][:, 0] *= -1
    arrays |= {"tip_ids": np.array(TIP_IDS, np.int32), "side": np.array(int(side), np.int32)}
    validate_asset(arrays, str(source))
    return arrays


def _side_of(source: Path) -> Hand:
    named = [side for side in Hand if HAND_NAMES[side] in source.name.lower()]
    if len(named) != 1:
        raise UserError("IN.pkl", source.name, "a name with LEFT or RIGHT", "Or say --side left or --side right.")
    return named[0]


def _to_array(value: object, field: str) -> np.ndarray:
    """Plain, dense array of an array or a stand-in. Raises UserError."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    try:
        if isinstance(value, ChumpyStandIn):
            if "idxs" in value.state:
                flat = _to_array(value.state["a"], field).ravel()[np.asarray(value.state["idxs"], np.int64)]
                return flat.reshape(value.state.get("preferred_shape", flat.shape))
            return _to_array(value.state["x"], field)
        if isinstance(value, SparseStandIn):
            return _dense(value.state)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(field, repr(error), "a complete chumpy array or sparse matrix") from error
    raise UserError(field, type(value).__name__, "an array, a sparse matrix or a chumpy array")


def _cast(value: np.ndarray, field: str, integer: bool) -> np.ndarray:
    if value.dtype.kind not in ("iu" if integer else "iuf"):
        raise UserError(field, str(value.dtype), "integers" if integer else "numbers")
    return value.astype(np.int64 if integer else np.float64)


def _dense(state: dict[str, Any]) -> np.ndarray:
    shape = tuple(int(n) for n in state["_shape"])
    if shape != (N_JOINTS, N_VERTICES):
        raise ValueError(f"sparse shape {shape}")
    columns = np.repeat(np.arange(shape[1]), np.diff(np.asarray(state["indptr"], np.int64)))
    dense = np.zeros(shape)
    np.add.at(dense, (np.asarray(state["indices"]), columns), np.asarray(state["data"]))
    return dense
