"""Curvature matrices that are never formed: their products with many vectors at once.

Each matrix is the mean over examples of a per-example one:

    Gauss-Newton       J^T H J      J the Jacobian of the outputs, H the Hessian of the loss by them (Schraudolph 2002)
    Hessian            second derivative of the loss (Pearlmutter 1994)
    empirical Fisher   g g^T        g the gradient of the loss

Axes: Q vectors, B examples of a batch, M scored rows, C outputs per row, T positions, O x I a unit's matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from whence.capture import (
    Blocks,
    Plan,
    as_blocks,
    as_parameters,
    forward_mode,
    in_halves,
    is_out_of_memory,
    pulled,
    with_weights,
)
from whence.curvature.rows import gradient_pairs, unit_rows
from whence.curvature.vectors import flatten, split
from whence.data import Example, batches
from whence.distributed import Ranks
from whence.errors import BadInput, NonFinite, UnknownOption, Unsupported, WhenceError
from whence.sharded_weights import is_sharded
from whence.tasks import AbstractTask, Outputs

__all__ = ["Curvature", "Kind"]

Kind = Literal["gauss_newton", "hessian", "empirical_fisher"]
Parameters = dict[str, Tensor]

# Positions times vectors worked on at once. On a processor more than fits in its cache costs three times as much per vector
# (measured on GPT-2 of width 96); a device wants to be filled.
_AT_ONCE = {"cpu": 4096, "cuda": 65536}
# Numbers in one tensor of output tangents, (Q, M, C).
_NUMBERS = {"cpu": 1 << 23, "cuda": 1 << 28}


@dataclass(frozen=True)
class Curvature:
    """A curvature matrix of the mean loss over some examples, at the model's weights, in evaluation mode.

    Only the plan's parameters are differentiated. Undamped: solvers add damping.

    Args:
        task: Model and loss.
        plan: Its units.
        examples: What the mean is over.
        kind: Which matrix. The Gauss-Newton matrix equals the Fisher information; it and the empirical Fisher have no negative eigenvalues.
        max_positions: Positions per batch. The forward pass is shared by all vectors.
        ranks: Connected processes that hold the same examples and vectors: each walks its part of the examples, and every product is put
            together with one sum over ranks, the same bits on all of them.

    Raises:
        UnknownOption: If there is no such kind.
        Unsupported: If the weights are of less than single precision.
    """

    task: AbstractTask
    plan: Plan
    examples: Sequence[Example]
    kind: Kind = "gauss_newton"
    max_positions: int = 256
    ranks: Ranks = Ranks()

    def __post_init__(self):
        if self.kind not in _PRODUCTS:
            raise UnknownOption(found=f"kind={self.kind!r}", needed=f"one of: {', '.join(_PRODUCTS)}", do="pick one")
        dtypes = {p.dtype.to_real() for name, p in self.task.model.named_parameters() if name in self.task.tracked}
        if not dtypes <= {torch.float32, torch.float64}:
            raise Unsupported(
                found=f"weights of type {', '.join(sorted(map(str, dtypes)))}",
                needed="float32 or float64: second derivatives drown in the rounding of shorter types",
                do="load the model in float32",
            )

    def __len__(self) -> int:
        return len(self.examples)

    def zeros(self, count: int) -> Blocks:
        """Zero vectors, per unit (count, O, I), in the weights' type."""
        weights = _weights(self)
        units = [(unit, weights[unit.name]) for unit in self.plan.units]
        return [like.new_zeros(count, unit.outputs, unit.inputs, dtype=like.dtype.to_real()) for unit, like in units]

    def times(self, blocks: Blocks, chosen: Sequence[int] | None = None) -> Blocks:
        """The mean of the chosen examples' matrices applied to every vector.

        Args:
            blocks: The vectors, per unit (Q, O, I), in the weights' type.
            chosen: Which examples, repeats allowed; None takes all.

        Returns:
            Blocks of the same shapes.

        Raises:
            BadInput: If the blocks are not shaped like the plan's units, or not the same on all ranks.
            NonFinite: If outputs or a product are NaN or infinite, naming the example or the unit.
        """
        self._check(blocks)
        examples = self.examples if chosen is None else [self.examples[index] for index in chosen]
        total = self.summed(lambda some: _PRODUCTS[self.kind](self, some, blocks), blocks, examples)
        for unit, block in zip(self.plan.units, total, strict=True):
            block /= len(examples)
            if not bool(torch.isfinite(block).all()):
                raise NonFinite(
                    found=f"a NaN or infinite product of the {self.kind} matrix in {unit.name!r}",
                    needed="finite products",
                    do="check that the vectors are finite and the weights not so large that derivatives overflow",
                )
        return total

    def summed(self, run: Callable[[Sequence[Example]], Blocks], blocks: Blocks, examples: Sequence[Example]) -> Blocks:
        """What something gives for a batch, added up over batches and ranks.

        Args:
            run: Makes a batch's blocks.
            blocks: Vectors that it depends on, of the shapes that it makes.
            examples: All of them, of which each rank walks a part.

        Returns:
            The sums.

        Raises:
            BadInput: If the vectors are not the same on all ranks.
        """
        self.ranks.check_alike(blocks, "vectors to be multiplied")
        total = [torch.zeros_like(block) for block in blocks]
        mine = [examples[index] for index in self.ranks.balanced([example.length for example in examples])]
        for batch in batches([example.length for example in mine], max_positions=self.max_positions):
            for part in in_halves(batch, lambda items: run([mine[item] for item in items]), self.task.model):
                for block, more in zip(total, part, strict=True):
                    block += more
        return split(self.ranks.added_up({"sums": flatten(total)})["sums"], total) if self.ranks.count > 1 else total

    def _check(self, blocks: Blocks) -> None:
        shapes = [tuple(block.shape) for block in blocks]
        count = shapes[0][0] if shapes and shapes[0] else 0
        needed = [(count, unit.outputs, unit.inputs) for unit in self.plan.units]
        if shapes != needed:
            raise BadInput(
                found=f"{len(shapes)} blocks of shapes {_few(shapes)}",
                needed=f"{len(needed)} of shapes {_few([('Q', *shape[1:]) for shape in needed])}, one per unit of the plan",
                do="make the vectors with the same plan",
            )


