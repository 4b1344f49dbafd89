"""What the code promises of its own shape."""

import ast

from tests.pages import ROOT

MOST = 8


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
