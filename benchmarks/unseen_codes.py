"""What codes are worth on documents that nothing was learned from: curvature, axes and sizes come from other documents than the candidates.

    python benchmarks/unseen_codes.py FOLDER [--others 4096] [--bytes 512 2560 8192]

A GPT-2 shape of 2 layers and width 96 is trained on 1,024 candidates; EK-FAC is fitted on other documents, axes are learned from those, and
sizes of codes are chosen by held-out ones. Scores of 64 queries for all candidates are held against exact EK-FAC. Axes are taken as
they are before they are rounded (docs/log.md has what rounding costs). FOLDER keeps the model and whitened gradients: 1 MiB a document.

Axes: N documents, K numbers along axes, R mixtures of what they leave.
"""

import argparse
import logging
import os
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whence.bench.settings import TEXT, Setting
from whence.capture import plan_units
from whence.compress import SparseSketch, turn
from whence.curvature import Code, ResolvedDamping, fit_ekfac, resolved, whiten
from whence.curvature.code_choice import HeldOut, evened, rotation, rounded
from whence.data import Dataset
from whence.demo.corpus import passages
from whence.demo.model import new_model, train_tokenizer
from whence.demo.train import QueryLosses, Retrain, train
from whence.evaluate import mean_interval, pearson, spearman
from whence.pipeline.stored.code_size import code_choices
from whence.progress import meter
from whence.records import Recipe
from whence.score import Batching, gradient_rows
from whence.settings import BuildConfig, FitConfig
from whence.tasks import CausalLM

CANDIDATES, QUERIES, HELD, FITTED = 1024, 64, 320, 4096
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
        Retrain(candidates, vocabulary, TEXT), QueryLosses(queries), 50, 2, folder,
    ), others  # fmt: skip


def captured(folder: Path, others: int) -> tuple[list[Tensor], list[int]]:
    """Whitened gradients of documents, per unit, and how many are others, held out, candidates and queries."""
    path = folder / f"rows-{others}.pt"
    if not path.exists():
        setting, more = prepared(folder)
        task, plan = setting.task, plan_units(setting.task)
        fit = resolved(FitConfig(seed=0), plan.units, device=task.device, positions=FITTED * TEXT.context, room_bytes=4 << 30)
        fit_on = Dataset(more.examples[:FITTED])
        curvature = fit_ekfac(task, plan, fit_on, fit, max_positions=2048, folder=folder / "factors", quiet=True)
        whitened = whiten(curvature, ResolvedDamping(0.1, None, ""), 1 << 40)
        groups = [
            (more.examples[:others], "loss"), (more.examples[others : others + HELD], "loss"),
            (setting.train.examples, "loss"), (setting.queries.examples, "measurement"),
        ]  # fmt: skip
        rows: list[list[Tensor]] = [[] for _ in plan.units]
        for examples, objective in groups:
            for start in range(0, len(examples), 64):
                some = examples[start : start + 64]
                with meter("rows", len(some), quiet=True) as progress:
                    found = gradient_rows(
                        task, plan, whitened, some, batching=Batching(2048), progress=progress, objective=objective
                    )
                for held, unit in zip(rows, found.units, strict=True):
                    held.append(unit[:, 0].bfloat16())
        torch.save(([torch.cat(unit) for unit in rows], [len(examples) for examples, _ in groups]), path)
    return torch.load(path, mmap=True)


def grams(folder: Path, rows: list[Tensor], others: int) -> list[Tensor]:
    """Inner products of all documents, per unit, shape (N, N)."""
    path = folder / f"grams-{others}.pt"
    if not path.exists():
        found = []
        for unit in rows:
            gram_NN = torch.zeros(len(unit), len(unit))
            for columns in unit.split(1 << 15, 1):
                part = columns.float()
                for start in range(0, len(part), 1024):
                    gram_NN[start : start + 1024, start:] += part[start : start + 1024] @ part[start:].T
            found.append(gram_NN.triu() + gram_NN.triu(1).T)
        torch.save(found, path)
    return torch.load(path)


