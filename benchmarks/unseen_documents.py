"""Documents that nothing was learned from, for benchmarks of codes: a model, its candidates and queries, and gradients of other documents.

Axes: N documents, U coordinates of a unit, M of all, K numbers along axes, R mixtures of what they leave.
"""

import logging
import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.bench.settings import TEXT, Setting
from whence.capture import plan_units
from whence.compress import SparseSketch
from whence.curvature import KroneckerCurvature, ResolvedDamping, fit_ekfac, resolved, whiten
from whence.data import Dataset
from whence.demo.corpus import passages
from whence.demo.model import new_model, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.progress import meter
from whence.records import Recipe, Unit
from whence.score import Batching, gradient_rows
from whence.settings import FitConfig
from whence.tasks import CausalLM

CANDIDATES, QUERIES, HELD, FITTED = 1024, 64, 320, 4096
DAMPING = ResolvedDamping(0.1, None, "")
SLOTS = 1 << 16
_CHARACTERS = 400


def corpus() -> list[dict[str, str]]:
    """Passages of the source files of the standard library, tests left out, in a fixed random order: far more than its documentation has."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for file in sorted(library.rglob("*.py")):
        parts = set(file.relative_to(library).parts)
        if parts & {"site-packages", "test", "tests", "encodings", "lib2to3", "idlelib", "pydoc_data"}:
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        for number, passage in enumerate(passages([part for part in text.split("\n\n") if part.strip()], _CHARACTERS)):
            if len(passage) >= 200:
                found.setdefault(passage, f"{file.relative_to(library)}#{number}")
    records = [{"id": name, "source": name.split("#")[0], "text": text} for text, name in found.items()]
    return [records[place] for place in np.random.default_rng(0).permutation(len(records))]


def prepared(folder: Path) -> tuple[Setting, Dataset]:
    """A model of 1,024 documents with queries, and documents of the same kind that it was not trained on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    records = corpus()
    tokenizer = train_tokenizer((record["text"] for record in records[:4000]), TEXT)
    vocabulary = len(tokenizer)

    def task_of(model, recipe: Recipe) -> CausalLM:
        return CausalLM(model, tokenizer, long="truncate", recipe=recipe)

    examples = task_of(new_model(vocabulary, 0, TEXT), Recipe("adamw", 1.0)).prepare(records).examples
    whole = [example for example in examples if example.length == TEXT.context]
    candidates, queries = Dataset(whole[:CANDIDATES]), Dataset(whole[CANDIDATES:][:QUERIES])
    others = Dataset(whole[CANDIDATES + QUERIES :])

    def fit(seed: int):
        trained = train(candidates, vocabulary, seed=seed, settings=TEXT)
        return trained.model, trained.recipe

    return Setting(
        "unseen", candidates, queries, task_of, fit, lambda: new_model(vocabulary, 0, TEXT),
        Retrain(candidates, vocabulary, TEXT), QueryLosses(queries), 40, 1, folder, repeated=8,
    ), others  # fmt: skip


def fitted(setting: Setting, others: Dataset, folder: Path) -> KroneckerCurvature:
    """EK-FAC of other documents, kept in a folder."""
    task = setting.task
    plan = plan_units(task)
    return fit_ekfac(
        task,
        plan,
        Dataset(others.examples[:FITTED]),
        fit_of(plan.units),
        max_positions=2048,
        folder=folder / "factors",
        quiet=True,
    )


def fit_of(units: tuple[Unit, ...]) -> FitConfig:
    """How it is fitted."""
    device = torch.device("cpu")
    return resolved(FitConfig(seed=0), units, device=device, positions=FITTED * TEXT.context, room_bytes=4 << 30)


def captured(folder: Path, others: int) -> tuple[list[Tensor], list[int]]:
    """Whitened gradients of documents, per unit, and how many are others, held out, candidates and queries."""
    path = folder / f"rows-{others}.pt"
    if not path.exists():
        setting, more = prepared(folder)
        task = setting.task
        plan = plan_units(task)
        whitened = whiten(fitted(setting, more, folder), DAMPING, 1 << 40)
        groups = [
            (more.examples[:others], "loss"), (more.examples[others : others + HELD], "loss"),
            (setting.train.examples, "loss"), (setting.queries.examples, "measurement"),
        ]  # fmt: skip
        rows: list[list[Tensor]] = [[] for _ in plan.units]
        for examples, objective in groups:
            for start in range(0, len(examples), 64):
                some = examples[start : start + 64]
                with meter("rows", len(some), quiet=True) as progress:
                    captured_rows = gradient_rows(
                        task, plan, whitened, some, batching=Batching(2048), progress=progress, objective=objective
                    )
                for parts, unit in zip(rows, captured_rows.units, strict=True):
                    parts.append(unit[:, 0].bfloat16())
        torch.save(([torch.cat(unit) for unit in rows], [len(examples) for examples, _ in groups]), path)
    return torch.load(path, mmap=True)


