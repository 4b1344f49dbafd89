"""The examples run as they stand and show what they say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_images(kind, tmp_path, capsys):
    pytest.importorskip("PIL")
    assert run("images", kind, str(tmp_path)) > 0.7  # 0.1 by chance
    page = (tmp_path / f"{kind}.html").read_text("utf-8")
    assert len(re.findall(r'<img class="thumbnail" src="data:image/png', page)) >= 10 * 6
    assert "wrong labels" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("tables", (0.98,)), ("recurrent", (0.25,)), ("mixture", (0.6,)), ("encoders", (0.25, 0.4)), ("two_heads", (0.4, 0.25))],
)
def test_the_others(name, least, capsys):
    found = run(name)
    assert all(share > bound for share, bound in zip(found if isinstance(found, tuple) else (found,), least, strict=True)), (
        found
    )
    assert capsys.readouterr().out.count("\n") == len(least) - (name == "two_heads")


@pytest.mark.slow
def test_every_task(capsys):
    assert run("every_task") > 0.15  # 0.08 by chance
    assert capsys.readouterr().out.count("\n") == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("why", "json.dumps#1"),
        ("curate", r"trained without the suspects 8\d"),
        ("truth", r"EK-FAC +LDS 0\.[45]"),
    ],
)
def test_notebooks_run_and_show_what_they_say(name, shows):
    pytest.importorskip("sklearn")
    path = FOLDER / "notebooks" / "execute.py"
    spec = importlib.util.spec_from_file_location("execute", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = module.execute(path.with_name(f"{name}.ipynb"))
    printed = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert re.search(shows, "".join("".join(output.get("text", ())) for output in printed))


@pytest.mark.slow
def test_the_battery(tmp_path, capsys):
    pytest.importorskip("sklearn")
    run("battery/digits", tmp_path, ("grad-cos",), 1)
    content = json.loads((tmp_path / "battery.json").read_text())
    assert content["grad-cos"]["foreign"]["mean"] > 0.5 > content["random"]["foreign"]["mean"]
    assert "is chance" in capsys.readouterr().out


@pytest.mark.slow
def test_scores_against_retraining(tmp_path, capsys):
    pytest.importorskip("sklearn")
    run("truth/digits", tmp_path, 20)
    rows = {row["method"].split(",")[0]: row for row in json.loads((tmp_path / "evaluation.json").read_text())["rows"]}
    assert rows["ekfac"]["lds"]["mean"] > 0.3 > rows["random (seed 0)"]["lds"]["mean"]
    assert "a perfect prediction would reach" in capsys.readouterr().out