class Bank:
    """Documents in groups, with their inner products and sketches."""

    def __init__(self, folder: Path, others: int):
        self.rows, sizes = captured(folder, others)
        self.by_unit = grams(folder, self.rows, others)
        self.gram = sum(self.by_unit[1:], self.by_unit[0].clone())
        ends = np.cumsum([0, *sizes])
        self.others, self.held, self.candidates, self.queries = (slice(a, b) for a, b in zip(ends, ends[1:], strict=False))
        self.coordinates = sum(unit.shape[1] for unit in self.rows)
        sketch = SparseSketch.random(self.coordinates, SLOTS, seed=0, name="res", device=torch.device("cpu"))
        path = folder / f"sketches-{others}.pt"
        if not path.exists():
            parts = []
            for start in range(0, int(ends[-1]), 64):
                block = torch.cat([unit[start : start + 64].float() for unit in self.rows], 1)
                parts.append(sketch.times(block))
            torch.save(torch.cat(parts), path)
        self.sketches = torch.load(path)

    @property
    def exact(self) -> Tensor:
        """Scores of the queries for the candidates."""
        return self.gram[self.queries, self.candidates]

    def mix(self, documents: int, width: int) -> Tensor:
        """Principal axes of the first documents as mixtures of them, shape (documents, K)."""
        values, vectors = torch.linalg.eigh(self.gram[:documents, :documents].double())
        width = min(width, int((values > values[-1] * 1e-6).sum()))
        return (vectors.flip(1)[:, :width] / values.flip(0)[:width].sqrt()).float()


def told(name: str, bytes_: float, shared: float, found: Tensor, exact: Tensor, what: str = "") -> None:
    parts = [mean_interval(measure(found.double(), exact.double())) for measure in (pearson, spearman)]
    top = [set(part.topk(100).indices.tolist()) for part in exact]
    recall = sum(len(best & set(row.topk(100).indices.tolist())) for best, row in zip(top, found, strict=True)) / 100 / len(top)
    cells = [f"{part.mean:.3f} | {part.low:.3f} to {part.high:.3f}" for part in parts]
    print(f"| {name} | {what} | {bytes_:,.0f} | {shared:.0f} | {cells[0]} | {cells[1]} | {recall:.2f} |", flush=True)


def aligned(bank: Bank, mix: Tensor, documents: int, code: Code, share: float) -> Tensor:
    """Scores by a code of the axes that documents are mixed to."""
    mix = mix[:, : code.width]
    asked, kept = (bank.gram[part, :documents] @ mix for part in (bank.queries, bank.candidates))
    turn_KK = rotation(code.width, 0).float()
    found = (asked @ turn_KK) @ rounded(kept @ turn_KK, code.bits).T
    if code.rest:
        axes_KR = mix.T @ bank.sketches[:documents, : code.rest]
        left, right = (
            bank.sketches[part, : code.rest] - numbers @ axes_KR
            for part, numbers in ((bank.queries, asked), (bank.candidates, kept))
        )
        found = found + share * SLOTS / code.rest * left @ rounded(right, 1).T
    return found


