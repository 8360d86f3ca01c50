"""Captions files as editors, scripts and shells write them."""

from __future__ import annotations

import json
import unicodedata

import pytest

from jala_ray.data.adapters.captions import Caption, by_file, read_captions
from jala_ray.types import UserError

LINE = json.dumps({"file": "a.mp4", "text": "Pour the water."}) + "\n"


def read(tmp_path, content: bytes) -> list[Caption]:
    (tmp_path / "c.jsonl").write_bytes(content)
    return read_captions(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x1c", "\x0b", "\x0c", "\r"])
def test_only_newlines_end_a_line(tmp_path, mark):
    text = f"Pour{mark}water."
    written = json.dumps(text, ensure_ascii=False)  # controls escaped, the others as they are
    content = f'{{"file": "a.mp4", "text": {written}}}\n{LINE}'
    assert [caption.text for caption in read(tmp_path, content.encode())] == [text, "Pour the water."]


def test_line_ends_and_byte_order_mark_of_windows(tmp_path):
    two = [Caption("a.mp4", "Pour the water.")] * 2
    assert read(tmp_path, (2 * LINE).encode("utf-8-sig")) == two
    assert read(tmp_path, (LINE + "\n \t\n" + LINE.rstrip()).replace("\n", "\r\n").encode()) == two


@pytest.mark.parametrize(
    ("content", "place", "remedy"),
    [
        (LINE.encode("utf-16"), "line 1, byte 0", "UTF-16"),
        (LINE.encode("utf-16-le"), "line 1, byte 1", "UTF-16"),
        (LINE.encode("utf-16-be"), "line 1, byte 0", "UTF-16"),
        (LINE.encode("utf-32"), "line 1, byte 0", "UTF-32"),
        (
            LINE.encode() + '{"file": "a.mp4", "text": "the jar’s lid"}'.encode("cp1252"),
            f"line 2, byte {len(LINE) + 34}",
            "iconv",
        ),
        (LINE.encode("utf-8-sig") + '"café"'.encode("latin-1"), f"line 2, byte {3 + len(LINE) + 4}", "iconv"),
        (LINE.encode() + '{"file": "a.mp4", "text": "café'.encode()[:-1], f"line 2, byte {len(LINE) + 30}", "iconv"),
    ],
    ids=["UTF-16", "UTF-16-LE", "UTF-16-BE", "UTF-32", "cp1252", "Latin-1 after a mark", "cut within a character"],
)
def test_other_encodings_are_named_with_their_place(tmp_path, content, place, remedy):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert caught.value.field == f"{tmp_path}/c.jsonl, {place}"
    assert "UTF-8" in caught.value.expected and remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("[" * 100_000, "line 2"),
        ('{"file": "a", "text": "b", "end": 1' + "0" * 400 + "}", "line 2, end"),
        ('{"file": "a", "text": "b", "end": 1' + "0" * 5000 + "}", "line 2"),
        ('{"file": "a", "text": "b", "start": NaN}', "line 2, start"),
        ('{"file": "a", "text": "b", "start": 1e999}', "line 2, start"),
        ('{"file": "a", "text": "\\ud800"}', "line 2, text"),
        ('{"file": 7, "text": "b"}', "line 2, file"),
    ],
)
def test_odd_json_is_a_named_problem(tmp_path, line, field):
    with pytest.raises(UserError) as caught:
        read(tmp_path, (LINE + line).encode())
    assert caught.value.field.endswith(field)


def test_names_match_in_any_unicode_form():
    composed, apart = (unicodedata.normalize(form, "물붓기.mp4") for form in ("NFC", "NFD"))
    for there, said in ((apart, composed), (composed, apart)):
        found, absent = by_file([Caption(said, "Pour.")], [there, "b.mp4"])
        assert found == {there: [Caption(said, "Pour.")]} and absent == {}
    found, absent = by_file([Caption(composed, "1"), Caption(apart, "2")], [apart, composed])
    assert {name: captions[0].text for name, captions in found.items()} == {composed: "1", apart: "2"}


def test_what_was_perhaps_meant_is_said():
    files = ["sub/w.mp4", "B.MP4", r"odd\name.mp4"]
    said = [r"sub\w.mp4", "./b.mp4", "gone.mp4", r"odd\name.mp4"]
    found, absent = by_file([Caption(name, "x") for name in said], files)
    assert list(found) == [r"odd\name.mp4"], "a backslash is a letter like another in a name"
    assert absent == {r"sub\w.mp4": "sub/w.mp4", "./b.mp4": "B.MP4", "gone.mp4": ""}
