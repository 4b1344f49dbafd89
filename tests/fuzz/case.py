"""A draw: everything about a model, its data and a question in plain values, drawn from one seed, and made smaller part by part."""

import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.fuzz.language import FAMILIES
from tests.fuzz.losses import CALLS, LOSSES
from tests.fuzz.network import FORMS, HEADS, KINDS

__all__ = ["Case", "draw", "smaller"]

BATCHES = ("tuple", "dict", "dataclass", "named tuple", "encoding", "list of records", "time first", "packed")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything a trial depends on.

    Args:
        seed: Of weights and data.
        kind: Of inputs, or "language".
        stem: What comes first.
        parts: What follows.
        head: What ends the model.
        form: How the model gives its logits.
        task: Which of whence's tasks.
        call: How a custom loss calls the model.
        loss: What it makes of the values.
        batch: Form of a custom batch.
        measure: What queries ask.
        count: Training examples.
        queries: How many.
        positions: Positions per batch.
        values: What the data look like.
        dtype: Of the weights.
        ragged: Whether lengths differ.
        shift: Whether there is a second input.
        training: Whether the model is in training mode.
        frozen: Which parameter asks for no gradient, as a share of their number; below 0 for none.
        choice: Which parameters are attributed.
        functional: What goes through the twin.
        method: What is asked of whence.
    """

    seed: int
    kind: str = "vectors"
    stem: str = ""
    parts: tuple[str, ...] = ()
    head: str = "linear"
    form: str = "tensor"
    task: str = "classification"
    call: str = "model(x)"
    loss: str = "cross-entropy"
    batch: str = "tuple"
    measure: str = "loss"
    count: int = 4
    queries: int = 2
    positions: int = 0
    values: str = "normal"
    dtype: str = "float64"
    ragged: bool = False
    shift: bool = False
    training: bool = False
    frozen: float = -1.0
    choice: str = "all"
    functional: str = "no"
    method: str = "grad-dot-exact"

    def __str__(self) -> str:
        """What differs from the defaults, as JSON."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return json.dumps({name: value for name, value in dataclasses.asdict(self).items() if value != plain[name]})

    @classmethod
    def from_text(cls, text: str) -> "Case":
        """The inverse of `str`."""
        values = json.loads(text)
        return cls(**{**values, "parts": tuple(values.get("parts", ()))})


def draw(seed: int, source: random.Random | None = None) -> Case:
    """A case.

    Args:
        seed: Of weights and data, and of the draw unless there is a source.
        source: Where the draw comes from, such as one of Hypothesis.
    """
    choose = random.Random(seed) if source is None else source
    kind = _weighted(choose, {**dict.fromkeys(KINDS, 10), "language": 4})
    case = Case(
        seed=seed,
        kind=kind,
        count=_weighted(choose, {**dict.fromkeys(range(1, 10), 10), 255: 0.3, 256: 0.3, 257: 0.3, 261: 0.3}),
        queries=choose.randint(1, 3),
        positions=_weighted(choose, {0: 4, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1, 8: 1}),
        values=_weighted(
            choose, {"normal": 8, "one class": 1, "imbalanced": 2, "equal": 1, "zeros": 1, "large": 1, "small": 1}
        ),
        dtype=_weighted(choose, {"float64": 8, "float32": 3, "bfloat16": 1}),
        training=choose.random() < 0.5,
        frozen=choose.random() if choose.random() < 0.15 else -1.0,
        choice=_weighted(choose, {"all": 6, "ignore": 1, "track": 1}),
        functional=_weighted(choose, {"no": 5, "yes": 4, "all": 3, "some": 2}),
        method=_weighted(
            choose,
            {
                "grad-dot-exact": 30,
                "units": 2,
                "cosine": 1,
                "grad-dot": 4,
                "logra": 2,
                "ekfac": 3,
                "kfac": 1,
                "pcg": 2,
                "cg": 1,
            },
        ),
    )
    return _language(choose, case) if kind == "language" else _network(choose, case)


def smaller(case: Case) -> Iterator[Case]:
    """Cases that have one thing less, the larger steps first."""
    for place in range(len(case.parts)):
        yield dataclasses.replace(case, parts=case.parts[:place] + case.parts[place + 1 :])
    for field in dataclasses.fields(case):
        if field.name not in ("seed", "kind", "stem", "parts", "count") and getattr(case, field.name) != field.default:
            yield dataclasses.replace(case, **{field.name: field.default})
    if case.kind == "sequences":
        yield dataclasses.replace(case, kind="vectors")
    if case.kind in ("tokens", "bags"):
        yield dataclasses.replace(case, kind="sequences", stem="")
        yield dataclasses.replace(case, stem=next(iter(KINDS[case.kind].stems)))
    for count in (1, 2, 3, 4, case.count - 1):
        if 0 < count < case.count:
            yield dataclasses.replace(case, count=count)


def _network(choose: random.Random, case: Case) -> Case:
    known = KINDS[case.kind]
    task = _weighted(choose, {"classification": 3, "regression": 2, "custom": 5})
    loss = {"classification": "cross-entropy", "regression": "squares"}.get(task) or _loss(choose, case)
    measures = {
        "classification": {"loss": 3, "margin": 1},
        "regression": {"loss": 3, "prediction": 1},
        "custom": {"loss": 3, "norm": 1},
    }
    may_vary = case.kind in ("sequences", "tokens", "bags")
    batch = _weighted(choose, dict.fromkeys(BATCHES[:7] if case.kind in ("sequences", "tokens") else BATCHES[:6], 1))
    few = 1 if case.count > 9 else choose.randint(1, 3)
    if case.count > 9 and case.method not in ("grad-dot", "logra"):
        case = dataclasses.replace(case, method="grad-dot-exact")  # the others take as many passes as there are labels
    return dataclasses.replace(
        case,
        stem=choose.choice(sorted(known.stems)),
        parts=tuple(choose.choice(sorted(known.parts)) for _ in range(few)),
        head=_weighted(choose, {name: 8 if name == "linear" else 1 for name in HEADS}),
        form=_weighted(choose, {name: 12 if name == "tensor" else 1 for name in FORMS}),
        task=task,
        call=_weighted(choose, {name: 10 if name == "model(x)" else 1 for name in CALLS}) if task == "custom" else "model(x)",
        loss=loss,
        batch=batch if task == "custom" else "tuple",
        measure=_weighted(choose, measures[task]),
        ragged=may_vary and choose.random() < 0.25,
        shift=choose.random() < 0.15,
    )


def _loss(choose: random.Random, case: Case) -> str:
    if case.method in ("ekfac", "kfac", "pcg", "cg"):
        return choose.choice(("cross-entropy", "squares"))
    return _weighted(choose, {name: 1 if loss.mixes_examples or loss.is_random else 4 for name, loss in LOSSES.items()})


def _language(choose: random.Random, case: Case) -> Case:
    family = choose.choice(sorted(FAMILIES))
    # Their labels are drawn, so that only an expectation is known.
    method = "grad-dot-exact" if case.method in ("ekfac", "kfac") and FAMILIES[family].task != "classification" else case.method
    count = case.count if case.count < 10 else 5
    return dataclasses.replace(
        case, stem=family, task=FAMILIES[family].task, head="", ragged=choose.random() < 0.6, count=count, values="normal",
        method=method,
    )  # fmt: skip


def _weighted(choose: random.Random, weights: dict):
    """One of the keys."""
    return choose.choices(list(weights), list(weights.values()))[0]
