"""Run a notebook from its first cell to its last, and keep what it prints.

    python examples/notebooks/execute.py examples/notebooks/why.ipynb [--write]

Needs nothing but whence: a cell is Python, its last line is shown if it is an expression. `--write` puts the outputs into the notebook.
"""

import argparse
import ast
import contextlib
import io
import json
from pathlib import Path

__all__ = ["execute"]


def execute(path: Path) -> dict:
    """The notebook with the outputs of a run in a fresh namespace."""
    notebook = json.loads(path.read_text("utf-8"))
    namespace = {"__name__": "notebook"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _run("".join(cell["source"]), f"{path.name}, cell {number}", namespace)
        cell["execution_count"] = number
        cell["outputs"] = _outputs(printed.getvalue(), value, number)
    return notebook


def _run(source: str, name: str, namespace: dict) -> object:
    """The value of the last line, if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), namespace)


def _outputs(printed: str, value: object, number: int) -> list[dict]:
    outputs: list[dict] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data = {"text/html": value._repr_html_().splitlines(keepends=True), "text/plain": [type(value).__name__]}
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


def main() -> None:
    """One notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true", help="put the outputs into the notebook")
    arguments = parser.parse_args()
    notebook = execute(arguments.notebook)
    if arguments.write:
        arguments.notebook.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            print("".join(output.get("text", output.get("data", {}).get("text/plain", ()))))


if __name__ == "__main__":
    main()
