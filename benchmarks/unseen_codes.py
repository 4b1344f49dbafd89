"""What codes are worth on documents that nothing was learned from: curvature, axes and sizes come from other documents than the candidates.

    python benchmarks/unseen_codes.py FOLDER [--others 4096] [--bytes 512 2560 8192] [--only-finished] [--learners] [--judges 512 2000]

A GPT-2 shape of 2 layers and width 96 is trained on 1,024 candidates; EK-FAC is fitted on other documents, axes are learned from those, and
sizes of codes are chosen by held-out ones, as a build of a corpus that is far larger than its sample would choose them. Scores of 64 queries
for all candidates are held against exact EK-FAC, and against models trained again on random halves of the candidates. Axes are taken as they
are before they are rounded (docs/log.md has what rounding costs). FOLDER keeps models, whitened gradients and products: 7 GB.
--learners: ways to find axes; --judges: by what a size is chosen where all documents are in the sample.

Axes: N documents, Q queries, U coordinates of a unit, M of all, K numbers along axes, R mixtures of what they leave.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from unseen_documents import SLOTS, Coordinates, Documents, fit_of, mixed

from whence.compress import turn
from whence.curvature import Code, kept_numbers
from whence.curvature.code_axes import held_back_trial, held_out_trials
from whence.curvature.code_choice import best_code, evened, rotation, rounded
from whence.evaluate import Bank, evaluate, mean_interval, pearson, spearman
from whence.pipeline.stored.code_size import CodeSize, code_axes_bytes, code_choices, held_back_places
from whence.pipeline.stored.shared_budget import within_budget
from whence.records import ScoreTable
from whence.settings import BuildConfig

CORPUS = 1 << 20
"""Documents of the store that sizes are chosen for: far more than the sample."""


class Told:
    """Prints rows of the table."""

    def __init__(self, documents: Documents, bank: Bank):
        self.documents, self.bank, self.exact_lds, self.summary = documents, bank, 0.0, ""
        print(
            "| store | code | bytes/example | shared, MiB | LDS | 95 % | of EK-FAC | Pearson | 95 % | Spearman | 95 % | top 100 |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        self.exact_lds = self.tell("exact EK-FAC", "", "", "", documents.exact)

    def tell(self, name: str, code: str, bytes_: str, shared: str, scores: Tensor) -> float:
        """One row; its LDS."""
        exact = self.documents.exact
        parts = [mean_interval(measure(scores.double(), exact.double())) for measure in (pearson, spearman)]
        top = [set(part.topk(100).indices.tolist()) for part in exact]
        recall = (
            sum(len(best & set(row.topk(100).indices.tolist())) for best, row in zip(top, scores, strict=True)) / 100 / len(top)
        )
        setting = self.documents.setting
        table = ScoreTable(-scores.double() / scores.shape[1], setting.queries.ids, setting.train.ids, "nats", name)
        evaluation = evaluate([table], self.bank)
        self.summary, lds = evaluation.summary(), evaluation.rows[0].lds.interval
        cells = [f"{part.mean:.3f} | {part.low:.3f} to {part.high:.3f}" for part in parts]
        truth = f"{lds.mean:.3f} | {lds.low:.3f} to {lds.high:.3f} | {lds.mean / (self.exact_lds or lds.mean):.2f}"
        print(f"| {name} | {code} | {bytes_} | {shared} | {truth} | {cells[0]} | {cells[1]} | {recall:.2f} |", flush=True)
        return lds.mean


def aligned(documents: Documents, made_of: Coordinates, mix: Tensor, code: Code, share: float) -> Tensor:
    """Scores by a code of the axes that documents are mixed to."""
    mix, taught = mix[:, : code.width], documents.others
    asked, kept = (made_of.gram_NN[part, taught] @ mix for part in (documents.queries, documents.candidates))
    turn_KK = rotation(code.width, 0).float()
    scores = (asked @ turn_KK) @ rounded(kept @ turn_KK, code.bits).T
    if code.rest:
        axes_KR = mix.T @ made_of.sketches_NR[taught, : code.rest]
        left, right = (
            made_of.sketches_NR[part, : code.rest] - numbers @ axes_KR
            for part, numbers in ((documents.queries, asked), (documents.candidates, kept))
        )
        scores = scores + share * SLOTS / code.rest * left @ rounded(right, 1).T
    return scores


def of_build(documents: Documents, bytes_: int, shared_bytes: int) -> CodeSize:
    """The sizes that a build would choose from, of a corpus far larger than the sample, with the bases of the fit."""
    config = BuildConfig(bytes_per_example=bytes_, shared_bytes=shared_bytes, axes_examples=documents.others.stop)
    return within_budget(documents.units, CORPUS, config, fit_of(documents.units), is_begun=True)[1]


def chosen(documents: Documents, size: CodeSize, made_of: Coordinates, mix: Tensor) -> tuple[Code, float]:
    """The size that a build would choose, and the share of its rest."""
    held = slice(documents.held.start, documents.held.start + size.held_out)
    gram, taught = made_of.gram_NN, documents.others
    choices = [replace(choice, width=min(choice.width, mix.shape[1])) for choice in size.choices]
    unseen, _ = held_out_trials(
        gram[held, held].double(), gram[held, taught], gram[taught, taught], mix,
        [made_of.sketches_NR[held], made_of.sketches_NR[taught]], 0,
    )  # fmt: skip
    code, share, value = best_code(choices, unseen, None, 0.0)
    print(f"<!-- {code}, share {share:.3f}, held-out correlation {value:.3f} -->")
    return code, share


def by_unit(documents: Documents, bytes_: int) -> tuple[Tensor, float]:
    """EOGP's rule (Heo et al. 2026): principal axes of each unit, signs, one scale; as many for every unit. Scores, and bytes of axes."""
    width, taught, shared = _even_width(documents, bytes_), documents.others, 0.0
    scores = torch.zeros_like(documents.exact)
    for unit, gram in zip(documents.rows, documents.by_unit, strict=True):
        mix = leading(gram[taught, taught], min(width, unit.shape[1]))
        asked, codes = (gram[part, taught] @ mix for part in (documents.queries, documents.candidates))
        scores += asked @ (codes.sign() * codes.abs().mean(1, keepdim=True)).T
        shared += 2 * mix.shape[1] * unit.shape[1]
    return scores, shared


