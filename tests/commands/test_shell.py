"""Finding commands, their help, and their errors: all before anything heavy is imported."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from jala_ray import __version__
from jala_ray.commands import shell
from jala_ray.commands.presetting import default_of
from jala_ray.commands.rollouts import ACTIONS
from jala_ray.commands.study import STUDIES
from jala_ray.data.adapters import ADAPTERS
from jala_ray.parsing import options
from jala_ray.presets import PRESETS, TOKENIZER_PRESETS
from jala_ray.studies.alignment.asked import AlignmentStudy
from jala_ray.training import interrupts
from jala_ray.training.lease import FolderInUse, LeaseLost
from jala_ray.training.parts import PartsFailed
from jala_ray.types import ConfigError, DamagedCheckpoint, JalaError, StorageError, StoreUnavailable

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "transformers")
ASKED = [
    "demo",
    "convert",
    "validate",
    "inspect",
    "join",
    "prepare",
    "cache",
    "tokenizer",
    "pretrain",
    "evaluate",
    "sweep",
]
ASKED += ["report", "presets", "runs", "storage", "study", "serve", "rollouts", "openloop"]
COMMANDS = list(shell.listed())


def jala(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | variables
    command = [sys.executable, "-m", "jala_ray", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def heavy_after(calls: list[list[str]]) -> dict[str, list[str]]:
    """Call -> heavy modules that are there after it, all in one fresh process; and what it printed is not empty."""
    program = f"""
import contextlib, io, json, sys
from jala_ray.commands.shell import main
found = {{}}
for words in {calls!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main(words)
    assert out.getvalue().strip(), words
    found[" ".join(words)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(found))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_file_with_run_is_a_command_and_has_a_line() -> None:
    folder = ROOT / "jala_ray/commands"
    files = {file.stem for file in folder.glob("*.py") if re.search(r"^def run\(", file.read_text(), re.MULTILINE)}
    assert {name.replace("-", "_") for name in COMMANDS} == files
    assert set(ASKED) <= set(COMMANDS)
    for name, command in shell.listed().items():
        assert re.match(r"[A-Z].{10,120}\.$", command.about), (name, command.about)
        assert name in shell.usage(shell.listed()) and command.about in shell.usage(shell.listed())


def test_a_file_that_is_added_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "say_it.py").write_text(
        '"""Say a word."""\nfrom dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Arguments:\n'
        '    """Say a word."""\n\n    word: str = "no"\n    """The word."""\n\n\n'
        "def run(arguments):\n    print(arguments.word)\n    return 7\n"
    )
    (tmp_path / "helper.py").write_text('"""No command."""\n')
    monkeypatch.setattr(shell.commands, "__path__", [*shell.commands.__path__, str(tmp_path)])
    assert set(shell.listed()) == {*COMMANDS, "say-it"}
    assert shell.main(["say-it", "--word", "yes"]) == 7
    assert capsys.readouterr().out == "yes\n"


def test_help_imports_nothing_heavy() -> None:
    """Modules that one call imports are there after the next ones too: the first call that is not empty is the culprit."""
    calls = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    calls += [["convert", name, "--help"] for name in ADAPTERS] + [["study", name, "--help"] for name in STUDIES]
    calls += [["rollouts", name, "--help"] for name in ACTIONS] + [["pretrain", "tiny", "--help"], ["presets"]]
    assert not {call: found for call, found in heavy_after(calls).items() if found}


