"""The form in a browser: filled in, checked, saved, opened again, without a network; what it saves is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jala_ray.commands import shell
from jala_ray.evaluation.rollouts.forms import RolloutForm, read_tasks
from jala_ray.evaluation.rollouts.scores import score
from jala_ray.parsing import from_dict
from jala_ray.reports.rollouts.form import form_page
from tests.reports.browser import open_browser


def test_a_form_has_a_row_for_each_rollout_and_can_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.main(["rollouts", "tasks", str(tmp_path / "tasks.json")]) == 0
    own = json.loads((tmp_path / "tasks.json").read_text())
    own["tasks"][0] |= {"title": "Put <three>", "rollouts": 2}
    (tmp_path / "tasks.json").write_text(json.dumps(own))
    words = ["--tasks", str(tmp_path / "tasks.json"), "--policy", "mine"]
    assert shell.main(["rollouts", "form", str(tmp_path / "form.html"), *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "form.html")
    page = (tmp_path / "form.html").read_text()
    assert page.count("<tr data-task=") == 2 * 2 + 2 * 10 + 2 * 10
    assert "Put &lt;three&gt;" in page and "<three>" not in page and 'value="mine"' in page
    assert page.count('data-part="subtask"') == 4 * 5 + 20 * 3 + 20 * 3


def test_what_a_browser_saves_is_what_is_scored(tmp_path: Path) -> None:
    page = tmp_path / "form.html"
    page.write_text(form_page(read_tasks(None)))
    with open_browser(tmp_path) as browser:
        browser.open(page)

        def change(row: int, part: str, i: int = 0, value: str = "") -> None:
            where = f'document.querySelectorAll("tr[data-task]")[{row}].querySelectorAll("[data-part={part}]")[{i}]'
            browser.evaluate(
                f"(box => {{ if (box.type === 'checkbox') box.checked = !box.checked; else box.value = {json.dumps(value)};"
                f" box.dispatchEvent(new Event('input', {{ bubbles: true }})); }})({where})"
            )

        def problem() -> str | None:
            return browser.evaluate("(rollouts.check() ?? [null])[0]")

        assert problem() == "Fill in 'Policy' first."
        browser.evaluate("document.querySelector('[data-field=policy]').value = 'jala'")
        assert problem() == "No rollout is ticked as done."
        for i in range(4):
            change(0, "subtask", i)
        assert problem() == "Put-Three-Obj, seen, rollout 1: a subtask failed: choose a class of failure."
        assert browser.evaluate("document.querySelectorAll('tr.wrong').length") == 1
        change(0, "failure", value="unstable grasp")
        change(0, "note", value="slipped </script>")
        for i in range(3):
            change(20, "subtask", i)
        change(41, "done")
        change(41, "failure", value="other")
        assert problem() is None
        saved = browser.evaluate("rollouts.collect()")
        browser.open(page)
        browser.evaluate(f"rollouts.fill({json.dumps(saved)})")
        assert browser.evaluate("rollouts.collect()") == saved, "what was saved is opened again"
        assert browser.requests and all(url.startswith(("file:", "data:")) for url in browser.requests)
        assert browser.errors == []
    form = from_dict(RolloutForm, saved)
    found = score([form])["policies"]["jala"]
    assert found["tasks"]["put_three_obj"]["seen"]["completion"]["mean"] == 0.8
    assert found["tasks"]["wipe_board"]["seen"]["completion"]["mean"] == 1.0
    assert found["tasks"]["water_plant"]["seen"]["failures"] == {"other": 1}
    assert form.rollouts[0].note == "slipped </script>"
