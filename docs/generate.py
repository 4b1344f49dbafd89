"""Write the generated pages, docs/cli.md, docs/api.md and docs/coverage.md. `tests/test_docs.py` holds them against the code."""

import ast
import dataclasses
import inspect
import sys
import textwrap
from pathlib import Path

import whence
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


# What people do, and the names that they do it with: of the face of the package, and of the rooms one level down.
API = {
    "Say what is attributed": "CausalLM MaskedLM Classification Regression Diffusion Custom tasks",
    "Read data": "load_records load_arrays load",
    "Build a store and ask it": "build query score_table open_store BuildConfig Rerank Store Hits",
    "Ask the data itself": "attribute self_influence EKFAC Source FitConfig pipeline",
    "Settings of every method and job": "Damping Runtime settings methods",
    "Scores": "ScoreTable score",
    "Record a training run and go back through it": "Recorder Recipe runs",
    "Explain an answer token by token": "why",
    "Choose training data, and prove the choice": "select clusters",
    "Share credit, and write down what is known": "shares audit",
    "Train against a behaviour": "guide",
    "Study a corpus": "study",
    "Use another model's gradients": "proxy",
    "Hold scores against retraining": "evaluate",
    "Serve, and scan with several processes": "serve workers distributed",
    "Errors": "WhenceError",
}
# Rooms of which only what people call is shown; of the others, everything.
SHOWN = {
    "load": ("stream_records",),
    "pipeline": (
        "GradientLog",
        "build_along",
        "damping_sweep",
        "ensemble_table",
        "fit_curvature",
        "query_along",
        "sample_images",
        "score_along",
        "spool",
    ),
    "methods": ("METHODS", "EXACT_METHODS"),
    "score": ("Ensemble",),
    "serve": ("Client", "ServeConfig"),
    "distributed": ("Ranks",),
    "workers": ("Workers",),
    "tasks": ("AbstractTask", "Draws", "Guidance", "Hiding", "Measured", "NoiseSchedule", "TextLimits", "load_diffusion"),
    "settings": (*(name for name in whence.settings.__all__ if name[0].isupper()), "exact_settings"),
    "clusters": ("Clusters", "clusters", "write_clusters"),
    "shares": ("ShareCheck", "ShareLine", "Shares", "named_sources", "shares", "verify_shares", "write_shares"),
}


def api_page() -> str:
    """docs/api.md as it should be: signature and docstring of public names by what people do, methods of classes included."""
    parts = [MARK, "", "# Python reference", ""]
    parts += [f"- [{title}](#{_anchor(title)})" for title in API]
    shown: set[int] = set()
    for title, names in API.items():
        parts += ["", f"## {title}", ""]
        for name in names.split():
            value = getattr(whence, name)
            if not inspect.ismodule(value):
                shown.add(id(value))
                parts += _described(f"whence.{name}", value)
                continue
            for inner in sorted(SHOWN.get(name, value.__all__), key=str.lower):
                if id(getattr(value, inner)) not in shown:
                    parts += _described(f"whence.{name}.{inner}", getattr(value, inner))
    return "\n".join(parts).rstrip() + "\n"


def _described(name: str, value) -> list[str]:
    """An entry for a name, and one for each public method."""
    if not callable(value):
        return [f"### {name}", "", f"The table of methods, by name: {', '.join(value)}.", ""] if isinstance(value, dict) else []
    parts = _entry("###", name, value)
    for member, function in sorted(vars(value).items()) if inspect.isclass(value) else ():
        inner = getattr(function, "fget", None) or getattr(function, "func", None) or getattr(function, "__func__", function)
        if not member.startswith("_") and inspect.isfunction(inner):
            parts += _entry("####", f"{name}.{member}", inner)
    return parts


def _anchor(title: str) -> str:
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


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
for any module in Python and takes only what hooks cannot do; patterns of parameter names choose. Without, parameters that no hook covers go
through the twin if they are at most 2 % of those tracked, such as places and tokens of a vision transformer, and answers and
`forecast` say so; more are an error, never skipped.

Tables of places are found to be looked up for all examples at once, and by which ids: `table(torch.arange(length))` as people write it,
tables that make their ids themselves (BART, OPT, Whisper), and distances that attention adds to its scores (T5, MPNet).
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
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    except (OSError, TypeError):  # a name for a type
        return []
    is_class = isinstance(node, ast.ClassDef)
    made_by = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None) if is_class else node
    if made_by is not None:
        shown, returns = _arguments(made_by.args), made_by.returns
    else:
        shown, returns = str(inspect.signature(value)).partition(" -> ")[0], None
        fields = {part.target.id: ast.unparse(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)}
        given = list(inspect.signature(value).parameters.values())
        words = [_field(parameter, fields.get(parameter.name)) for parameter in given]
        named = [place for place, parameter in enumerate(given) if parameter.kind is parameter.KEYWORD_ONLY]
        shown = ", ".join(words[: named[0]] + ["*"] + words[named[0] :] if named else words)
    arrow = "" if is_class or returns is None else f" -> {ast.unparse(returns)}"
    return [f"{level} {name}", "", "```text", f"{name}({shown}){arrow}", "", inspect.getdoc(value) or "", "```", ""]


def _arguments(arguments: ast.arguments) -> str:
    """As the source says them, which is the same in every version of Python; without self and cls."""
    for names in (arguments.posonlyargs, arguments.args):
        names[:] = [name for name in names if name.arg not in ("self", "cls")]
    return ast.unparse(arguments)


def _field(parameter: inspect.Parameter, annotation: str | None) -> str:
    text, default = parameter.name if annotation is None else f"{parameter.name}: {annotation}", parameter.default
    if default is parameter.empty:
        return text
    is_record = dataclasses.is_dataclass(default)
    made = "..." if "factory" in repr(default) else f"{type(default).__name__}()" if is_record else repr(default)
    return f"{text}={made}"


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
    (FOLDER / "api.md").write_text(api_page(), encoding="utf-8")
    (FOLDER / "coverage.md").write_text(coverage_page(), encoding="utf-8")