STATIC = [
    (["pretrain", "tiny", "--train.steps", "-5"], "train.steps: got -5"),
    (["pretrain", "tiny", "--train.steps", "-5", "--local"], "train.steps: got -5"),
    (["pretrain", "tiny", "--train.setps", "5"], "Did you mean --train.steps"),
    (["pretrain", "tinny"], "Did you mean tiny"),
    (["pretrain"], "first one of jala, tiny"),
    (["tokenizer", "tiny"], "Pass --manifests"),
    (["tokenizer", "tiny", "--modle.codes", "5"], "Did you mean --model.codes"),
    (["cache", "tiny", "OUT"], "Pass --data.manifest"),
    (["posttrain", "libero_spatial", "--train.steps", "-5"], "train.steps: got -5"),
    (["posttrain", "libero_spacial"], "Did you mean libero_spatial"),
    (["posttrain"], "first one of libero_spatial"),
    (["posttrain", "jala"], "expected one of libero_spatial"),
    (["teacher", "tiny_grounded", "OUT"], "Pass --data.cache"),
    (["teacher", "tiny_grounded", "OUT", "--data.cache", "C"], "Pass --motion-tokenizer"),
    (["teacher", "tiny", "OUT", "--data.cache", "C"], "Take one of "),
    (["evaluate", "OUT"], "one or more, each a checkpoint"),
    (["evaluate", "OUT", "CHECKPOINT", "--sample", "3"], "Did you mean --samples"),
    (["sweep", "tiny", "--train.steps", "-5"], "train.steps: got -5"),
    (["sweep", "tiny", "--trails", "5"], "Did you mean --trials"),
    (["convert", "arctik"], "Did you mean arctic"),
    (["study", "alignmnet"], "Did you mean alignment"),
    (["study", "alignment", "--seed", "3"], "Did you mean --seeds"),
    (["study", "paper"], "Pass --manifest"),
    (["study", "paper", "--manifest", "M", "--train.steps", "-5"], "train.steps: got -5"),
    (["study", "paper", "--preset", "tiny", "--train.setps", "5"], "Did you mean --train.steps"),
    (["convert", "video-folder", "--folder", "V", "--val-fractions", "0.1", "out"], "Did you mean --val-fraction"),
    (["join", "OUT"], "one or more manifests, and then OUT"),
    (["prepare", "--out", "OUT"], "one of the two"),
    (["serve", "P", "--convention", "liberro"], "Did you mean libero"),
    (["serve", "P", "--host", "0.0.0.0"], "Pass --token-file FILE"),
    (["serve", "nowhere:policy"], "No module named 'nowhere'"),
    (["rollouts", "score"], "one or more forms"),
    (["rollouts", "score", "none.json"], "none.json"),
    (["rollouts", "scroe"], "Did you mean score"),
    (["rollouts", "setup", "libreo"], "Did you mean libero"),
    (["rollouts", "run", "P", "--rollout", "3"], "Did you mean --rollouts"),
    (["rollouts", "run", "P", "--simulator", "none.py"], "a file that is there"),
    (["pretrian"], "Did you mean pretrain"),
]


@pytest.fixture(scope="module")
def mistakes() -> dict[str, list[str]]:
    return heavy_after([words for words, _ in STATIC])


@pytest.mark.parametrize(("words", "said"), STATIC, ids=[" ".join(words) for words, _ in STATIC])
def test_a_mistake_is_one_line_before_anything_heavy(words: list[str], said: str, mistakes, capsys) -> None:
    data = ["--data.manifest", "M", "--motion-tokenizer", "T"] if "--train.steps" in words else []
    assert shell.main([*words, *data]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert mistakes[" ".join(words)] == []


def test_a_mistake_costs_no_start_of_ray() -> None:
    done = jala("pretrain", "tiny", "--data.manifest", "M", "--motion-tokenizer", "T", "--train.steps", "-5")
    assert (done.returncode, done.stdout) == (2, "") and "train.steps: got -5" in done.stderr
    heavy = f"import sys; from jala_ray.commands.shell import main; main(sys.argv[1:]); print([m for m in {HEAVY} if m in sys.modules])"
    words = ["pretrain", "tiny", "--data.manifest", "M", "--motion-tokenizer", "T", "--train.steps", "-5"]
    asked = subprocess.run([sys.executable, "-c", heavy, *words], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert asked.stdout.strip() == "[]"


def entries() -> Iterator[tuple[str, Any]]:
    """(name, option as argparse knows it) of every option and positional of every command, with every preset's settings."""
    for name, command in shell.listed().items():
        module = command.load()
        known = {field.name for field in dataclasses.fields(module.Arguments)}
        given: list[tuple[Any, dict[str, Any]]] = [(module.Arguments, {})]
        if "preset" in known:
            presets = [*TOKENIZER_PRESETS.values()] if name == "tokenizer" else [*PRESETS.values()]
            presets += TOKENIZER_PRESETS.values() if name == "sweep" else []
            shown = {type(getattr(config, "objective", config)): config for config in presets}
            given = [(module.Arguments, {"default": default_of(module.Arguments, "x", c)}) for c in shown.values()]
        if name == "convert":
            given = [(module.Arguments[adapter], {}) for adapter in ADAPTERS.values()]
        if name == "study":
            given = [(study, {}) for study in STUDIES.values()]
        if name == "rollouts":
            given = [(action, {}) for action in ACTIONS.values()]
        for kind, default in given:
            for action in tyro.extras.get_parser(kind, **default)._actions:
                yield name, action


def test_every_setting_has_a_text_and_a_default() -> None:
    count = 0
    for name, action in entries():
        if "--help" in action.option_strings or action.help == "==SUPPRESS==":
            continue
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(action.help))
        text = re.sub(r"\((default|required|fixed|optional)\b.*\)\s*$", "", said, flags=re.DOTALL).strip()
        where = (name, action.option_strings or action.metavar, said)
        assert len(text) > 2, where
        assert re.search(r"\((default|required|optional)", said), where
        assert not re.search(r"\bMETHOD\b|method\.md|jobs/|issue", said), where
        count += 1
    assert count > 500


def test_options_are_those_that_tyro_has() -> None:
    for name, command in shell.listed().items():
        module = command.load()
        if name in ("convert", "rollouts", "study") or "preset" in {
            field.name for field in dataclasses.fields(module.Arguments)
        }:
            continue
        had = {word for a in tyro.extras.get_parser(module.Arguments)._actions for word in a.option_strings}
        had = {word.removeprefix("--") for word in had if word.startswith("--") and not word.startswith("--no-")}
        assert {o for o in options(module.Arguments) if not o.startswith("no-")} == had - {"help"}, name


def test_a_study_is_chosen_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        shell.main(["study", "--help"])
    assert re.search(r"^  alignment  Does .*\?", capsys.readouterr().out, re.MULTILINE)
    words = ["alignment", "--size", "gpu", "--tier", "2", "--variants", "jala", "no_align", "--jobs", "0"]
    given = shell.read(shell.listed()["study"].load(), words, "jala study")
    assert given.study == AlignmentStudy(size="gpu", tier=2, variants=("jala", "no_align"), jobs=0)


def test_no_command_cites_the_method_by_number() -> None:
    for file in (ROOT / "jala_ray/commands").glob("*.py"):
        assert not re.search(r"\bMETHOD \d|method\.md", ast.get_docstring(ast.parse(file.read_text())) or "")


def test_version_and_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"jala": "jala_ray.commands.shell:main"}
    assert jala("--version").stdout.strip() == __version__ == project["version"]