def _gauss_newton(operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> Blocks:
    model, weights, batch = operator.task.model, _weights(operator), operator.task.collate(examples)
    outputs_seen: list[Outputs] = []

    def values(chosen: Parameters) -> Tensor:
        outputs_seen.append(with_weights(model, chosen, lambda: operator.task.outputs(model, batch)))
        return outputs_seen[-1].values_MC

    def push(vector: Parameters) -> Tensor:
        return jvp(values, (weights,), (vector,))[1]

    values_MC, pull, *_ = vjp(values, weights)
    outputs = replace(outputs_seen[0], values_MC=values_MC.detach())
    _check_finite(outputs, examples)
    products = []
    for vectors in _chunks(operator, blocks, examples, outputs):
        cotangents_QMC = outputs.hessian_times(vmap(push)(vectors))
        products.append(as_blocks(operator.plan, vmap(pull)(cotangents_QMC)[0]))
    return [torch.cat(parts) for parts in zip(*products, strict=True)]


def _gauss_newton_backwards(operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> Blocks:
    """J v is the derivative of J^T u by u, applied to v: a second pass back where there is none forward."""

    def run(leaves: Parameters) -> Iterator[Blocks]:
        attached = operator.task.outputs(operator.task.model, operator.task.collate(examples))
        outputs = replace(attached, values_MC=attached.values_MC.detach())
        _check_finite(outputs, examples)
        dual_MC = torch.zeros_like(outputs.values_MC).requires_grad_()
        back = torch.autograd.grad(attached.values_MC, [*leaves.values()], dual_MC, create_graph=True, allow_unused=True)
        reached = {name: gradient for name, gradient in zip(leaves, back, strict=True) if gradient is not None}
        for vectors in _chunks(operator, blocks, examples, outputs):
            count = len(next(iter(vectors.values())))
            (tangents_QMC,) = pulled([*reached.values()], [dual_MC], [vectors[name] for name in reached], count)
            assert tangents_QMC is not None
            cotangents_QMC = outputs.hessian_times(tangents_QMC)
            rows = pulled([attached.values_MC], [*leaves.values()], [cotangents_QMC], count)
            yield _written_out(operator, leaves, rows, count)

    return _with_leaves(operator, run)


def _hessian(operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> Blocks:
    model, weights, batch = operator.task.model, _weights(operator), operator.task.collate(examples)

    def loss(chosen: Parameters) -> Tensor:
        outputs = with_weights(model, chosen, lambda: operator.task.outputs(model, batch))
        return outputs.losses(len(examples)).sum()

    def times(vector: Parameters) -> Parameters:
        return jvp(grad(loss), (weights,), (vector,))[1]

    outputs = operator.task.outputs(model, batch)
    _check_finite(outputs, examples)
    products = [as_blocks(operator.plan, vmap(times)(vectors)) for vectors in _chunks(operator, blocks, examples, outputs)]
    return [torch.cat(parts) for parts in zip(*products, strict=True)]


def _hessian_backwards(operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> Blocks:
    """The derivative of the gradient, by a second pass back."""

    def run(leaves: Parameters) -> Iterator[Blocks]:
        outputs = operator.task.outputs(operator.task.model, operator.task.collate(examples))
        _check_finite(outputs, examples)
        loss = outputs.losses(len(examples)).sum()
        slopes = torch.autograd.grad(loss, [*leaves.values()], create_graph=True, allow_unused=True)
        # A constant slope has no derivative: that of a parameter which the loss is linear in.
        curved = {name: slope for name, slope in zip(leaves, slopes, strict=True) if slope is not None and slope.requires_grad}
        for vectors in _chunks(operator, blocks, examples, outputs):
            count = len(next(iter(vectors.values())))
            rows = pulled([*curved.values()], [*leaves.values()], [vectors[name] for name in curved], count)
            yield _written_out(operator, leaves, rows, count)

    return _with_leaves(operator, run)


def _through_model(
    forwards: "Product", backwards: "Product", operator: Curvature, examples: Sequence[Example], blocks: Blocks
) -> Blocks:
    """Products by tangents that run forward, several side by side; where the model has none, by passes back through passes back.

    Raises:
        Unsupported: If the model has neither.
        error: Whatever is wrong with the outputs.
    """
    first: Exception | None = None
    for product in [forwards] * operator.plan.route.has_tangents + [backwards]:
        try:
            with _differentiable(operator):
                products = product(operator, examples, blocks)
        except Exception as error:
            if is_out_of_memory(error) or (isinstance(error, WhenceError) and not isinstance(error, Unsupported)):
                raise error
            first = first or error
        else:
            operator.plan.route.has_tangents = product is forwards
            if product is forwards and not _agree(forwards, backwards, operator, examples, blocks):
                operator.plan.route.has_tangents = False
                with _differentiable(operator):
                    products = backwards(operator, examples, blocks)
            return products
    assert first is not None
    if isinstance(first, Unsupported):
        raise first
    raise Unsupported(**_closed(operator, first)) from first


def _agree(forwards: "Product", backwards: "Product", operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> bool:
    """Whether tangents go where gradients come from, looked at once: forwards they pass `torch.no_grad()`, backwards nothing does."""
    route = operator.plan.route
    if route.are_tangents_known or is_sharded(operator.task.model):
        return True
    vectors = [block[:1] for block in blocks]
    try:
        with _differentiable(operator):
            by_forwards, by_backwards = (product(operator, examples[:1], vectors) for product in (forwards, backwards))
    except Exception as error:  # no second derivatives to hold them against
        if is_out_of_memory(error):
            raise
        return True
    apart, size = (
        torch.cat([block.flatten() for block in part]).double().norm()
        for part in ([a - b for a, b in zip(by_forwards, by_backwards, strict=True)], by_backwards)
    )
    route.are_tangents_known = bool(size > 0)
    return bool(apart <= (1e-6 if blocks[0].dtype == torch.float64 else 1e-2) * size)


def _empirical_fisher(operator: Curvature, examples: Sequence[Example], blocks: Blocks) -> Blocks:
    """Through the layers' gradient pairs, which all vectors share: no derivative per vector."""
    pairs = gradient_pairs(operator.task, operator.plan, examples)
    inner_QB = blocks[0].new_zeros(len(blocks[0]), len(examples))
    for index, block_QOI in enumerate(blocks):
        for chosen, rows_BOI in unit_rows(pairs[index]):
            inner_QB[:, chosen] += block_QOI.flatten(1) @ rows_BOI.to(block_QOI.dtype).flatten(1).T
    total = [torch.zeros_like(block) for block in blocks]
    for index, block_QOI in enumerate(total):
        for chosen, rows_BOI in unit_rows(pairs[index]):
            block_QOI.flatten(1).addmm_(inner_QB[:, chosen], rows_BOI.to(block_QOI.dtype).flatten(1))
    return total


Product = Callable[[Curvature, Sequence[Example], Blocks], Blocks]
_PRODUCTS: dict[str, Product] = {
    "gauss_newton": partial(_through_model, _gauss_newton, _gauss_newton_backwards),
    "hessian": partial(_through_model, _hessian, _hessian_backwards),
    "empirical_fisher": _empirical_fisher,
}


def _weights(operator: Curvature) -> Parameters:
    values = dict(operator.task.model.named_parameters())
    return {name: values[name].detach() for unit in operator.plan.units for name in unit.parameters}


def _with_leaves(operator: Curvature, run: Callable[[Parameters], Iterator[Blocks]]) -> Blocks:
    """What `run` gives part by part, for a model with weights that autograd follows."""
    leaves = {name: value.clone().requires_grad_() for name, value in _weights(operator).items()}
    with torch.enable_grad():
        results = with_weights(operator.task.model, leaves, lambda: list(run(leaves)))
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


def _written_out(operator: Curvature, leaves: Parameters, rows: Sequence[Tensor | None], count: int) -> Blocks:
    pairs = zip(leaves.items(), rows, strict=True)
    return as_blocks(
        operator.plan,
        {name: leaf.new_zeros(count, *leaf.shape) if row is None else row.detach() for (name, leaf), row in pairs},
    )


def _differentiable(operator: Curvature) -> AbstractContextManager[None]:
    reference = _closed(operator, None)
    return forward_mode(
        operator.task.model, purpose=f"the {operator.kind} matrix", needed=reference["needed"], do=reference["do"]
    )


def _closed(operator: Curvature, error: Exception | None) -> dict[str, str]:
    first_line = (str(error).splitlines() or [""])[0]
    return {
        "found": f"a model that the {operator.kind} matrix cannot go through: {first_line or type(error).__name__}",
        "needed": "operations with forward-mode derivatives that run side by side under torch.func.vmap, or else with second derivatives",
        "do": "switch off gradient checkpointing and custom kernels, or take a method that needs gradients only, such as ekfac "
        "(in whence.curvature.Curvature: kind='empirical_fisher')",
    }


def _chunks(operator: Curvature, blocks: Blocks, examples: Sequence[Example], outputs: Outputs) -> Iterator[Parameters]:
    device = operator.task.device.type
    positions = len(examples) * max(example.length for example in examples)
    at_once, numbers = (table.get(device, table["cuda"]) for table in (_AT_ONCE, _NUMBERS))
    step = max(1, min(at_once // positions, numbers // max(1, outputs.values_MC.numel())))
    for start in range(0, len(blocks[0]), step):
        yield as_parameters(operator.plan, operator.task.model, [block[start : start + step] for block in blocks])


def _check_finite(outputs: Outputs, examples: Sequence[Example]) -> None:
    bad_M = ~torch.isfinite(outputs.values_MC).all(1)
    if bool(bad_M.any()):
        owner = int(outputs.owners_M[bad_M][0])
        raise NonFinite(
            found=f"NaN or infinite outputs for the example {examples[owner].id!r}",
            needed="finite outputs",
            do="check this example and the model's weights",
        )


def _few(shapes: Sequence[tuple]) -> str:
    more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
    return ", ".join(str(shape).replace("'", "") for shape in shapes[:3]) + more
