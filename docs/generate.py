"""Write the generated pages, docs/cli.md and docs/api.md. `tests/test_docs.py` holds them against the code."""

import inspect
from pathlib import Path

import whence
import whence.evaluate
from whence.cli import app

FOLDER = Path(__file__).parent
MARK = "<!-- written by `make docs`; do not edit -->"


def cli_page() -> str:
    """docs/cli.md as it should be."""
    body = app.generate_docs(output_format="markdown", recursive=True, heading_level=1)
    return f"{MARK}\n\n{body.strip()}\n"


def api_page() -> str:
    """docs/api.md as it should be: signature and docstring of every public name, methods of classes included."""
    parts = [MARK, "", "# Python reference", "", "Everything below is in the `whence` namespace.", ""]
    for name in sorted(whence.__all__, key=str.lower):
        value = getattr(whence, name)
        if not callable(value):
            parts += [f"## {name}", "", f"The table of methods, by name: {', '.join(value)}.", ""]
            continue
        parts += _entry("##", name, value)
        for member, function in sorted(vars(value).items()) if inspect.isclass(value) else ():
            inner = getattr(function, "fget", None) or getattr(function, "func", function)
            if not member.startswith("_") and inspect.isfunction(inner):
                parts += _entry("###", f"{name}.{member}", inner)
    parts += ["# Evaluation", "", "Everything below is in the `whence.evaluate` namespace.", ""]
    for name in sorted(whence.evaluate.__all__, key=str.lower):
        value = getattr(whence.evaluate, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            parts += _entry("##", name, value)
    return "\n".join(parts).rstrip() + "\n"


def _entry(level: str, name: str, value) -> list[str]:
    # Without annotations, which Python versions print differently; the docstrings say what is meant.
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in inspect.signature(value).parameters.values()
    ]
    shown = str(inspect.Signature([parameter for parameter in parameters if parameter.name != "self"]))
    return [f"{level} {name}", "", "```text", f"{name}{shown}", "", inspect.getdoc(value) or "", "```", ""]


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
    (FOLDER / "api.md").write_text(api_page(), encoding="utf-8")