def test_ctrl_c_is_one_line() -> None:
    program = "import time\nfrom jala_ray.commands import shell\n"
    program += "def wait():\n    print('began', flush=True)\n    time.sleep(60)\n    return 0\nraise SystemExit(shell.guarded(wait))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted\n")


def test_the_wheel_says_the_store_s_settings_to_what_it_starts(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """`--storage.*` of any command reaches libraries that go by the environment."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    runs, seen = shell.listed()["runs"].load(), list[str]()
    monkeypatch.setattr(runs, "run", lambda _: seen.append(os.environ["AWS_ENDPOINT_URL_S3"]) or 0)
    assert shell.main(["runs", "/nowhere", "--storage.endpoint-url", "http://127.0.0.1:9"]) == 0
    assert seen == ["http://127.0.0.1:9"] and "AWS_ENDPOINT_URL_S3" not in os.environ, "the next command's is its own"
    with pytest.raises(ConfigError, match=r"Did you mean --storage\.endpoint-url"):
        shell.call(runs, ["--storage.endpoint-ulr", "x"], "jala runs")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("name", "a", "b"), 2),
        (StorageError("root", "a", "b"), 2),
        (StoreUnavailable("root", "a", "b"), 1),
        (LeaseLost("run folder", "a", "b"), 1),
        (FolderInUse("name", "a", "b"), 1),
        (PartsFailed("2 of 3 pieces", "a", "b"), 1),
        (DamagedCheckpoint("checkpoint", "a", "b"), 1),
    ],
)
def test_the_exit_status_says_whether_the_same_command_may_do_better(
    error: JalaError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert shell.guarded(fail) == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_an_error_is_told_last_and_in_any_case(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below what others had to say, though one of them fails and another never ends."""
    monkeypatch.setattr(interrupts, "SPEAKING_S", 0.2)

    def fail() -> int:
        interrupts.before_last_line(lambda: print("worker: step 3", file=sys.stderr))
        interrupts.before_last_line(lambda: 1 / 0)
        interrupts.before_last_line(threading.Event().wait)
        raise ConfigError("name", "a", "b")

    assert shell.guarded(fail) == 2
    assert capsys.readouterr().err == "worker: step 3\nerror: name: got 'a', expected b.\n"
    assert shell.guarded(lambda: 0) == 0, "nothing is left over"
