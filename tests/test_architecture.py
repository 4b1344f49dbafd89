"""What the code promises of its own shape."""

import ast

from tests.pages import ROOT

MOST = 8
RIDDLES = frozenset(
    [
        "asked",
        "desk",
        "desks",
        "gone",
        "held",
        "judged",
        "kept",
        "known",
        "lost",
        "made",
        "one",
        "place",
        "places",
        "said",
        "seat",
        "seats",
        "told",
        "warm",
        "found",
    ]
)
# `found` is a term where it stands beside what is needed, as in `whence.errors`; the others are fields that people read in files.
TERMS = frozenset(
    [
        "shares/payout.py: held",  # money, in shares.json
        "shares/payout.py: kept",
        "shares/shares.py: held",
        "study/kinds.py: found",  # beside `expected`, in study.json
        "why/answer.py: asked",  # the tokens that were asked about, in why.json
        "capture/same_model.py: place",  # in the probe that a store keeps
        "evaluate/mislabel.py: found",  # beside `inspected`
    ]
)


def count_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, without self and cls."""
    arguments = function.args
    names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return sum(name is not None and name.arg not in ("self", "cls") for name in names)


def too_many(source: str) -> list[str]:
    """Functions of a module with more parameters than people keep apart."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [function.name for function in functions if count_of(function) > MOST]


def test_no_function_takes_more_than_eight_parameters():
    files = sorted((ROOT / "src" / "whence").rglob("*.py"))
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in files for name in too_many(path.read_text("utf-8"))]
    assert len(files) > 300 and not wrong, "group what belongs together into a frozen record"


def test_all_kinds_of_parameters_count():
    assert too_many("def f(a, b, /, c, d, *, e, f, g, h): ...") == []
    assert too_many(
        "class A:\n    def f(self, a, b, c, d, e, f, g, *h, **i): ...\n    async def g(s, a, b, c, d, e, f, g, h): ..."
    ) == ["f", "g"]


def bound_by(function: ast.AST) -> set[str]:
    """Names that a function, class or module binds itself, without those of the functions and classes in it."""
    names: set[str] = set()
    waiting = [function]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        if node is not function and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        waiting.extend(ast.iter_child_nodes(node))
    return names


def riddles(source: str) -> list[str]:
    """Names that say nothing of what they hold; `found` only where nothing beside it says what is needed."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    scopes = [bound_by(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    scopes = [names - {"found"} if names & {"needed", "do"} else names for names in scopes]
    return sorted({name for names in scopes for name in names if name.strip("_").lower() in RIDDLES})


def test_names_say_what_a_thing_is():
    folder = ROOT / "src" / "whence"
    wrong = {
        f"{path.relative_to(folder)}: {name}" for path in folder.rglob("*.py") for name in riddles(path.read_text("utf-8"))
    }
    assert wrong == TERMS, "name it after what it holds, in the field's words"


def test_all_kinds_of_names_count():
    assert riddles("found = 1\ndef known(asked): place = [one for one in told]\nclass Desk: self.kept = held") == [
        "Desk", "asked", "found", "kept", "known", "one", "place",
    ]  # fmt: skip
    assert riddles("def f(found, needed): ...\ndef g(): found, do = 1, 2") == []
