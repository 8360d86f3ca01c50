"""convert-mano: pickles that look like MANO's are read, and nothing a pickle asks for is run."""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from jala_ray.hands.__main__ import main
from jala_ray.hands.convert import convert_mano
from jala_ray.hands.mano import ASSET_SHAPES, ManoHand, load_asset
from jala_ray.types import Hand, UserError


def official_fields(side: Hand) -> dict:
    """The fields of an official pickle, with the shipped hand's numbers in them."""
    arrays = load_asset(None, side)
    fields = {k: v for k, v in arrays.items() if k not in ("tip_ids", "side")}
    kintree = fields["kintree_table"].astype(np.uint32)
    kintree[0, 0] = 2**32 - 1
    return fields | {
        "J_regressor": scipy.sparse.csc_matrix(fields["J_regressor"].astype(np.float64)),
        "f": fields["f"].astype(np.uint32),
        "kintree_table": kintree,
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "J": np.zeros((16, 3)),
    }


@pytest.fixture
def chumpy(monkeypatch) -> types.SimpleNamespace:
    """Classes that pickle under chumpy's names; gone again before anything is read."""
    ch, reordering, root = (
        types.ModuleType("chumpy.ch"),
        types.ModuleType("chumpy.reordering"),
        types.ModuleType("chumpy"),
    )
    ch.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    reordering.Select = type("Select", (), {"__module__": "chumpy.reordering"})
    for module in (root, ch, reordering):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def make_ch(x: np.ndarray) -> object:
        made = ch.Ch()
        made.__dict__.update(x=x, _dirty_vars=set() if False else None)
        return made

    def make_select(x: np.ndarray) -> object:
        padded = np.concatenate([np.full(7, 99.0), x.ravel()])
        made = reordering.Select()
        made.__dict__.update(a=make_ch(padded), idxs=np.arange(7, 7 + x.size), preferred_shape=x.shape)
        return made

    def forget() -> None:
        for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
            monkeypatch.delitem(sys.modules, name)

    return types.SimpleNamespace(ch=make_ch, select=make_select, forget=forget)


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("side", Hand)
def test_an_official_looking_pickle_becomes_a_working_npz(
    tmp_path, chumpy, side: Hand, protocol: int
) -> None:
    fields = official_fields(side)
    fields["shapedirs"] = chumpy.select(fields["shapedirs"].astype(np.float64))
    fields["posedirs"] = chumpy.ch(fields["posedirs"].astype(np.float64))
    source = write(tmp_path / f"MANO_{side.name}.pkl", fields, protocol)
    chumpy.forget()
    target = tmp_path / "out" / f"hand_{side.name.lower()}.npz"
    assert main(["convert-mano", str(source), str(target)]) == 0
    shipped, converted = load_asset(None, side), load_asset(target, side)
    assert set(converted) == set(ASSET_SHAPES)
    for name in ASSET_SHAPES:
        np.testing.assert_array_equal(converted[name], shipped[name], err_msg=name)
    assert ManoHand.load(target, side).side is side


def test_a_python_2_pickle_is_read(tmp_path) -> None:
    """Python 2 writes text as bytes, and other module names; protocol 2 bytes of it, by hand."""
    fields = official_fields(Hand.RIGHT)
    data = pickle.dumps(fields, protocol=2)
    for new, old in (
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
        (b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n"),
    ):
        assert new in data or old in data
        data = data.replace(new, old)
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(data)
    converted = convert_mano(tmp_path / "MANO_RIGHT.pkl")
    np.testing.assert_array_equal(converted["J_regressor"], load_asset(None, Hand.RIGHT)["J_regressor"])


def test_shape_fix_of_the_left_hand(tmp_path) -> None:
    source = write(tmp_path / "MANO_LEFT.pkl", official_fields(Hand.LEFT))
    plain, fixed = convert_mano(source), convert_mano(source, fix_left_shape=True)
    np.testing.assert_array_equal(fixed["shapedirs"] * [[-1], [1], [1]], plain["shapedirs"])
    with pytest.raises(UserError, match="fix_left_shape"):
        convert_mano(source, Hand.RIGHT, fix_left_shape=True)


class Malicious:
    """Unpickling it calls `function(*arguments)`."""

    def __init__(self, function, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_malicious_pickles_are_refused_and_not_run(tmp_path) -> None:
    import os
    import subprocess

    witness = tmp_path / "witness"
    attacks = [
        Malicious(os.system, f"touch {witness}"),
        Malicious(subprocess.check_call, ["touch", str(witness)]),
        Malicious(eval, f"open({str(witness)!r}, 'w')"),
        Malicious(exec, f"open({str(witness)!r}, 'w')"),
        Malicious(getattr, np, "save"),
        Malicious(np.save, str(witness), np.zeros(3)),
        Malicious(np.fromfile, "/etc/hostname"),
        Malicious(scipy.sparse.load_npz, str(witness)),
        Malicious(os.getenv, "HOME"),
    ]
    for attack in attacks:
        source = write(tmp_path / "MANO_RIGHT.pkl", official_fields(Hand.RIGHT) | {"extra": attack})
        with pytest.raises(
            UserError, match=r"refused: the pickle asks for \w+(\.\w+)+, which MANO does not need"
        ):
            convert_mano(source)
    # Names with dots would walk through an allowed module's attributes.
    source.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(UserError, match="refused"):
        convert_mano(source)
    assert not witness.exists()


def test_stand_ins_are_all_that_copyreg_may_build(tmp_path) -> None:
    source = tmp_path / "MANO_RIGHT.pkl"
    source.write_bytes(b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.")
    with pytest.raises(UserError, match="refused: will not build"):
        convert_mano(source)


def test_what_is_not_a_mano_pickle_is_named(tmp_path, capsys) -> None:
    source = tmp_path / "MANO_RIGHT.pkl"
    with pytest.raises(UserError, match="readable file"):
        convert_mano(source)
    for content in (b"", b"hello", pickle.dumps(official_fields(Hand.RIGHT))[:-3000]):
        source.write_bytes(content)
        with pytest.raises(UserError, match="refused"):
            convert_mano(source)
    with pytest.raises(UserError, match="got 'list'"):
        convert_mano(write(source, [1, 2]))
    fields = official_fields(Hand.RIGHT)
    cases = {
        "weights: got 'missing'": {k: v for k, v in fields.items() if k != "weights"},
        r"v_template: got \(3, 3\), expected shape \(778, 3\)": fields | {"v_template": np.zeros((3, 3))},
        "f: got 'float64', expected integers": fields | {"f": np.zeros((1538, 3))},
        "weights: got 'str'": fields | {"weights": "none"},
        "hands_mean.*finite": fields | {"hands_mean": np.full(45, np.nan)},
        r"J_regressor.*sparse shape \(2, 2\)": fields | {"J_regressor": scipy.sparse.csc_matrix(np.eye(2))},
    }
    for message, content in cases.items():
        with pytest.raises(UserError, match=message):
            convert_mano(write(source, content))
    with pytest.raises(UserError, match="LEFT or RIGHT"):
        convert_mano(write(tmp_path / "hand.pkl", fields))
    assert main(["convert-mano", str(tmp_path / "none_left.pkl"), str(tmp_path / "a.npz")]) == 2
    assert main(["convert-mano", str(source), str(tmp_path / "a.txt")]) == 2
    errors = capsys.readouterr().err
    assert "error: IN.pkl" in errors and "error: OUT.npz" in errors and "Traceback" not in errors
