"""What somebody else wrote reaches a terminal as text: through one door, from every verb."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from whence import progress, terminal
from whence.cli import _VERBS, main
from whence.errors import printable

PACKAGE = Path(terminal.__file__).parent
# Before anything may be imported, __main__ says which package it found where.
DOORS = {PACKAGE / "terminal.py", PACKAGE / "__main__.py"}
ESCAPE = "\x1b[31m"
STEERING = set("\x1b\x07\x9b\u202e\r")


def is_clean(text):
    return text and not set(text) & STEERING


def test_everything_is_printed_through_one_door():
    found = []
    for path in set(PACKAGE.rglob("*.py")) - DOORS:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            is_printed = name == "print" or name.endswith((".print", "stdout.write", "stderr.write", "buffer.write"))
            # Progress bars draw themselves; their titles are cleaned.
            if is_printed or name == "Console" and path.name != "progress.py":
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {name}")
    assert found == []


def test_a_line_cannot_begin_another(capsys):
    terminal.tell(f"{ESCAPE}one\ntwo", "three")
    terminal.say(f"{ESCAPE}four\nfive")
    out, err = capsys.readouterr()
    assert out.splitlines() == [printable(f"{ESCAPE}one\ntwo"), "three"] and err.splitlines() == [
        printable(f"{ESCAPE}four"),
        "five",
    ]


def test_tables_keep_their_colours_and_texts_lose_theirs(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("head\x1b]0;owned\x07")
    table.add_row(Text(f"{ESCAPE}cell", style="bold"))
    console = terminal.stdout()
    terminal.show(console, table)
    out = capsys.readouterr().out
    assert "\x1b[1m" in out and ESCAPE not in out and "\x1b]0" not in out and "\x07" not in out


def test_a_bar_has_a_clean_title(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.meter(f"{ESCAPE}[/x] reading", 3) as meter:
        assert meter.bar is not None and is_clean(meter.bar.tasks[0].description)
        meter.advance()


STAGES = (
    progress.Stage("reading"),
    progress.Stage("learning", ("first", "second")),
    progress.Stage(f"{ESCAPE}writing", ("rows",)),
)


def test_meters_go_on_to_their_stages_a_line_each_in_a_log(capsys):
    with progress.staged(STAGES) as stages:
        stages.expect(170)
        for title in ("first", "second-0-3", "unheard of", "rows (rank 0 of 2)", "second"):
            with progress.meter(title, 2) as meter:
                meter.advance(2)
    with progress.staged(STAGES) as stages:
        stages.expect(None, first=2)
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3: reading", "3 stages, about 3 min", "2 of 3: learning", printable(f"3 of 3: {ESCAPE}writing"),
        "1 of 3: reading", "resuming at stage 3 of 3",
    ]  # fmt: skip


def test_stages_inside_others_and_quiet_ones_say_nothing(capsys):
    with (
        progress.staged(STAGES) as outer,
        progress.staged((progress.Stage("inner", ("rows",)),)) as inner,
        progress.meter("rows", 1),
    ):
        assert inner is outer and outer.number == 2
    assert "inner" not in capsys.readouterr().err
    with progress.staged(STAGES, quiet=True) as stages, progress.meter("rows", 1) as meter:
        stages.expect(3)
        assert stages.number == -1 and meter.bar is None
    with progress.staged(STAGES) as stages, progress.meter("rows", 1, quiet=True):
        assert stages.number == 0  # a quiet meter is no news
    assert capsys.readouterr().err == "1 of 3: reading\n"


def test_a_terminal_has_a_row_for_the_stage_that_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.staged(STAGES) as stages:
        bar = stages.bar
        assert [task.description for task in bar.tasks] == ["1 of 3: reading"] and bar.tasks[0].total is None
        for title, total in (("first", 4), ("second", 7)):
            with progress.meter(title, total, done=1) as meter:
                meter.advance(2)
                assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
                    ("2 of 3: learning", 3, total)
                ]
            assert bar.tasks[0].total is None  # time goes on between two meters
        with progress.meter("rows", 3):
            assert is_clean(bar.tasks[0].description)
        assert bar.live.is_started
    assert not bar.live.is_started and not bar.tasks
    with progress.staged(STAGES, downloads=True) as stages:
        assert not stages.bar.live.is_started  # something else draws its progress
        with progress.meter("first", 2):
            assert stages.bar.live.is_started
    with pytest.raises(ZeroDivisionError), progress.staged(STAGES) as stages, progress.meter("rows", 2):
        raise ZeroDivisionError
    assert not stages.bar.live.is_started


def test_a_log_gets_a_line_of_a_meter_ever_more_rarely(monkeypatch, capsys):
    clock = iter(range(0, 100_000, 30))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    with progress.meter("rows", 1000) as meter:
        for _ in range(200):
            meter.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1]) for line in lines[:5]] == [2, 6, 14, 30, 60] and len(lines) == 9
    assert lines[0] == "rows: 2 of 1,000, about 8.3 h left"


def test_an_encoding_that_cannot_hold_it_is_no_failure(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from whence.terminal import tell, tell_json; tell('\\u4e2d'); tell_json('\\U0001f600')"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "?" and json.loads(done.stdout.split("\n")[1]) == "\U0001f600"


def test_warnings_logs_and_tracebacks_go_the_same_way(tmp_path):
    code = (
        "import logging, warnings; from whence.terminal import tell_all_through_here; tell_all_through_here()\n"
        "warnings.warn('\\x1b[31mwarned')\nlogging.getLogger('x').warning('%s', '\\x1b[31mlogged')\n"
        "try:\n    raise ValueError('\\x1b[31mcaught')\nexcept ValueError:\n    logging.getLogger('x').exception('told')\n"
        "raise ValueError('\\x1b[31mraised\\x9b')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and is_clean(done.stderr)
    assert all(word in done.stderr for word in ("[31mwarned", "[31mlogged", "[31mcaught", "[31mraised", "Traceback"))


def test_warnings_and_logs_of_a_library_stay_its_users():
    """Only the command line is a process of our own."""
    code = "import logging, warnings; import whence, whence.terminal as terminal; whence.attribute\n"
    code += "print(warnings.showwarning is not terminal._warn and logging.getLogRecordFactory() is logging.LogRecord)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


@pytest.fixture
def hostile(tmp_path):
    """A data file, queries and a table of names, all with sequences in everything that may hold a text."""
    texts = [f"{animal} {verb}" for animal in ("a cat", "the dog", "one bird") for verb in ("sat", "ran off", "sleeps", "is")]
    lines = [
        {"id": f"{ESCAPE}t{n}\x9b", "source": f"\x1b]0;{n % 2}\x07", "label": n % 3, "text": f"{ESCAPE}{text}\u202e"}
        for n, text in enumerate(texts)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"prompt": f"the dog {ESCAPE}", "completion": f"bites\x07{ESCAPE}"}) + "\n"
    )
    (tmp_path / "safe.jsonl").write_text(json.dumps({"prompt": f"the dog {ESCAPE}", "completion": f"sleeps{ESCAPE}"}) + "\n")
    (tmp_path / "train.py").write_text(
        "import torch\nworth = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))\n"
        "def retrain(keep, seed):\n    return -(worth[keep].sum(0) + 0.1 * seed)\n"
    )
    return tmp_path


def test_no_verb_lets_a_sequence_through(hostile, model_folder, other_model_folder, capsys):
    data, asked, pairs, safe = (hostile / f"{name}.jsonl" for name in ("data", "asked", "pairs", "safe"))
    store, table, bank = (hostile / f"{ESCAPE}{name}" for name in ("store", "table", "bank"))

    def tell(*words, status=0):
        found = main([str(word) for word in words])
        told = "".join(capsys.readouterr())
        assert found == status and is_clean(told), (words, told)

    tell("build", model_folder, data, "-o", store, "--method", "aligned", "--bytes-per-example", "2k")
    tell("score", store, asked, "-o", table)
    tell("attribute", model_folder, data, asked, "-o", hostile / f"{ESCAPE}exact", "--method", "kfac")
    retrained = ["--train", f"{hostile / 'train.py'}:retrain", "--data", data, "--queries", asked]
    tell("bank", *retrained, "-o", bank, "--subsets", 6, "--seeds", 2)
    for more in ([], ["--json"]):
        tell("query", store, "--file", asked, "-k", 2, "--tokens", *more)
        tell("why", store, "--prompt", f"a cat{ESCAPE}", "--completion", f" sat{ESCAPE}", "-k", 2, *more)
        tell("inspect", store, *more)
        tell("verify", store, *more)
        tell("evaluate", bank, table, *more)
        tell("clusters", store, "-k", 2, "--queries", asked, *more)
        out, sets = (
            [f"{ESCAPE}{number}{len(more)}" for number in range(3)],
            ["--set", f"{ESCAPE}a={asked}", "--set", f"b={asked}"],
        )
        tell("study", store, *sets, "-o", hostile / f"study{out[0]}", *more)
        chosen = ["--by", "loss", "--keep", "50%", "--balance", "source"]
        tell("select", data, "--model", model_folder, *chosen, "-o", hostile / f"kept{out[1]}", *more)
        marks = ["--harmful", pairs, "--safe", safe, "--budget", 0.5, "--quantile", 0.9]
        tell("guide", model_folder, data, *marks, "-o", hostile / f"{ESCAPE}guide", *more)
        tell("proxy", other_model_folder, data, asked, "-o", hostile / "proxy", "--target-name", f"{ESCAPE}named", *more)
        tell("shares", table, "--records", data, "-o", hostile / f"shares{out[2]}", "--signed-off-by", ESCAPE, *more)
        tell("verify", hostile / f"shares{out[2]}", *more)


@pytest.mark.parametrize("verb", sorted(_VERBS))
def test_what_was_typed_comes_back_clean(verb, capsys, tmp_path):
    for words in (
        [f"{ESCAPE}nowhere"] * 3,
        [f"--{ESCAPE}"],
        [str(tmp_path / ESCAPE), str(tmp_path / ESCAPE), "-o", str(tmp_path / "o")],
    ):
        assert main([verb, *words]) == 2
        assert is_clean("".join(capsys.readouterr()))
