"""Axes for codes of whitened gradients: the principal ones of a sample, turned at random, and which code of them to keep.

Axes: S examples of the sample, H held-out ones, B held back from trial axes, T others of the sample, U coordinates of a unit, M of all
units, K axes, R mixtures of what they leave.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.compress import TURNED, Axes, Residual, SparseSketch, turn
from whence.curvature.code_choice import Code, Coded, Trial, best_code, rotation
from whence.curvature.range_finder import Chunks, streamed_axes

__all__ = [
    "REST_BITS",
    "Choosing",
    "LearnedCode",
    "code_axes",
    "most_bits",
    "streamed_code",
]

REST_BITS = 4
"""Bits of a number in the sketches of axes: errors of fewer would be as large as what is kept of the rest."""
# Eigenvalues of the Gram matrix below this share of the largest are rounding.
_NOISE = 1e-12
_TINY = torch.finfo(torch.float64).tiny
# Examples of the sample that the size of rounded axes is measured on.
_MEASURED = 128
# And that sizes of code are judged on.
_MOST_JUDGED = 512
# Share of the stored documents below which it does not matter what a code is worth on those of the sample.
_FEW_MEMBERS = 0.02
_UNSKETCHED = torch.zeros(0, 0)


def most_bits(coordinates: int, width_K: int, most_bytes: int) -> int:
    """Bits per number of the axes, the most of 32, 8, 4 and 1 that fit.

    Few bits cost little: rounding errors of many coordinates average out. On text 4 bits lose nothing, and 1 bit .01 LDS (docs/log.md).

    >>> most_bits(1000, 100, 10**6), most_bits(10**6, 1000, 256 << 20)
    (32, 1)
    """
    filled_up = -(-coordinates // TURNED) * TURNED
    sizes = {32: coordinates, 8: filled_up, 4: filled_up}
    # With their scales, axes of one bit of a few coordinates take more than the numbers themselves.
    fewest = 32 if 32 * coordinates * width_K < filled_up * (width_K + 32) else 1
    return next((bits for bits, size in sizes.items() if size * width_K * bits <= 8 * most_bytes), fewest)


@dataclass(frozen=True)
class LearnedCode:
    """What a sample taught.

    Args:
        axes: Turned, and rounded to the bits that their room allows.
        code: The size that was chosen.
        rest_axes_RK: Sketches of the axes as they were before rounding; None where nothing is kept of what they leave.
        slots: Of the sketch that the mixtures are the first of.
        share: Of the variance of the rest's sketched scores that is signal.
        expected: Correlation with exact scores that was measured with this size: of queries that axes were not learned from, to held-out
            documents and those of the sample, each for its share of what is to be stored. 0 where one size only was to choose from.
        judges: How many queries these were.
        stand_ins: Scores that examples held back from trial axes have as queries to those that taught these, shape (B, S); of none where
            documents are held out.
    """

    axes: Axes
    code: Code
    rest_axes_RK: Tensor | None
    slots: int
    share: float
    expected: float
    judges: int
    stand_ins: Tensor


@dataclass(frozen=True)
class Choosing:
    """How a code is chosen.

    Args:
        choices: Sizes of code; wider ones than the sample has directions are cut to that.
        most_bytes: That the axes of all units may take.
        seed: Of the rotation, the turning and the sketch.
        slots: Of the sketch of the rest, 0 where no choice has one.
        members: Share of the documents to be stored that are in the sample.
    """

    choices: Sequence[Code]
    most_bytes: int
    seed: int
    slots: int = 0
    members: float = 1.0

    def room(self, code: Code) -> int:
        """Bytes that are left for axes beside their sketches, of `REST_BITS` a number where axes have fewer."""
        return self.most_bytes - code.width * code.rest * REST_BITS // 8


def code_axes(rows: Sequence[Tensor], held_out: Sequence[Tensor], how: Choosing, held_back: Sequence[int] = ()) -> LearnedCode:
    """Principal axes of whitened rows, over all units together, without forming their second moment.

    The Gram matrix of the sample has the same spectrum (Heo et al. 2026, section 3.3); axes are Z^T V / sigma. They are turned by a random
    rotation of the K axes among themselves, which keeps every inner product and spreads each row evenly over its numbers: few bits then lose
    far less. Rounding shrinks the axes; one factor makes the sample's codes come out at their exact size again.

    Of several sizes of code the one is taken whose scores agree best with exact ones, over the sample's examples and the held-out ones, each
    for its share of what is to be stored. Queries are documents that the axes were not learned from: held-out ones, or else a few of the
    sample, coded by trial axes that the others teach. With a member of the sample as the query its own axes would flatter few of them.

    Args:
        rows: Per unit, shape (S, U), of the sample.
        held_out: Per unit, shape (H, U), of documents that are stored and not in the sample; H may be 0.
        how: Sizes, room and seed.
        held_back: Places of examples of the sample that are the queries where nothing is held out.

    Returns:
        Axes, size, and what goes with them.
    """
    gram_SS = _products(rows, rows)
    values_S, vectors_SS = torch.linalg.eigh(gram_SS)
    directions = _directions(values_S)
    choices = [replace(choice, width=min(choice.width, directions)) for choice in how.choices]
    mix_SK = _mix(values_S, vectors_SS, max(choice.width for choice in choices))
    sketched = [
        _sketched(part, how, max(choice.rest for choice in choices)) if how.slots else None for part in (held_out, rows)
    ]
    back_B, taught_T = _apart(len(gram_SS), held_back)
    unseen = members = None
    if len(held_out[0]):
        gram_HH, gram_HS = _products(held_out, held_out), _products(held_out, rows)
        unseen, members = held_out_trials(gram_HH, gram_HS, gram_SS, mix_SK, sketched, how.seed)
    elif len(back_B) and len(taught_T):
        members = held_back_trial(gram_SS, back_B, taught_T, how.seed)
    chosen = _chosen(choices, unseen, members, how.members)
    code = chosen.code
    turned_SK = mix_SK[:, : code.width] @ rotation(code.width, how.seed)
    few = slice(None, None, max(1, len(gram_SS) // _MEASURED))
    axes, axes_error = _rounded_axes(
        ((first, block_SM.T.to(_wide(block_SM)) @ turned_SK.to(_wide(block_SM)), block_SM[few]) for first, block_SM in _blocks(rows)),
        gram_SS[few] @ turned_SK, sum(row.shape[1] for row in rows), how.room(code), how.seed,
    )  # fmt: skip
    axes_error /= float(gram_SS.diagonal()[few].sum().sqrt().clamp_min(_TINY))
    outside_BS = gram_SS.new_zeros(0, len(gram_SS))
    if unseen is None and members is not None:
        outside_BS = gram_SS.new_zeros(len(back_B), len(gram_SS))
        # Rounded axes lose of a document's whole gradient, whatever of it lies along them.
        error_S = axes_error * gram_SS.diagonal().sqrt()
        outside_BS[:, taught_T] = members.scores(code, (error_S[back_B], error_S[taught_T]))
    rest_RK = None
    if code.rest and sketched[1] is not None:
        rest_RK = sketched[1][:, : code.rest].T.double() @ turned_SK * (how.slots / code.rest) ** 0.5
    return replace(chosen, axes=axes, rest_axes_RK=rest_RK, slots=how.slots, stand_ins=outside_BS)


def held_out_trials(
    gram_HH: Tensor, gram_HS: Tensor, gram_SS: Tensor, mix_SK: Tensor, sketched: Sequence[Tensor | None], seed: int
) -> tuple[Trial, Trial]:
    """Held-out documents as queries to each other, and to some of the sample.

    Args:
        gram_HH: Exact scores of held-out documents.
        gram_HS: Of them and the sample.
        gram_SS: Of the sample.
        mix_SK: What the sample is mixed to axes with.
        sketched: Sketches of held-out documents and of the sample; None without.
        seed: Of the rotation.
    """
    held_HR, rows_SR, axes_KR = _sketches(sketched, mix_SK)
    few = slice(None, None, max(1, len(gram_SS) // _MOST_JUDGED))
    queries, stored = Coded(gram_HS @ mix_SK, held_HR), Coded(gram_SS[few] @ mix_SK, rows_SR[few])
    return Trial(gram_HH, queries, queries, axes_KR, seed), Trial(gram_HS[:, few], queries, stored, axes_KR, seed)


def held_back_trial(gram_SS: Tensor, back_B: Tensor, taught_T: Tensor, seed: int) -> Trial:
    """Some documents of a sample as queries to the others, along axes that only the others taught: as a store's members are asked.

    Axes that a query has taught hold more of it, and of what others share with it, than those of a store will of a query: with half as many
    axes as documents correlations come out up to .15 too high.

    Args:
        gram_SS: Exact scores of the sample.
        back_B: Places of the queries.
        taught_T: Places of the others.
        seed: Of the rotation.
    """
    gram_TT, gram_BT = gram_SS[taught_T][:, taught_T], gram_SS[back_B][:, taught_T]
    values_T, vectors_TT = torch.linalg.eigh(gram_TT)
    mix_TK = _mix(values_T, vectors_TT, _directions(values_T))
    queries, stored = Coded(gram_BT @ mix_TK, _UNSKETCHED), Coded(gram_TT @ mix_TK, _UNSKETCHED)
    return Trial(gram_BT, queries, stored, _UNSKETCHED, seed, len(taught_T) / len(gram_SS))


def streamed_code(
    chunks: Chunks, examples: int, held_out: Sequence[Tensor], how: Choosing, device: torch.device
) -> LearnedCode:
    """The same from more documents than fit in memory: see `streamed_axes`.

    Args:
        chunks: Whitened coordinates of the sample, all units one after the other, twice the same.
        examples: In the sample.
        held_out: Per unit, shape (H, U), of documents that are stored and not in the sample.
        how: Sizes, room and seed; `members` plays no part, since so many documents leave no trace of their own in so few axes.
        device: Where the axes are found.
    """
    coordinates, width = sum(part.shape[1] for part in held_out), max(choice.width for choice in how.choices)
    axes_MK = streamed_axes(chunks, examples, coordinates, width, seed=how.seed, device=device).cpu()
    choices = [replace(choice, width=min(choice.width, axes_MK.shape[1])) for choice in how.choices]
    whole_HM = torch.cat(list(held_out), 1).to(axes_MK)
    held_HR, axes_KR = torch.zeros(len(whole_HM), 0), torch.zeros(axes_MK.shape[1], 0)
    if how.slots:
        mixtures = max(choice.rest for choice in choices)
        # Axes lie as rows do, one coordinate after the other.
        held_HR, axes_KR = (_sketched(part, how, mixtures) for part in (held_out, [axes_MK.T]))
    queries = Coded(whole_HM @ axes_MK, held_HR)
    chosen = _chosen(choices, Trial(_products(held_out, held_out), queries, queries, axes_KR, how.seed), None, 0.0)
    code = chosen.code
    turn_KK = rotation(code.width, how.seed).to(axes_MK)
    axes, _ = _rounded_axes(
        (
            (first, axes_MK[first : first + TURNED, : code.width] @ turn_KK, whole_HM[:, first : first + TURNED])
            for first in range(0, coordinates, TURNED)
        ),
        (queries.along_NK[:, : code.width] @ turn_KK).double(), coordinates, how.room(code), how.seed,
    )  # fmt: skip
    rest_RK = None
    if code.rest:
        rest_RK = axes_KR[: code.width, : code.rest].T.to(turn_KK) @ turn_KK * (how.slots / code.rest) ** 0.5
    return replace(chosen, axes=axes, rest_axes_RK=rest_RK, slots=how.slots)


def _chosen(choices: Sequence[Code], unseen: Trial | None, members: Trial | None, member_share: float) -> LearnedCode:
    """The best choice, without its axes yet; see `best_code`."""
    members = members if member_share > _FEW_MEMBERS else None
    if len(choices) == 1:  # what it is worth decides nothing but the share of a rest
        members = None
    judge = unseen or members
    code, share, expected = best_code(choices, unseen, members, member_share)
    judges = len(judge.exact_QN) if judge is not None and len(choices) > 1 else 0
    nothing = Axes(torch.zeros(0, 0), torch.zeros(0), 32, 0)
    return LearnedCode(nothing, code, None, 0, share, expected, judges, torch.zeros(0))


def _rounded_axes(
    blocks: Iterable[tuple[int, Tensor, Tensor]], exact_FK: Tensor, coordinates: int, most_bytes: int, seed: int
) -> tuple[Axes, float]:
    """Axes of all coordinates, rounded to the bits that fit, and the length of the error that the examples' codes have by that, together.

    Args:
        blocks: Place of the first of some coordinates, their axes (M, K), and what a few examples have there (F, M).
        exact_FK: Codes of these examples by the axes before rounding.
        coordinates: Of all blocks.
        most_bytes: Room.
        seed: Of the turning.
    """
    width = exact_FK.shape[1]
    bits = most_bits(coordinates, width, most_bytes)
    by_block, rounded_FK = [], torch.zeros_like(exact_FK)
    for first, axes_MK, few_FM in blocks:
        by_block.append(Axes.of(axes_MK, bits, first, seed=seed))
        if bits < 32:
            turned_FM = turn(few_FM.to(axes_MK), first, seed=seed)
            for chosen, numbers_MK in by_block[-1].blocks():
                rounded_FK += (turned_FM[:, chosen] @ numbers_MK.to(axes_MK)).double()
    # Rounding shortens axes, all by nearly the same factor.
    size = 1.0 if bits == 32 else float((rounded_FK * exact_FK).sum() / rounded_FK.square().sum().clamp_min(_TINY))
    scales_M = torch.cat([block.scales_M for block in by_block]) * size
    error = 0.0 if bits == 32 else float((rounded_FK * size - exact_FK).norm())
    return Axes(torch.cat([block.codes for block in by_block]), scales_M, bits, width), error


def _sketched(rows: Sequence[Tensor], how: Choosing, width_R: int) -> Tensor:
    """The first mixtures of rows' coordinates, shape (S, R), of all slots' gain: not made longer for those left out."""
    coordinates = sum(row.shape[1] for row in rows)
    sketch = Residual.sketch_of(coordinates, how.slots, how.slots, seed=how.seed, device=torch.device("cpu"))
    sketched_SR = torch.zeros(len(rows[0]), how.slots)
    for first, block_SM in _blocks(rows) if len(rows[0]) else ():
        turned_SM = turn(block_SM.to(_wide(block_SM)), first, seed=how.seed)
        sketched_SR = sketched_SR + _part(sketch, first, turned_SM.shape[1]).times(turned_SM)
    return sketched_SR[:, :width_R]


def _sketches(sketched: Sequence[Tensor | None], mix_SK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of held-out documents, of the sample's rows, and of the axes that these are mixed to, shape (K, R)."""
    held_HR, rows_SR = sketched
    if held_HR is None or rows_SR is None:
        return _UNSKETCHED, _UNSKETCHED, torch.zeros(mix_SK.shape[1], 0)
    return held_HR, rows_SR, mix_SK.T.to(rows_SR) @ rows_SR


