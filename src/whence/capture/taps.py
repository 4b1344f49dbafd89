"""Taps on layers: what sees a layer's inputs and the gradients of its outputs, example by example.

Axes: R inputs that the model sees.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whence.capture.tables import bias_method, rows_looked_up
from whence.capture.units import LayerUse, Plan, Route
from whence.errors import Unsupported
from whence.records import Pair

__all__ = ["Consume", "TapMode", "taps", "way_out_of"]

Consume = Callable[[int, Pair], None]
"""Takes the index of a unit and one pair of it, at once: pairs are not kept."""


class _Tap(torch.autograd.Function):
    """Identity on a layer's output; its backward step hands (input, output gradient) to `emit`."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, anchor: Tensor, inputs: Tensor, emit: Callable[[Tensor, Tensor], None], copies: bool
    ) -> Tensor:
        ctx.emit = emit
        ctx.save_for_backward(inputs)
        return output.clone() if copies else output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.emit(inputs, grad)
        return (grad if ctx.needs_input_grad[0] else None), None, None, None, None


@dataclass
class TapMode:
    """How taps are put in, and what they have met.

    Args:
        copies: Whether each is put on a copy of the layer's output, which models may then change in place.
        scale: What gradients are multiplied with before they are handed out.
        has_twin: Whether units whose layers do not keep the examples apart are left to the functional twin, instead of being an error.
        odd: These units, by index, with the layer; complete when the forward pass is over.
        repeated: The last layer whose one row was taken as shared by all examples.
        unknown: Names of layers of which it cannot be told which rows of their table they give.
    """

    copies: bool = False
    scale: float = 1.0
    has_twin: bool = False
    odd: dict[int, LayerUse] = field(default_factory=dict)
    repeated: LayerUse | None = None
    unknown: set[str] = field(default_factory=set)


@contextmanager
def taps(
    plan: Plan, consume: Consume, num_examples: int, device: torch.device, *, rows: int | None = None
) -> Iterator[TapMode]:
    """Taps on the layers of a plan, for a forward and a backward pass of whoever runs one meanwhile.

    The passes compute what they would without, weights that are trained among them.

    Args:
        plan: The units.
        consume: As in `capture`.
        num_examples: Examples in the batch that is run.
        device: Where pairs are handed out.
        rows: Inputs that the model sees, several for an example; None for one each.

    Yields:
        What can be changed about the taps.
    """
    # The anchor makes every tap part of the graph, even the first one, whose layer sees nothing that needs a gradient.
    anchor = torch.zeros((), device=device, requires_grad=True)
    mode = TapMode()
    counts = (num_examples, rows or num_examples)
    with ExitStack() as stack:
        for layer in plan.layers:
            if layer.units <= plan.route.twin:
                continue
            tap = _Tapping(layer, plan, consume, counts, anchor, mode, device)
            if layer.owner is not None:
                stack.enter_context(_method_tapped(tap))
            else:
                handle = layer.module.register_forward_hook(_hook(tap), with_kwargs=True)
                stack.callback(handle.remove)
        yield mode


@dataclass(frozen=True)
class _Tapping:
    """What puts taps on one layer's outputs.

    Args:
        layer: The layer.
        plan: The units.
        consume: Who takes the pairs.
        counts: Examples, and inputs that the model sees.
        anchor: What makes the first tap part of the graph.
        mode: How taps are put in.
        device: Where pairs are handed out.
    """

    layer: LayerUse
    plan: Plan
    consume: Consume
    counts: tuple[int, int]
    anchor: Tensor
    mode: TapMode
    device: torch.device

    def odd(self, *, is_unknown: bool = False) -> None:
        """Leave the layer's units to the twin, or to an error, which says so where it is not known which rows are given."""
        self.mode.unknown.update([self.layer.name] if is_unknown else [])
        self.mode.odd.update(dict.fromkeys(self.layer.units, self.layer))

    def put(self, inputs: Tensor, output: Tensor) -> Tensor | None:
        """A tap on an output; None where there is none to be.

        Args:
            inputs: What the layer saw, or the ids of the rows that it looked up.
            output: What it gave.
        """
        layer, mode, route, (num_examples, rows) = self.layer, self.mode, self.plan.route, self.counts
        if layer.rule.looks_up and inputs.ndim == 1:
            route.flat.add(layer.name)
        use = "bare" if layer.name in route.bare and num_examples > 1 else _use_of(layer, inputs, output, num_examples, rows)
        if not _is_known(route, layer, use, num_examples):
            self.odd()
        if not torch.is_grad_enabled():  # the first, recording-free pass of reentrant checkpointing
            return None
        if use == "none" or (mode.has_twin and layer.units <= mode.odd.keys()):
            return None
        if use in ("shared", "bare") and not layer.units & mode.odd.keys():
            mode.repeated = layer
            if use == "bare":
                inputs, output = inputs[None], output[None]
                if not route.is_checked:
                    route.bare.add(layer.name)
            # A position embedding runs once for the whole batch: expanded before the tap, each example gets its own gradient.
            output = output.expand(rows, *output.shape[1:])
        return _Tap.apply(output, self.anchor, inputs, self.emit, mode.copies)

    def emit(self, inputs: Tensor, grad: Tensor) -> None:
        """Hand out the pairs of one tap.

        Raises:
            Unsupported: If a layer does not keep the examples apart and no twin makes its gradients.
        """
        layer, mode, (num_examples, rows) = self.layer, self.mode, self.counts
        # A model may be spread over devices; what is made of the pairs is in one place.
        inputs, grad = inputs.to(self.device), grad.to(self.device)
        if mode.scale != 1.0:
            grad = grad * mode.scale
        for unit in layer.units & mode.odd.keys() if not mode.has_twin else ():
            other = mode.odd[unit]
            if other.name in mode.unknown:
                raise Unsupported(
                    found=f"layer {other.name!r}, of which it cannot be told which rows of its table it gives",
                    needed="rows as they lie in the table, which is whole in one place",
                    do=way_out_of(other),
                )
            raise Unsupported(
                found=f"layer {other.name!r} with {len(grad) if other is layer else 'other'} leading entries for a batch of {num_examples} "
                f"examples{', unlike in the check of two' if self.plan.route.is_checked else ''}",
                needed="the same number of entries for every example",
                do=way_out_of(other),
            )
        inputs, grad = (_per_example(layer, values, num_examples, rows) for values in (inputs, grad))
        joined = layer.bias_unit == layer.weight_unit
        self._hand_out(layer.weight_unit, lambda: layer.rule.weight(layer.module, inputs, grad, joined))
        if not joined:
            self._hand_out(layer.bias_unit, lambda: layer.rule.bias(layer.module, grad))

    def _hand_out(self, unit: int | None, make: Callable[[], Pair]) -> None:
        if unit is not None and unit not in self.mode.odd and unit not in self.plan.route.twin:
            self.consume(unit, make().folded(self.counts[0]))


