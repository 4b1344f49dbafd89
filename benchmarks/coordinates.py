"""How many coordinates of whitened gradients a store needs, and how many axes, bits and signs: agreement with exact EK-FAC, and LDS.

    python benchmarks/coordinates.py whence-bench/text-medium SCRATCH [--coordinates 65536 262144 1048576] [--codes 1000x4 1000x4+16384]

The setting's first model, EK-FAC of its training documents with all eigenvectors, its queries. Rows keep the coordinates of most variance.
Their axes are learned from all documents, or, for what is told of others, each half of them is scored by axes of the other half; they are not
rounded, codes of 8 bits and less are. 1000x4+16384: 1,000 axes of 4 bits, and signs of so many mixtures of what they leave. LDS is told where
the setting's bank is there. SCRATCH keeps the curvature and the rows, 2 bytes a coordinate and document.

Axes: Q queries, N documents, W coordinates of a row, M of all, S documents that teach axes, K axes.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from whence.bench.settings import SETTINGS, Setting
from whence.capture import Objective, Plan, plan_units
from whence.compress import SparseSketch, Whitened
from whence.curvature import KroneckerCurvature, ResolvedDamping, fit_ekfac, resolved, whiten
from whence.curvature.code_choice import rest_share, rotation, rounded
from whence.data import Example
from whence.errors import BadInput
from whence.evaluate import Bank, evaluate, mean_interval, pearson, spearman
from whence.progress import meter
from whence.records import ScoreTable
from whence.score import Batching, gradient_rows
from whence.settings import FitConfig
from whence.tasks import AbstractTask

_EXAMPLES, _POSITIONS, _SLOTS = 16, 512, 1 << 16
_DAMPING = ResolvedDamping(0.1, None, "")


def fitted(setting: Setting, task: AbstractTask, plan: Plan, folder: Path) -> KroneckerCurvature:
    """EK-FAC with all eigenvectors, kept in a folder."""
    length = sum(example.length for example in setting.train.examples)
    folder = folder / "factors"
    fit = resolved(FitConfig(seed=0), plan.units, device=task.device, positions=length, room_bytes=8 << 30, folder=folder)
    return fit_ekfac(task, plan, setting.train, fit, max_positions=_POSITIONS, folder=folder, quiet=True)


def whole_rows(
    task: AbstractTask, plan: Plan, whitened: Whitened, examples: Sequence[Example], objective: Objective
) -> Iterator[tuple[slice, Tensor]]:
    """Whitened gradients of a few examples at a time, shape (examples, M)."""
    with meter("rows", len(examples)) as progress:
        for start in range(0, len(examples), _EXAMPLES):
            some = examples[start : start + _EXAMPLES]
            rows = gradient_rows(
                task, plan, whitened, some, batching=Batching(_POSITIONS), progress=progress, objective=objective
            )
            yield slice(start, start + len(some)), torch.cat([unit[:, 0] for unit in rows.units], 1)


def gathered(setting: Setting, folder: Path, sizes: Sequence[int]) -> None:
    """Rows of all sizes, queries last, and the scores of whole rows, as files in the folder."""
    task = setting.member(0)
    plan = plan_units(task)
    curvature = fitted(setting, task, plan, folder)
    whitened = whiten(curvature, _DAMPING, 1 << 40)
    sides = zip(curvature.blocks, whitened.weights, strict=True)
    order_M = torch.cat([(block.values_OI * weights.square()).flatten() for block, weights in sides]).argsort(descending=True)
    places = {size: order_M[:size].sort().values for size in sizes}
    train, queries = setting.train.examples, setting.queries.examples
    count = len(train) + len(queries)
    files = {size: np.lib.format.open_memmap(_file(folder, size), "w+", np.float16, (count, size)) for size in sizes}

    def write(first: int, where: slice, rows_BM: Tensor) -> Tensor:
        for size, places_W in places.items():
            files[size][first + where.start : first + where.stop] = rows_BM[:, places_W].half().numpy()
        return rows_BM

    asked = [write(len(train), *part).bfloat16() for part in whole_rows(task, plan, whitened, queries, "measurement")]
    whole_QM = torch.cat(asked).float()
    exact_QN = torch.zeros(len(queries), len(train))
    for where, rows_BM in whole_rows(task, plan, whitened, train, "loss"):
        exact_QN[:, where] = whole_QM @ write(0, where, rows_BM).T
    np.save(folder / "exact.npy", exact_QN.numpy())


def _file(folder: Path, size: int) -> Path:
    return folder / f"rows-{size}.npy"


def products(folder: Path, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Of documents with each other and of queries with documents, kept in the folder."""
    path = folder / f"g{size}.pt"
    if not path.exists():
        rows = torch.from_numpy(np.load(_file(folder, size), mmap_mode="c"))
        gram_NN, scores_QN = (torch.zeros(many, count, dtype=torch.float64) for many in (count, len(rows) - count))
        for part in rows.split(1 << 16, 1):
            train, asked = part[:count].float(), part[count:].float()
            gram_NN += (train @ train.T).double()
            scores_QN += (asked @ train.T).double()
        torch.save((gram_NN, scores_QN), path)
    return torch.load(path)


@dataclass(frozen=True)
class Code:
    """Axes, bits of a number along one, and signs of the rest."""

    width: int
    bits: int
    signs: int

    @classmethod
    def read(cls, text: str) -> "Code":
        """From "1000x4" or "1000x4+16384"."""
        axes, _, signs = text.partition("+")
        width, bits = (int(part) for part in axes.split("x"))
        return cls(width, bits, int(signs or 0))

    def __str__(self):
        signs = f" + {self.signs:,} signs" if self.signs else ""
        return f"{self.width:,} x {self.bits}{signs} | {(self.width * self.bits + self.signs) // 8:,}"