def leading(gram: Tensor, width: int, rounds: int = 6) -> Tensor:
    """Leading principal axes as mixtures of documents, by iteration on a subspace: all eigenvectors of every unit would take hours."""
    if 2 * width >= len(gram):
        values, vectors = torch.linalg.eigh(gram)
        kept = values.flip(0)[:width] > values[-1] * 1e-6
        return vectors.flip(1)[:, :width][:, kept] / values.flip(0)[:width][kept].sqrt()
    basis = torch.linalg.qr(torch.randn(len(gram), width, generator=torch.Generator().manual_seed(0)))[0]
    for _ in range(rounds):
        basis = torch.linalg.qr(gram @ basis)[0]
    values, vectors = torch.linalg.eigh((basis.T @ (gram @ basis)).double())
    kept = values > values[-1] * 1e-6
    return (basis.double() @ (vectors[:, kept] / values[kept].sqrt())).float()


def by_hadamard(documents: Documents, bytes_: int) -> Tensor:
    """Its variant without learned axes: a subsampled randomised Hadamard transform of each unit, signs, one scale."""
    width, scores = _even_width(documents, bytes_), torch.zeros_like(documents.exact)
    for unit in documents.rows:
        parts = [turn(unit[part].float(), 0, seed=0) for part in (documents.queries, documents.candidates)]
        places = torch.from_numpy(np.random.default_rng(0).permutation(parts[0].shape[1])[:width])
        asked, codes = (part[:, places] for part in parts)
        scores += parts[0].shape[1] / len(places) * asked @ (codes.sign() * codes.abs().mean(1, keepdim=True)).T
    return scores


def _even_width(documents: Documents, bytes_: int) -> int:
    """Bits for each unit; small ones keep no more than they have, and leave their share to the others."""
    room = 8 * (bytes_ - 2 * len(documents.rows))
    widths = sorted(unit.shape[1] for unit in documents.rows)
    for place, width in enumerate(widths):
        if width * (len(widths) - place) >= room:
            return room // (len(widths) - place)
        room -= width
    return widths[-1]


def judges(documents: Documents, bytes_: int, members: int) -> None:
    """What sizes of code seem worth where all documents teach the axes: to queries, to documents held back, and to members."""
    gram_SS = documents.whole.gram_NN[:members, :members].double()
    asked_QS = documents.whole.gram_NN[documents.queries, :members].double()
    mix_SK, is_back = mixed(gram_SS, members).double(), torch.zeros(members, dtype=torch.bool)
    is_back[held_back_places(members)] = True
    trial = held_back_trial(gram_SS, is_back.nonzero()[:, 0], (~is_back).nonzero()[:, 0], 0)
    print(
        "| documents | code | to queries | to documents held back | to members, their own entry left out |\n|---|---|---|---|---|"
    )
    for code in code_choices(BuildConfig(bytes_per_example=bytes_), mix_SK.shape[1]):
        mix, others = mix_SK[:, : code.width], ~torch.eye(members, dtype=torch.bool)
        codes_SK = rounded(evened(gram_SS @ mix, 0), code.bits)
        hollow_SK = gram_SS @ mix - gram_SS.diagonal()[:, None] * mix
        by_queries = pearson(evened(asked_QS @ mix, 0) @ codes_SK.T, asked_QS).mean()
        by_members = pearson(
            *((part[others].view(members, -1)) for part in (evened(hollow_SK, 0) @ codes_SK.T, gram_SS))
        ).mean()
        print(
            f"| {members:,} | {_told(code)} | {by_queries:.3f} | {trial.agreement(code)[0]:.3f} | {by_members:.3f} |",
            flush=True,
        )


