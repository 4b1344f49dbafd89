"""The documentation is true: its examples run, its links and names exist, its generated pages are current."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import threading
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import whence
from tests.pages import ROOT, page_text, run_blocks
from tests.settings import QUIET

PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_the_generated_pages_are_current():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert page_text("docs/cli.md") == module.cli_page(), "run `make docs`"
    assert page_text("docs/api.md") == module.api_page(), "run `make docs`"
    assert page_text("docs/coverage.md") == module.coverage_page(), "run `make docs`"


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_programs_import_names_that_exist(folder):
    programs = sorted((ROOT / folder).rglob("*.py"))
    assert programs
    for program in programs:
        for node in ast.walk(ast.parse(program.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "whence":
                module = importlib.import_module(node.module)
                for name in node.names:
                    is_known = (
                        hasattr(module, name.name) or hasattr(module, "__path__") and find_spec(f"{node.module}.{name.name}")
                    )
                    assert is_known, f"{program.name}: {node.module}.{name.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page):
    for name in re.findall(r"`whence\.([A-Za-z_]\w*)", page.read_text("utf-8")):
        assert hasattr(whence, name) or importlib.util.find_spec(f"whence.{name}"), name


def wrong_arguments(text):
    """Of the calls in a page's inline code, those with an argument that the real thing does not take, nested calls too."""
    wrong = []
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        try:
            tree = ast.parse(code, mode="eval")
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            called = public_thing(node.func) if isinstance(node, ast.Call) else None
            if called is None:
                continue
            parameters = inspect.signature(called).parameters.values()
            taken = {each.name for each in parameters if each.kind is not each.POSITIONAL_ONLY}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                wrong += [f"`{code}`: {word.arg}=" for word in node.keywords if word.arg and word.arg not in taken]
            by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
            given = [each for each in node.args if ast.unparse(each) != "..."]
            if len(given) > len(by_place) and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
                wrong.append(f"`{code}`: {len(given)} arguments by place")
    return wrong


def public_thing(name):
    """What `whence.a.b` or a public `b` alone is; None for what is not whence's or cannot be called."""
    dotted = ast.unparse(name).removeprefix("whence.")
    thing = whence
    for part in dotted.split("."):
        try:
            thing = getattr(thing, part)
        except AttributeError:
            return None
    return thing if callable(thing) else None


def test_a_keyword_that_is_gone_is_seen():
    assert wrong_arguments('Say `whence.query(..., rerank="exact", train=train)`.') == [
        '`whence.query(..., rerank="exact", train=train)`: train='
    ]
    assert wrong_arguments("`attribute(..., method=whence.EKFAC(labels=1))`") == [
        "`attribute(..., method=whence.EKFAC(labels=1))`: labels="
    ]
    assert wrong_arguments("`Shortlist(store)`, `settings.Shortlist(store)`") == [
        "`settings.Shortlist(store)`: 1 arguments by place"
    ]
    assert not wrong_arguments("`whence.query(..., rerank=whence.Rerank(train=train))`, `print(x=1)`, `a b`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_calls_in_the_text_pass_what_is_taken(page):
    assert not wrong_arguments(page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_targets_exist(page):
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for script in re.findall(r"python ((?:benchmarks|docs)/\w+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_every_public_name_is_there():
    for name in dir(whence):
        assert getattr(whence, name) is not None
    assert set(whence.__all__) < set(dir(whence)) and len(whence.__all__) <= 30
    for name, home in (
        ("PCG", "whence.settings.PCG"),
        ("write_shares", "whence.shares.write_shares"),
        ("open_run", "whence.runs"),
    ):
        with pytest.raises(AttributeError, match=f"module 'whence' has no attribute '{name}'; it is {home}"):
            getattr(whence, name)
    with pytest.raises(AttributeError, match="module 'whence' has no attribute 'nope'; it has: "):
        whence.nope  # noqa: B018


def test_readme_examples_run(reader, capsys):
    """The blocks are run as they stand, in one namespace, with the tiny model where the reader's own would be."""
    run_blocks("README.md", 2)
    assert "nats of the query's log-probability" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "count"), [("docs/start.md", 3), ("docs/scores.md", 2), ("docs/truth.md", 2)])
def test_the_examples_of_the_first_pages_run(page, count, reader):
    run_blocks(page, count)


def test_the_rooms_are_listed_in_the_order_of_the_import_rule():
    """docs/architecture.md, read downwards, is the contract of pyproject.toml read upwards."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    wanted = [sorted(layer.split(" | ")) for layer in reversed(contract["layers"])]
    table = page_text("docs/architecture.md").split("| room |")[1].split("\n## ")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines()[2:] if line.startswith("|")]
    listed = [sorted(name.removesuffix(".py").rstrip("/") for name in row) for row in rows]
    assert [name for row in listed for name in row] == [name for layer in wanted for name in layer], "mend one of the two"


def trips():
    """Of docs/architecture.md, by name: each file with the names that are said to be in it."""
    text = page_text("docs/architecture.md").split("## Five trips")[1].split("\n## ")[0]
    found = {}
    for part in text.split("\n**")[1:]:
        title, body = part.split(".**", 1)
        stations = [station.partition("(") for station in body.split("→")]
        found[title] = [
            (re.findall(r"`([\w/]+\.py)`", path)[0], re.findall(r"`(\w+)`", said.split(":")[0])) for path, _, said in stations
        ]
    return found


def test_the_trips_name_what_is_there():
    found = trips()
    assert len(found) == 5
    for title, stations in found.items():
        paths = [path for path, _ in stations]
        assert len(paths) == len(set(paths)) <= 10, title
        for path, names in stations:
            source = (ROOT / "src" / "whence" / path).read_text("utf-8")
            for name in names:
                assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), f"{title}: {name} is not in {path}"


def test_the_trips_are_those_that_are_made(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    inputs = torch.randn(24, 4)
    with whence.Recorder(tmp_path / "run", model, optimizer := torch.optim.SGD(model.parameters(), lr=0.1), every=2) as run:
        for step in range(4):
            batch = list(range(step, 24, 4))
            run.batch(batch)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[batch]), torch.tensor([place % 3 for place in batch])).backward()
            optimizer.step()
    task = whence.Classification(model)
    train = task.prepare([(x, place % 3) for place, x in enumerate(inputs)])
    asked = [(inputs[0], 1)]
    journeys = {
        "A batch to bytes in a shard": lambda: whence.build(
            task, train, tmp_path / "store", config=whence.BuildConfig(method="logra"), runtime=QUIET
        ),
        "A query to hits": lambda: whence.query(tmp_path / "store", task, asked, runtime=QUIET),
        "EK-FAC over data": lambda: whence.attribute(task, train, asked, runtime=QUIET),
        "A recorded run to SOURCE scores": lambda: whence.attribute(
            task, train, asked, method=whence.Source(run=tmp_path / "run"), runtime=QUIET
        ),
    }
    for title, go in journeys.items():
        passed = files_passed(go)
        assert {path for path, _ in trips()[title]} <= passed, title


def files_passed(go):
    """Files of the package with a function that was called."""
    root, passed = str(ROOT / "src" / "whence") + "/", set()
    package = str(Path(whence.__file__).parent) + "/"

    def note(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith((root, package)) and frame.f_code.co_name != "<module>":
            passed.add(name.split("/whence/")[-1])

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        go()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return passed
