"""convert-mano: pickles that look like MANO's are read, and nothing a pickle asks for is run."""

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from jala_ray.hands.__main__ import main
from jala_ray.hands.convert import convert_mano
from jala_ray.hands.mano import ASSET_SHAPES, ManoHand, load_asset
from jala_ray.hands.unpickle import RestrictedUnpickler
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
    root, ch, reordering = (types.ModuleType(f"chumpy{name}") for name in ("", ".ch", ".reordering"))
    setattr(ch, "Ch", type("Ch", (), {"__module__": "chumpy.ch"}))  # noqa: B010
    setattr(reordering, "Select", type("Select", (), {"__module__": "chumpy.reordering"}))  # noqa: B010
    for module in (root, ch, reordering):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def make_ch(x: np.ndarray) -> object:
        made = ch.Ch()
        made.__dict__.update(x=x, _dirty_vars=None)
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
def test_an_official_looking_pickle_becomes_a_working_npz(tmp_path, chumpy, side: Hand, protocol: int) -> None:
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
    witness = tmp_path / "witness"
    source = tmp_path / "MANO_RIGHT.pkl"
    attacks = [
        Malicious(os.system, f"touch {witness}"),
        Malicious(subprocess.check_call, ["touch", str(witness)]),
        Malicious(eval, f"open({str(witness)!r}, 'w')"),
        Malicious(exec, f"open({str(witness)!r}, 'w')"),
        Malicious(getattr, "text", "upper"),
        Malicious(np.save, str(witness), np.zeros(3)),
        Malicious(np.fromfile, "/etc/hostname"),
        Malicious(scipy.sparse.load_npz, str(witness)),
        Malicious(os.getenv, "HOME"),
    ]
    for attack in attacks:
        write(source, official_fields(Hand.RIGHT) | {"extra": attack})
        with pytest.raises(UserError, match=r"refused: the pickle asks for \w+(\.\w+)+; only arrays are read"):
            convert_mano(source)
    # Names with dots would walk through an allowed module's attributes.
    source.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.")
    with pytest.raises(UserError, match="refused"):
        convert_mano(source)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.", "will not build"),
        # numpy itself would read any address here, and crash.
        (b"cnumpy\nndarray\n((I1\ntVO\nVAAAAAAAA\ntR.", "takes no arguments"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO\ntRVAAAAAAAA\ntR.", "plain dtype"),
        (b"cnumpy\ndtype\n(VV8\ntR.", "dtype 'V8'"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nobject\n(I0\ntVb\ntR.",
            "will not build an array",
        ),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
            b"(I1\n(I1\ntcnumpy\ndtype\n(VO8\ntRI00\nVAAAAAAAA\ntb.",
            "array content of type bytes",
        ),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
            b"(I1\n(I99\ntcnumpy\ndtype\n(VO8\ntRI00\n(lp0\ntb.",
            "array content for 0 numbers",
        ),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
            b"(I1\n(I99\ntcnumpy\ndtype\n(Vf8\ntRI00\nVAAAAAAAA\ntb.",
            r"array content for 1 numbers, shape \(99,\)",
        ),
    ],
)
def test_numpy_is_never_handed_unchecked_bytes(tmp_path, body: bytes, message: str) -> None:
    source = tmp_path / "MANO_RIGHT.pkl"
    source.write_bytes(body)
    with pytest.raises(UserError, match=f"refused: .*{message}"):
        convert_mano(source)


def test_nested_content_comes_back_as_plain_arrays(tmp_path) -> None:
    content = {
        "a": [np.arange(6.0).reshape(2, 3).T, (np.int64(3), "text")],
        "b": np.array({"c": np.eye(2)}, object),
    }
    for protocol in (2, 5):
        with write(tmp_path / "a.pkl", content, protocol).open("rb") as file:
            read = RestrictedUnpickler(file).load()
        array, (number, text) = read["a"]
        assert type(array) is np.ndarray and type(read["b"].item()["c"]) is np.ndarray
        np.testing.assert_array_equal(array, content["a"][0])
        assert number == 3 and text == "text"
        pickle.loads(pickle.dumps(read))


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