def learners(documents: Documents) -> None:
    """Axes of the same number, full precision, from ways to find them."""
    print("| axes | from | Pearson | 95 % | Spearman | 95 % |\n|---|---|---|---|---|---|")
    taught, count = documents.others, documents.others.stop
    gram, sketches = documents.whole.gram_NN[taught, taught], documents.whole.sketches_NR[taught, : SLOTS // 2]

    def tell(name: str, mix: Tensor, width: int) -> None:
        parts = (documents.queries, documents.candidates)
        asked, kept = (documents.whole.gram_NN[part, taught] @ mix[:, :width] for part in parts)
        pair = (asked @ kept.T).double(), documents.exact.double()
        cells = [
            f"{part.mean:.3f} | {part.low:.3f} to {part.high:.3f}"
            for part in map(mean_interval, (pearson(*pair), spearman(*pair)))
        ]
        print(f"| {width:,} | {name} | {' | '.join(cells)} |", flush=True)

    def ranged(mixtures: Tensor) -> Tensor:
        """Axes of the range of mixtures, largest first."""
        values, vectors = torch.linalg.eigh((mixtures.T @ (gram @ mixtures)).double())
        basis = mixtures @ (vectors / values.clamp_min(1e-30).sqrt())[:, values > values[-1] * 1e-10].float()
        along = gram @ basis
        return basis @ torch.linalg.eigh((along.T @ along).double())[1].flip(1).float()

    whole, probes = mixed(gram, count), torch.randn(count, 2048, generator=torch.Generator().manual_seed(0))
    left = torch.linalg.eigh((sketches @ sketches.T).double())[1]
    for width in (256, 1024):
        tell(f"all {count:,} documents, exactly", whole, width)
        part = torch.zeros(count, width)
        part[:width] = mixed(gram, width)[:, :width]
        tell(f"{width:,} documents, exactly", part, width)
        tell(f"{width:,} random mixtures of all", ranged(probes[:, :width]), width)
        tell(f"{2 * width:,} random mixtures of all", ranged(probes[:, : 2 * width]), width)
        powered = torch.linalg.qr(gram @ probes[:, :width])[0]
        tell(f"{width:,} random mixtures after one power", ranged(powered), width)
        tell(f"{width:,} mixtures by sketches of all", ranged(left.flip(1)[:, :width].float()), width)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--others", type=int, default=4096)
    parser.add_argument("--bytes", type=int, nargs="+", default=[512, 2560, 8192])
    parser.add_argument("--only-finished", action="store_true")
    parser.add_argument(
        "--only-aligned", action="store_true", help="leave EOGP's rules out, which take eigenvectors of every unit"
    )
    parser.add_argument("--learners", action="store_true")
    parser.add_argument("--judges", type=int, nargs=2, metavar=("BYTES", "DOCUMENTS"))
    options = parser.parse_args()
    documents = Documents(options.folder, options.others)
    if options.judges or options.learners:
        judges(documents, *options.judges) if options.judges else learners(documents)
        return
    bank = documents.setting.bank(only_finished=options.only_finished)
    told, bases = Told(documents, bank), 4 * kept_numbers(documents.units, fit_of(documents.units))
    mixes: dict[int, Tensor] = {}
    for bytes_ in options.bytes:
        for name, most in (("aligned", 256 << 20), ("aligned, axes of 8 MiB", bases + (8 << 20))):
            size = of_build(documents, bytes_, most)
            made_of = documents.of_most_variance(size.coordinates)
            if made_of.count not in mixes:
                mixes[made_of.count] = mixed(made_of.gram_NN, options.others)
            code, share = chosen(documents, size, made_of, mixes[made_of.count])
            shared = f"{(bases + code_axes_bytes(code, made_of.count, size.axes_bytes)) / 2**20:.0f}"
            told.tell(
                name, _told(code, share), f"{bytes_:,}", shared, aligned(documents, made_of, mixes[made_of.count], code, share)
            )
        if options.only_aligned:
            continue
        scores, axes_bytes = by_unit(documents, bytes_)
        told.tell("EOGP", "signs of each unit's axes", f"{bytes_:,}", f"{(bases + axes_bytes) / 2**20:.0f}", scores)
        scores = by_hadamard(documents, bytes_)
        told.tell("EOGP-R", "signs of each unit's Hadamard transform", f"{bytes_:,}", f"{bases / 2**20:.0f}", scores)
    print(f"\n{told.summary}")


def _told(code: Code, share: float = 0.0) -> str:
    rest = f" + {code.rest:,} signs, weighed {share:.2f}" if code.rest else ""
    return f"{code.width:,} x {code.dtype}{rest}"


if __name__ == "__main__":
    main()
