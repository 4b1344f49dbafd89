"""DataInf: the inverse of a mean taken as the mean of inverses, in closed form from per-example gradients.

Axes: Q queries, B examples of a batch, O x I a unit's matrix.
"""

from collections.abc import Sequence

import torch

from whence.capture import Blocks, in_halves
from whence.curvature import Curvature, Damped, gradient_pairs, unit_rows
from whence.data import batches
from whence.errors import BadInput
from whence.solve.low_rank import apply_inverse
from whence.solve.solution import Solution, check_right_sides

__all__ = ["solve_datainf"]


def solve_datainf(operator: Curvature, right: Blocks, damping: Sequence[float]) -> Solution:
    """Per unit (1/N) sum of (g g^T + damping)^-1 b, over the gradients g of N examples.

    Kwon et al. 2024, by Sherman and Morrison: b / damping - sum of g (g . b) / (damping + |g|^2) / (N damping). One pass over the
    examples. It is the inverse of the Fisher only where all gradients agree or the damping is large against them; its authors mean it for
    adapters of low rank. The residual is that of (F + damping) x = b with the whole empirical Fisher F, units together.

    Args:
        operator: The empirical Fisher.
        right: b, per unit (Q, O, I).
        damping: One positive number per unit; theirs is a tenth of the mean of |g|^2 over the unit's size.

    Returns:
        The solution, without history.

    Raises:
        BadInput: If the matrix is not the empirical Fisher or a damping is zero.
    """
    if operator.kind != "empirical_fisher" or not min(Damped(operator, damping).damping) > 0:
        raise BadInput(
            found=f"the {operator.kind} matrix with a smallest damping of {min(damping):g}",
            needed="the empirical Fisher and positive damping",
            do="make the matrix with kind='empirical_fisher' and damp each unit",
        )
    check_right_sides(operator, right)

    def inverse(blocks: Blocks) -> Blocks:
        def run(items: Sequence[int]) -> Blocks:
            examples = [operator.examples[item] for item in items]
            pairs = gradient_pairs(operator.task, operator.plan, examples)
            total = [torch.zeros_like(block) for block in blocks]
            for index, (block, value) in enumerate(zip(blocks, damping, strict=True)):
                for _, rows_BOI in unit_rows(pairs[index]):
                    rows_BD = rows_BOI.to(block.dtype).flatten(1)
                    weights_QB = (block.flatten(1) @ rows_BD.T) / (value + rows_BD.square().sum(1))
                    total[index].flatten(1).addmm_(weights_QB, rows_BD)
            return total

        found = [block.clone() for block in blocks]
        lengths = [example.length for example in operator.examples]
        for batch in batches(lengths, max_positions=operator.max_positions):
            for part in in_halves(batch, run, operator.task.model):
                found = [block - more / len(operator) for block, more in zip(found, part, strict=True)]
        return [block / value for block, value in zip(found, damping, strict=True)]

    return apply_inverse(inverse, operator, right, damping, spent=1.0)