def _part(sketch: SparseSketch, first: int, size: int) -> SparseSketch:
    return SparseSketch(sketch.slots_N[first : first + size], sketch.signs_N[first : first + size], sketch.width_K)


def _wide(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def _mix(values_S: Tensor, vectors_SS: Tensor, width_K: int) -> Tensor:
    """What the Gram matrix, and the rows, are multiplied with: axes of unit length, largest first, shape (S, K)."""
    values_K, vectors_SK = values_S.flip(0)[:width_K], vectors_SS.flip(1)[:, :width_K]
    # The sign of an eigenvector is free: make its largest entry positive, so that runs agree.
    largest_1K = vectors_SK.gather(0, vectors_SK.abs().argmax(0, keepdim=True))
    vectors_SK = vectors_SK * torch.where(largest_1K < 0, -1.0, 1.0)
    return vectors_SK / values_K.clamp_min(_TINY).sqrt()


def _directions(values_S: Tensor) -> int:
    """Of a Gram matrix with these eigenvalues."""
    return max(1, int((values_S > values_S[-1] * _NOISE).sum()))


def _apart(count: int, held_back: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Places that are held back, and the others."""
    is_back = torch.zeros(count, dtype=torch.bool)
    is_back[list(held_back)] = True
    return is_back.nonzero()[:, 0], (~is_back).nonzero()[:, 0]


def _blocks(rows: Sequence[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """All units' coordinates one after the other, cut where `turn` does.

    Yields:
        The place of the first, and the coordinates (S, at most TURNED).
    """
    widths = [row.shape[1] for row in rows]
    ends = [sum(widths[: index + 1]) for index in range(len(widths))]
    for first in range(0, ends[-1], TURNED):
        cuts = [
            row[:, max(0, first - end + width) : max(0, first + TURNED - end + width)]
            for row, width, end in zip(rows, widths, ends, strict=True)
            if end > first and end - width < first + TURNED
        ]
        yield first, torch.cat(cuts, 1)


def _products(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Inner products of rows over all units, in blocks of coordinates: each in the rows' own precision, their sum in float64."""
    products_AB = torch.zeros(len(some[0]), len(others[0]), dtype=torch.float64)
    for left_AU, right_BU in zip(some, others, strict=True):
        for start in range(0, left_AU.shape[1], 1 << 14):
            chosen = slice(start, start + (1 << 14))
            wide = _wide(left_AU)
            products_AB += (left_AU[:, chosen].to(wide) @ right_BU[:, chosen].to(wide).T).double().cpu()
    return products_AB
