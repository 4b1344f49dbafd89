"""Write the generated pages, docs/cli.md, docs/api.md and docs/coverage.md. `tests/test_docs.py` holds them against the code."""

import inspect
import sys
from pathlib import Path

import whence
import whence.evaluate
from whence.capture import check_task, plan_units
from whence.cli import app

FOLDER = Path(__file__).parent
if str(FOLDER.parent) not in sys.path:  # run as a script; the models come from the tests
    sys.path.insert(0, str(FOLDER.parent))

from tests import families, zoo  # noqa: E402

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


def coverage_page() -> str:
    """docs/coverage.md as it should be: what each layer and each tested model goes through, as the plan of its units says."""
    parts = [MARK, "", _COVERAGE_INTRO, "## Layers", "", "| layer | goes through |", "|---|---|"]
    for title in families.LAYERS:
        plan = plan_units(families.make_layer(title)[0])
        parts.append(f"| {title} | {'the twin' if plan.functional else 'hooks'} |")
    parts += ["", _COVERAGE_LAYERS, "## Models", "", _COVERAGE_MODELS]
    parts += ["| family | model | parameters through hooks | through the twin |", "|---|---|---|---|"]
    for name, family in families.FAMILIES.items():
        task, dataset = families.make(name)
        plan = plan_units(task)
        with families.WideArithmetic():
            check_task(task, plan, dataset.examples)
        sizes = {key: value.numel() for key, value in task.model.named_parameters()}
        keys = [key for index in plan.twin_units for key in plan.units[index].parameters]
        twin = sum(sizes[key] for key in keys)
        share = 1 - twin / plan.coverage.tracked
        ends = list(dict.fromkeys(".".join(key.split(".")[-2:]) for key in keys))
        shown = ", ".join(f"`{end}`" for end in ends[:3]) + (f" and {len(ends) - 3} more" if len(ends) > 3 else "")
        parts.append(f"| {family.group} | {family.title} | {share:.0%} | {shown or 'none'} |")
    parts += ["", f"Also held against autograd, each for one thing that can go wrong: {', '.join(zoo.NAMES)}."]
    return "\n".join(parts) + "\n"


_COVERAGE_INTRO = """# What is covered

Gradients of single examples are made in two ways. **Hooks** see what enters a layer and the gradient that leaves it, for a whole batch
at once, and nothing is written out that need not be. **The twin** differentiates the loss of each example, collated alone, by the
parameters that hooks do not cover, and writes the gradients out: examples of one shape side by side under `torch.func`, where the model can
be run so and the check before every run finds the same as alone, else one at a time. It has to be asked for: `functional=True` is enough
for any module in Python and takes only what hooks cannot do; patterns of parameter names choose. Without, a parameter that no hook covers is
an error, never skipped.
"""
_COVERAGE_LAYERS = """Each row is a test: the layer alone, against plain autograd on one example at a time, in float64. A parameter of
complex numbers counts as two of real ones, its parts. Refused before anything long runs: batch norms without running statistics and losses
that need the other examples of the batch, since there an example has no gradient of its own; embeddings with `max_norm` or
`scale_grad_by_freq`; parameters in modules of `torch.jit`.

Curvature covers every parameter, but not every side of it alike. A side up to the length that memory and time allow has all of its
eigenvectors; a longer one its leading directions and one eigenvalue for the rest, a vocabulary its likely tokens and bands of the others,
and a store cuts further to keep what its rows share in proportion to them. Answers, stores, `inspect` and `forecast` name these sides;
docs/results.md says what it costs.

Hooks see rows, not whose they are. The check before a run sees how each layer's rows belong to the examples, and a layer that is used
otherwise later is not let pass: one that is given only some of the positions, such as an expert written as an `nn.Linear` or the tail of an
adaptive softmax, goes through the twin with `functional=True`, and is refused without. The check sees few examples, which may by chance be
routed as if the layer were an ordinary one: name the experts of a mixture (`functional=["experts.*"]`) to be sure.

A loss may call any part of the model and read its parameters: solvers, recorded runs and the twin put other weights into the modules
themselves while it runs. Solvers push tangents forward through the model, and where it has none go back twice; a model that allows neither is
refused by solvers only.
"""
_COVERAGE_MODELS = """Tiny models of these families, made from their configuration, are held against autograd in float64. The share is
of the tiny model's parameters, where tables and tokens weigh more than in a real one.
"""


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
    (FOLDER / "coverage.md").write_text(coverage_page(), encoding="utf-8")