def chosen(bank: Bank, mix: Tensor, documents: int, bytes_: int, axes_bytes: int) -> tuple[Code, float]:
    """The size that a build would choose."""
    config = BuildConfig(bytes_per_example=bytes_)
    fitting = min(mix.shape[1], 8 * axes_bytes // bank.coordinates)
    choices = code_choices(config, fitting, coordinates=bank.coordinates, axes_bytes=axes_bytes)
    judge = HeldOut(
        bank.gram[bank.held, bank.held].double(), bank.gram[bank.held, :documents] @ mix,
        bank.sketches[bank.held], mix.T @ bank.sketches[:documents], 0,
    )  # fmt: skip
    judged = [(judge.agreement(choice), place) for place, choice in enumerate(choices)]
    (value, share), place = max(judged, key=lambda one: one[0][0])
    print(f"<!-- {choices[place]}, share {share:.3f}, held-out correlation {value:.3f} -->")
    return choices[place], share


def by_members(bank: Bank, mix: Tensor, documents: int, bytes_: int) -> Code:
    """The size that is best on documents of the sample, as before anything was held out."""
    few = torch.arange(0, documents, max(1, documents // 512))
    gram_SS, codes_SK = bank.gram[few, :documents], bank.gram[few, :documents] @ mix
    own = bank.gram.diagonal()[few, None] * mix[few]
    best, most = None, -1.0
    for choice in code_choices(BuildConfig(bytes_per_example=bytes_), mix.shape[1]):
        asked, kept = (evened(part[:, : choice.width], 0) for part in (codes_SK - own, codes_SK))
        found, exact = asked @ rounded(kept, choice.bits).T, gram_SS[:, few]
        others = ~torch.eye(len(few), dtype=torch.bool)
        value = float(torch.corrcoef(torch.stack([found[others], exact[others]]))[0, 1])
        best, most = (choice, value) if value > most else (best, most)
    assert best is not None
    return best


def by_unit(bank: Bank, documents: int, bytes_: int) -> tuple[Tensor, float]:
    """EOGP's rule (Heo et al. 2026): principal axes of each unit, signs, one scale; as many for every unit."""
    width, found, shared = _even_width(bank, bytes_), torch.zeros_like(bank.exact), 0.0
    for unit, gram in zip(bank.rows, bank.by_unit, strict=True):
        mix = leading(gram[:documents, :documents], min(width, unit.shape[1]))
        kept = mix.shape[1]
        asked, codes = (gram[part, :documents] @ mix for part in (bank.queries, bank.candidates))
        found += asked @ (codes.sign() * codes.abs().mean(1, keepdim=True)).T
        shared += 2 * kept * unit.shape[1] / 2**20
    return found, shared


def leading(gram: Tensor, width: int, rounds: int = 6) -> Tensor:
    """Leading principal axes as mixtures of documents, by iteration on a subspace: all eigenvectors of every unit would take hours."""
    basis = torch.linalg.qr(torch.randn(len(gram), width, generator=torch.Generator().manual_seed(0)))[0]
    for _ in range(rounds):
        basis = torch.linalg.qr(gram @ basis)[0]
    values, vectors = torch.linalg.eigh((basis.T @ (gram @ basis)).double())
    kept = values > values[-1] * 1e-6
    return (basis.double() @ (vectors[:, kept] / values[kept].sqrt())).float()


def by_hadamard(bank: Bank, bytes_: int) -> Tensor:
    """Its variant without learned axes: a subsampled randomised Hadamard transform of each unit, signs, one scale."""
    width, found = _even_width(bank, bytes_), torch.zeros_like(bank.exact)
    for unit in bank.rows:
        parts = [turn(unit[part].float(), 0, seed=0) for part in (bank.queries, bank.candidates)]
        places = torch.from_numpy(np.random.default_rng(0).permutation(parts[0].shape[1])[:width])
        asked, codes = (part[:, places] for part in parts)
        found += parts[0].shape[1] / len(places) * asked @ (codes.sign() * codes.abs().mean(1, keepdim=True)).T
    return found


def _even_width(bank: Bank, bytes_: int) -> int:
    """Bits for each unit; small ones keep no more than they have, and leave their share to the others."""
    room = 8 * (bytes_ - 2 * len(bank.rows))
    widths = sorted(unit.shape[1] for unit in bank.rows)
    for place, width in enumerate(widths):
        if width * (len(widths) - place) >= room:
            return room // (len(widths) - place)
        room -= width
    return widths[-1]


def learners(bank: Bank, documents: int) -> None:
    """Axes of the same number, full precision, from ways to find them."""
    print("| axes | from | Pearson | 95 % | Spearman | 95 % |\n|---|---|---|---|---|---|")
    gram = bank.gram[:documents, :documents]

    def tell(name: str, mix: Tensor, width: int) -> None:
        asked, kept = (bank.gram[part, :documents] @ mix[:, :width] for part in (bank.queries, bank.candidates))
        parts = [mean_interval(measure((asked @ kept.T).double(), bank.exact.double())) for measure in (pearson, spearman)]
        cells = " | ".join(f"{part.mean:.3f} | {part.low:.3f} to {part.high:.3f}" for part in parts)
        print(f"| {width:,} | {name} | {cells} |", flush=True)

    def ranged(mixtures: Tensor) -> Tensor:
        """Axes of the range of mixtures, largest first."""
        values, vectors = torch.linalg.eigh((mixtures.T @ (gram @ mixtures)).double())
        basis = mixtures @ (vectors / values.clamp_min(1e-30).sqrt())[:, values > values[-1] * 1e-10].float()
        along = gram @ basis
        return basis @ torch.linalg.eigh((along.T @ along).double())[1].flip(1).float()

    whole, probes = bank.mix(documents, 2048), torch.randn(documents, 2048, generator=torch.Generator().manual_seed(0))
    left = torch.linalg.eigh((bank.sketches[:documents, : SLOTS // 2] @ bank.sketches[:documents, : SLOTS // 2].T).double())[1]
    for width in (256, 1024):
        tell(f"all {documents:,} documents, exactly", whole, width)
        part = torch.zeros(documents, width)
        part[:width] = bank.mix(width, width)
        tell(f"{width:,} documents, exactly", part, width)
        tell(f"{width:,} random mixtures of all", ranged(probes[:, :width]), width)
        tell(f"{2 * width:,} random mixtures of all", ranged(probes[:, : 2 * width]), width)
        powered = torch.linalg.qr(gram @ probes[:, :width])[0]
        tell(f"{width:,} random mixtures after one power", ranged(powered), width)
        tell(f"{width:,} mixtures by sketches of all", ranged(left.flip(1)[:, :width].float()), width)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--others", type=int, default=4096)
    parser.add_argument("--bytes", type=int, nargs="+", default=[512, 2560, 8192])
    options = parser.parse_args()
    bank, documents = Bank(options.folder, options.others), options.others
    mix = bank.mix(documents, documents)
    print("| store | code | bytes/example | axes, MiB | Pearson | 95 % | Spearman | 95 % | recall of the top 100 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.bytes:
        old = by_members(bank, mix, documents, size)
        bits = _told(old)
        told("aligned, chosen by members", size, _shared(bank, old), aligned(bank, mix, documents, old, 0.0), bank.exact, bits)
        for name, room in (("aligned, chosen by held-out documents", 256 << 20), ("the same, axes of 8 MiB", 8 << 20)):
            code, share = chosen(bank, mix, documents, size, room)
            found = aligned(bank, mix, documents, code, share)
            told(name, size, min(room / 2**20, _shared(bank, code)), found, bank.exact, _told(code, share))
        found, shared = by_unit(bank, documents, size)
        told("EOGP", size, shared, found, bank.exact, "signs of each unit's axes")
        told("EOGP-R", size, 0, by_hadamard(bank, size), bank.exact, "signs of each unit's Hadamard transform")
    learners(bank, documents)


def _told(code: Code, share: float = 0.0) -> str:
    rest = f" + {code.rest:,} signs, weighed {share:.2f}" if code.rest else ""
    return f"{code.width:,} x {code.dtype}{rest}"


def _shared(bank: Bank, code: Code) -> float:
    return (bank.coordinates * code.width / 8 + code.width * code.rest / 2) / 2**20


if __name__ == "__main__":
    main()