@dataclass(frozen=True)
class Rows:
    """Products of rows of one size, and their sketches, queries last."""

    gram_NN: Tensor
    scores_QN: Tensor
    sketches_NR: Tensor

    def by_code(self, code: Code, sample_S: Tensor, asked_A: Tensor) -> Tensor:
        """Scores of some documents by a code whose axes others, or the same, taught."""
        values_S, vectors_SS = torch.linalg.eigh(self.gram_NN[sample_S][:, sample_S])
        width = min(code.width, len(sample_S))
        mix_SK = vectors_SS.flip(1)[:, :width] / values_S.flip(0)[:width].clamp_min(1e-9).sqrt()
        queries_QK, codes_AK, turn_KK = (
            self.scores_QN[:, sample_S] @ mix_SK,
            self.gram_NN[asked_A][:, sample_S] @ mix_SK,
            rotation(width, 0),
        )
        found_QA = (queries_QK @ turn_KK) @ rounded(codes_AK @ turn_KK, code.bits).T
        if not code.signs:
            return found_QA
        # Slots added up are a sketch of fewer slots.
        sketches = self.sketches_NR.view(len(self.sketches_NR), -1, code.signs).sum(1).double()
        axes_KR = mix_SK.T @ sketches[sample_S]
        left_QR, right_AR = sketches[len(self.gram_NN) :] - queries_QK @ axes_KR, sketches[asked_A] - codes_AK @ axes_KR
        signs_AR, few = rounded(right_AR, 1), slice(0, 256)
        exact_FF = self.gram_NN[asked_A][few][:, asked_A[few]] - codes_AK[few] @ codes_AK[few].T
        return found_QA + rest_share(right_AR[few] @ signs_AR[few].T, exact_FF) * left_QR @ signs_AR.T


def sketched(folder: Path, size: int) -> Tensor:
    """Sparse sketches of all rows, shape (N + Q, R)."""
    sketch = SparseSketch.random(size, _SLOTS, seed=0, name="rest", device=torch.device("cpu"))
    rows = torch.from_numpy(np.load(_file(folder, size), mmap_mode="c"))
    return torch.cat([sketch.times(part.float()) for part in rows.split(_EXAMPLES)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--coordinates", type=int, nargs="+", default=[1 << 16, 1 << 18, 1 << 20])
    parser.add_argument(
        "--codes", nargs="+", default=["500x2", "1000x1", "1000x4", "2000x2", "2000x4", "2000x8", "1000x4+16384"]
    )
    options = parser.parse_args()
    setting = SETTINGS[options.setting.name](options.setting)
    options.scratch.mkdir(parents=True, exist_ok=True)
    if not (options.scratch / "exact.npy").exists():
        gathered(setting, options.scratch, options.coordinates)
    exact_QN = torch.from_numpy(np.load(options.scratch / "exact.npy"))
    try:
        bank = setting.bank(only_finished=True, quiet=True)
    except BadInput:  # fewer than three halves are there
        bank = None
    count = exact_QN.shape[1]
    everything = torch.arange(count)
    print(
        "| coordinates | axes x bits | bytes | Pearson | Spearman | LDS | of others: Spearman | LDS |\n|---|---|---|---|---|---|---|---|"
    )
    print(f"| all | none | | | | {lds(setting, bank, exact_QN)} | | |")
    for size in options.coordinates:
        gram_NN, scores_QN = products(options.scratch, size, count)
        agreement = f"{cell(pearson, scores_QN, exact_QN)} | {cell(spearman, scores_QN, exact_QN)}"
        print(f"| {size:,} | none | | {agreement} | {lds(setting, bank, scores_QN)} | | |", flush=True)
        codes = [Code.read(text) for text in options.codes]
        sketches_NR = sketched(options.scratch, size) if any(code.signs for code in codes) else torch.zeros(0)
        rows = Rows(gram_NN, scores_QN, sketches_NR)
        for code in codes:
            found_QN = rows.by_code(code, everything, everything)
            others_QN = torch.zeros_like(found_QN)
            for first in range(2):
                others_QN[:, first::2] = rows.by_code(code, everything[1 - first :: 2], everything[first::2])
            parts = [cell(measure, found_QN, exact_QN) for measure in (pearson, spearman)]
            parts += [lds(setting, bank, found_QN), cell(spearman, others_QN, exact_QN), lds(setting, bank, others_QN)]
            print(f"| {size:,} | {code} | {' | '.join(parts)} |", flush=True)


def cell(measure: Callable[[Tensor, Tensor], Tensor], found_QN: Tensor, exact_QN: Tensor) -> str:
    """Mean over queries with its interval."""
    part = mean_interval(measure(found_QN.double(), exact_QN.double()))
    return f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"


def lds(setting: Setting, bank: Bank | None, found_QN: Tensor) -> str:
    """LDS with its interval; empty without a bank."""
    if bank is None:
        return ""
    scores_QN = -found_QN.double() / found_QN.shape[1]
    table = ScoreTable(scores_QN, setting.queries.ids, setting.train.ids, "nats", "code")
    part = evaluate([table], bank).rows[0].lds.interval
    return f"{part.mean:.3f} [{part.low:.3f}, {part.high:.3f}]"


if __name__ == "__main__":
    main()