def products(rows_NU: Tensor) -> Tensor:
    """Inner products of all documents, shape (N, N)."""
    gram_NN = torch.zeros(len(rows_NU), len(rows_NU))
    for columns in rows_NU.split(1 << 15, 1):
        part = columns.float()
        for start in range(0, len(part), 1024):
            gram_NN[start : start + 1024, start:] += part[start : start + 1024] @ part[start:].T
    return gram_NN.triu() + gram_NN.triu(1).T


def sketched(rows: list[Tensor], kept: Sequence[Tensor | None]) -> Tensor:
    """Sparse sketches of all documents' kept coordinates, shape (N, R)."""
    count = sum(unit.shape[1] if places is None else len(places) for unit, places in zip(rows, kept, strict=True))
    sketch = SparseSketch.random(count, SLOTS, seed=0, name="res", device=torch.device("cpu"))
    blocks = zip(*(unit.split(64) for unit in rows), strict=True)
    return torch.cat([
        sketch.times(torch.cat([_of(unit, places).float() for unit, places in zip(block, kept, strict=True)], 1))
        for block in blocks
    ])  # fmt: skip


def _of(unit_NU: Tensor, places: Tensor | None) -> Tensor:
    return unit_NU if places is None else unit_NU[:, places]


def cached(path: Path, make: Callable[[], Any]) -> Any:
    """What a file keeps; made if it is not there."""
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path, mmap=True)


@dataclass(frozen=True)
class Coordinates:
    """What codes are made of: products and sketches of some coordinates of all documents."""

    gram_NN: Tensor
    sketches_NR: Tensor
    count: int


class Documents:
    """In groups, with the products of their whitened gradients."""

    def __init__(self, folder: Path, others: int):
        self.folder = folder
        self.rows, sizes = captured(folder, others)
        self.by_unit = cached(folder / f"grams-{others}.pt", lambda: [products(unit) for unit in self.rows])
        gram_NN = sum(self.by_unit[1:], self.by_unit[0].clone())
        sketches_NR = cached(folder / f"sketches-{others}.pt", lambda: sketched(self.rows, [None] * len(self.rows)))
        self.whole = Coordinates(gram_NN, sketches_NR, sum(unit.shape[1] for unit in self.rows))
        ends = np.cumsum([0, *sizes]).tolist()
        self.others, self.held, self.candidates, self.queries = (slice(a, b) for a, b in zip(ends, ends[1:], strict=False))
        self.setting, self.more = prepared(folder)
        self.units = plan_units(self.setting.task).units

    @property
    def exact(self) -> Tensor:
        """Scores of the queries for the candidates."""
        return self.whole.gram_NN[self.queries, self.candidates]

    def of_most_variance(self, count: int) -> Coordinates:
        """So many coordinates."""
        if count >= self.whole.count:
            return self.whole

        def make() -> tuple[Tensor, Tensor]:
            kept = whiten(fitted(self.setting, self.more, self.folder), DAMPING, count).coordinates_kept
            # A unit at a time: all of them together would be in memory twice.
            gram_NN = sum(products(_of(unit, places)) for unit, places in zip(self.rows, kept, strict=True))
            return gram_NN, sketched(self.rows, kept)

        return Coordinates(*cached(self.folder / f"coordinates-{self.others.stop}-{count}.pt", make), count)


def mixed(gram_NN: Tensor, documents: int) -> Tensor:
    """Principal axes of the first documents as mixtures of them, shape (documents, K)."""
    values, vectors = torch.linalg.eigh(gram_NN[:documents, :documents].double())
    width = int((values > values[-1] * 1e-6).sum())
    return (vectors.flip(1)[:, :width] / values.flip(0)[:width].sqrt()).float()
