"""Nothing on the inspection page is markup of the manifest's or loaded; the command that writes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from jala_ray.data.__main__ import main

from jala_ray.data.manifest.table import Manifest, Rejection, write_manifest
from jala_ray.reports.inspection.page import default_page, write_inspection
from jala_ray.reports.kit import html
from jala_ray.types import UserError
from tests.reports.inspection.pages import Inspection, make_clip, planted, sound

EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\"'&"


def test_nothing_of_the_manifest_becomes_markup(videos, tmp_path):
    clips = [
        replace(make_clip(EVIL, videos[0]), source=EVIL, instructions=(EVIL,)),
        replace(make_clip("b", tmp_path / EVIL.replace("/", "_"), ""), instructions=(EVIL,)),
        replace(planted(videos[0])[0][1], clip_id="odd" + EVIL, source=EVIL),
        replace(make_clip("d", videos[0]), task_type="description", instructions=(), description=EVIL),
    ]
    bad = Rejection(EVIL, EVIL, EVIL, EVIL)
    path = write_manifest([*clips, bad], tmp_path / "m.parquet", on_error="quarantine").path
    page = Inspection(write_inspection(path))
    assert page.tags.count("script") == 3 and not re.search(r"<(img|script)[^>]*(evil|alert)", page.source)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    for section in ("warnings", "makeup", "sources", "motion", "sheet", "quarantine"):
        assert EVIL in page.sections[section], section


def test_nothing_is_loaded_and_the_same_manifest_gives_the_same_page(videos, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real plotly
    path = write_manifest(sound(videos), tmp_path / "set").path
    first = write_inspection(path, samples=3, seed=1)
    assert first == tmp_path / "set" / "inspect.html"
    text = first.read_text("utf-8")
    assert html.plotly_js() in text
    page = Inspection(first)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text.replace(html.plotly_js(), ""))
    assert set(page.charts) == set(page.figures) and len(page.charts) == 7
    assert write_inspection(path, tmp_path / "again.html", samples=3, seed=1).read_text("utf-8") == text
    assert [file.name for file in first.parent.glob(".inspect*")] == []
    assert len(Manifest(path)) == 5  # the page beside the parts does no harm


def test_command_line(videos, tmp_path, capsys):
    path = write_manifest(sound(videos), tmp_path / "m.parquet").path
    assert main(["inspect", path, "--samples", "2", "--seed", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "m.inspect.html")
    assert "2 clips drawn and 4 measured, seed 3" in (tmp_path / "m.inspect.html").read_text("utf-8")
    assert main(["inspect", path, "--out", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
    with pytest.raises(UserError, match="samples"):
        write_inspection(path, samples=0)


def test_a_manifest_on_a_bucket(videos, tmp_path, s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="sets")
    client.upload_file(str(videos[0]), "sets", "m/v/0.mp4")
    clips = [make_clip("cup", "s3://sets/m/v/0.mp4"), make_clip("short", videos[0], end_s=0.1)]
    path = write_manifest(clips, "s3://sets/m", on_error="quarantine").path
    assert default_page(path) == Path("m.inspect.html")
    page = Inspection(write_inspection(path, tmp_path / "page.html"))
    assert page.source.count("data:image/jpeg;base64,") == 3 and "1" in page.tile("Quarantined")
    assert "s3://sets/m/errors" in re.sub(r"\s+", "", page.sections["quarantine"])