def _hook(tap: _Tapping):
    """A tap on what a layer gives whenever it is called."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        inputs = args[0] if args else next(iter(kwargs.values()))
        if tap.layer.rule.finds_ids:
            is_one = isinstance(output, Tensor)
            forward = type(module).forward
            ids = rows_looked_up(module, lambda: forward(module, *args, **kwargs), output, -1) if is_one else None
            if ids is None:
                tap.odd(is_unknown=True)
            if not is_one:
                return None
            inputs = output if ids is None else ids
        return tap.put(inputs, output)

    return hook


@contextmanager
def _method_tapped(tap: _Tapping) -> Iterator[None]:
    """A tap on what an attention layer makes of a table of distances, (1 or B, ..., heads, queries, keys), instead of on what it looks up.

    Yields:
        Nothing.
    """
    owner, table, name = tap.layer.owner, tap.layer.module, bias_method(tap.layer.owner)
    plain, own = getattr(owner, name), vars(owner).get(name)

    def tapped(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        is_known = isinstance(output, Tensor) and output.ndim > 3 and output.shape[-3] == table.embedding_dim
        ids = rows_looked_up(table, lambda: plain(*args, **kwargs), output, -3) if is_known else None
        if ids is not None:
            watched = tap.put(ids, output.movedim(-3, -1))
            return output if watched is None else watched.movedim(-1, -3)
        tap.odd(is_unknown=True)
        watched = tap.put(output, output) if isinstance(output, Tensor) else None
        return output if watched is None else watched

    vars(owner)[name] = tapped
    try:
        yield
    finally:
        if own is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = own


def _use_of(layer: LayerUse, inputs: Tensor, output: Tensor, num_examples: int, num_rows: int) -> str:
    """How the rows of a layer's output belong to the examples of a batch; "odd" if they cannot be told apart.

    Ids of one axis that is not that of the examples are "bare": `table(torch.arange(length))`.
    """
    rows = len(output) if output.ndim >= layer.rule.fewest_axes else -1
    if rows == 1 < num_rows:
        return "shared"
    if rows in (0, num_examples, num_rows):
        return "own" if rows else "none"
    if rows > 0 and rows % num_examples == 0:
        return "folded"
    return "bare" if layer.rule.looks_up and inputs.ndim == 1 and rows > 0 else "odd"


def _is_known(route: Route, layer: LayerUse, use: str, num_examples: int) -> bool:
    """Whether the check has seen a layer used so; before and in the check, whether it could be right.

    What a layer is given may depend on the data, as with the experts of a mixture, and by chance look like something else.
    """
    if use in ("none", "odd") or num_examples == 1:
        return use != "odd"
    seen = route.uses.setdefault(layer.name, set())
    if not route.is_checked:
        seen.add(use)
    return use in seen or (use == "own" and "folded" in seen)


def _per_example(layer: LayerUse, values: Tensor, num_examples: int, num_rows: int) -> Tensor:
    """The same values with one leading entry per example, or, for layers whose positions are not leading axes, several.

    A model that folds (B, T) into one axis keeps the positions of an example together; the check before a build proves it.
    """
    rows = values.shape[0]
    if rows == 1 < num_rows:
        values, rows = values.expand(num_rows, *values.shape[1:]), num_rows
    if rows == num_examples:
        return values
    # A convolution's positions are not leading axes: its pair is folded instead.
    return values.reshape(num_examples, rows // num_examples, *values.shape[1:]) if layer.rule.foldable else values


def way_out_of(layer: LayerUse) -> str:
    """What lets the twin make a layer's gradients, or leaves them out, for errors."""
    names = f"'{layer.name}.*'"
    return (
        f"pass functional=True, or {names} in functional beside what is there, as for an expert of a mixture, which is given some of the "
        f"positions; or leave its parameters out with ignore=[{names}]"
    )
