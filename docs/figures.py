"""Print what docs/architecture.md says of the size of the code: `python docs/figures.py`."""

import ast
import re
from pathlib import Path
from statistics import median

SOURCE = Path(__file__).parents[1] / "src" / "whence"
LONGEST_FUNCTION, MOST_PARAMETERS = 60, 8


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a function takes, without self and cls."""
    given = function.args
    names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return sum(name is not None and name.arg not in ("self", "cls") for name in names)


def figures() -> dict[str, str]:
    """By what it counts."""
    texts = {path: path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    lines = {path: text.count("\n") for path, text in texts.items()}
    largest = max(lines, key=lambda path: lines[path])
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    joined = "\n".join(texts.values())
    face = next(
        node.value
        for node in ast.parse(texts[SOURCE / "__init__.py"]).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    return {
        "files": f"{len(texts)}",
        "lines of the median file": f"{median(lines.values()):.0f}",
        "lines of the largest file": f"{lines[largest]} (`{largest.relative_to(SOURCE)}`)",
        "files over 400 lines": f"{sum(count > 400 for count in lines.values())}",
        f"functions over {LONGEST_FUNCTION} lines": f"{sum(f.end_lineno - f.lineno + 1 > LONGEST_FUNCTION for f in functions)}",
        f"functions over {MOST_PARAMETERS} parameters": f"{sum(parameters(f) > MOST_PARAMETERS for f in functions)}",
        "`type: ignore`": f"{len(re.findall(r'# type: ignore', joined))}",
        "`noqa: B008`": f"{len(re.findall(r'# noqa: B008', joined))}",
        "lines of `src`": f"{sum(lines.values()):,}",
        "names in the face": f"{len(face.elts)}",
    }


if __name__ == "__main__":
    print("| what | how many |\n|---|---|")
    print("\n".join(f"| {what} | {count} |" for what, count in figures().items()))
