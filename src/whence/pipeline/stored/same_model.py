"""Whether a task's model is the one that a store's rows were made with, and not only of the same weights.

A store keeps the inputs of two of its examples and what the model gave for them. Whoever opens it with a model has them run again, and their
rows made again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from whence.capture import ModelRecord, Objective, Plan, Probe, check_model, probe_examples, probed
from whence.compress import Encoder
from whence.data import Example
from whence.errors import StoreCorrupt, StoreMismatch
from whence.methods import Method, method_named
from whence.pipeline.inputs import autocast_named
from whence.store import Blueprint, Store, row_now
from whence.strict_json import parse_json
from whence.tasks import AbstractTask, Batch, structure_of

__all__ = ["PROBE_FILE", "TEXT_TASKS", "check_store_model", "objective_of", "probe_file", "probe_tensors", "remade"]

PROBE_FILE = "probe.safetensors"
# Inputs of examples that are larger are not kept.
_MOST_BYTES = 64 << 20
# A row made again may be so many times as far from the stored one as its own code is, and besides by as much as arithmetic rounds.
_TIMES, _HALF, _WHOLE = 2.0, 0.3, 1e-2
_TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
TEXT_TASKS = ("causal_lm",)
"""Kinds of tasks whose examples are made of their text alone."""
_WITHOUT = "the store keeps no inputs of an example, so that only weights, settings and data were compared, not what the model computes"
# What a model or a task raises when it is given what it cannot take.
_CANNOT_RUN = (RuntimeError, IndexError, KeyError, TypeError, ValueError, AttributeError)


def objective_of(method: Method) -> Objective:
    """What the rows of a method are gradients of."""
    return "negated output" if method.objective == "output" else "loss"


def probe_tensors(
    task: AbstractTask, plan: Plan, blueprint: Blueprint, examples: Sequence[Example], *, has_rows: bool = True
) -> dict[str, Tensor]:
    """What a store keeps to tell its model from others.

    Args:
        task: The model.
        plan: Its units.
        blueprint: What the rows are.
        examples: All of the store's, in the order of its rows.
        has_rows: Whether the rows are gradients at the model's present weights.

    Returns:
        The tensors of the file; none if the inputs are too large, or not made of tensors, numbers and texts.
    """
    indices = probe_examples(examples)
    batches = [task.collate([examples[chosen]]) for chosen in indices]
    tensors: dict[str, Tensor] = {}
    try:
        trees = [_packed(batch, f"inputs.{number}", tensors, task.device) for number, batch in enumerate(batches)]
    except TypeError:
        return {}
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > _MOST_BYTES:
        return {}
    probe = probed(
        task, plan, batches, [examples[chosen].id for chosen in indices],
        objective=objective_of(method_named(blueprint.method)), autocast=autocast_named(blueprint.autocast),
    )  # fmt: skip
    if not probe.is_finite:
        return {}
    # Units that the check before the build had made in a slower way are made so again: which they are is not seen on every example.
    twin = sorted(plan.units[index].name for index in plan.route.twin)
    about = {"probe": asdict(probe), "inputs": trees, "rows": indices if has_rows else None, **({"twin": twin} if twin else {})}
    return {"about": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8), **tensors}


def check_store_model(
    task: AbstractTask,
    plan: Plan,
    encoder: Encoder,
    blueprint: Blueprint,
    tensors: Mapping[str, Tensor] | None,
    *,
    store: Store | None = None,
) -> list[str]:
    """Refuse a model that has the weights of a store's and computes something else.

    Args:
        task: The model, of which weights and preprocessing are known to be the store's.
        plan: Its units.
        encoder: What made the rows.
        blueprint: The store's.
        tensors: What it keeps of its model, see `probe_tensors`; None if it keeps nothing.
        store: The store, whose rows are made again; None while it is not finished.

    Returns:
        What a reader should know of what could not be compared.

    Raises:
        StoreCorrupt: If what it keeps cannot be read.
        StoreMismatch: If it is another model, saying what differs.
    """
    if blueprint.structure is None:
        is_checked = store is not None and _row_of_text(task, plan, encoder, store)
        compared = "weights and data, and a row made again from its text," if is_checked else "weights and data"
        return [f"the store was built before it was recorded what the model computes: only {compared} were compared"]
    stored_probe, own_probe, remade_rows, rows, notes = None, None, [], None, [_WITHOUT]
    if tensors is not None:
        stored_probe, rows, batches, twin = _read(tensors, task.device)
        plan.route.twin |= {index for index, unit in enumerate(plan.units) if plan.route.has_twin and unit.name in twin}
        own_probe, remade_rows, notes = _again(task, plan, encoder, blueprint, stored_probe, batches)
    record = ModelRecord(blueprint.structure, None if own_probe is None else stored_probe)
    notes += check_model(record, ModelRecord(structure_of(task.model), own_probe), "a store")
    if store is not None and stored_probe is not None and own_probe is not None and rows is not None:
        rows_left = [row_now(store, built) for built in rows]
        _check_rows(store, rows_left, stored_probe.examples, remade_rows, _rounding(stored_probe, own_probe))
    return notes


def probe_file(store: Store) -> dict[str, Tensor] | None:
    """What a store keeps of its model; None if it keeps nothing."""
    return dict(store.file(PROBE_FILE)) if PROBE_FILE in store.files else None


def _again(
    task: AbstractTask, plan: Plan, encoder: Encoder, blueprint: Blueprint, stored_probe: Probe, batches: Sequence[Batch]
) -> tuple[Probe | None, list[list[Tensor]], list[str]]:
    """The probe of the model at hand, None if the inputs cannot be run; the rows of the same examples; and what is to be said."""
    sums = [encoder.rows(1) for _ in batches]
    try:
        own_probe = probed(
            task, plan, batches, stored_probe.examples,
            objective=objective_of(method_named(blueprint.method)), autocast=autocast_named(blueprint.autocast), also=sums,
        )  # fmt: skip
    except _CANNOT_RUN as error:
        why = f"the examples that the store keeps of its model cannot be run ({type(error).__name__}: {error})"
        return None, [], [f"{why[:200]}: only weights, settings and data were compared"]
    return own_probe, [[row.cpu() for row in row_sums.finished()] for row_sums in sums], []


def remade(store: Store, task: AbstractTask, row: int) -> Example | None:
    """The example of a row, made again from what the store keeps of its text; None where that does not give the tokens it was built from."""
    stored = store.example(row)
    text = stored.get("text", "")
    if not text:
        return None
    record: dict[str, object] = {"text": text, "scored_spans": stored["scored"]} if "scored" in stored else {"text": text}
    prompt = stored.get("prompt", 0)
    if prompt and "scored" not in stored:
        record = {"prompt": text[:prompt], "completion": text[prompt:]}
    example = task.prepare([record]).examples[0]
    # A window of a split text may begin inside a word, or without the mark that the tokenizer puts at the start.
    return None if example.token_spans is None or example.length != stored["length"] else example


def _row_of_text(task: AbstractTask, plan: Plan, encoder: Encoder, store: Store) -> bool:
    """Make the first row again from its text, if it has one: whether that could be done.

    Raises:
        StoreMismatch: If it is another row.
    """
    blueprint = store.blueprint
    example = remade(store, task, 0) if task.kind in TEXT_TASKS and "logged" not in blueprint.task else None
    if example is None:
        return False
    sums = encoder.rows(1)
    probe = probed(
        task, plan, [task.collate([example])], [store.example(0)["id"]],
        objective=objective_of(method_named(blueprint.method)), autocast=autocast_named(blueprint.autocast), also=[sums],
    )  # fmt: skip
    _check_rows(store, [0], probe.examples, [[row.cpu() for row in sums.finished()]], _rounding(probe, probe))
    return True


def _rounding(*probes: Probe) -> float:
    """What the arithmetic may round of a row, as a share of its length."""
    return _WHOLE if {probe.dtype for probe in probes} <= {"float64", "float32"} else _HALF


def _check_rows(
    store: Store, rows: Sequence[int | None], names: Sequence[str], remade_rows: Sequence[list[Tensor]], rounding: float
) -> None:
    """Hold rows made again against the stored ones, with what their type and the arithmetic round; None is a row that was deleted.

    Raises:
        StoreMismatch: If they are others, though the model computes what it did.
    """
    for name, row, units in zip(names, rows, remade_rows, strict=True):
        if row is None:
            continue
        stored, own = store.row(row), store.codec.encode(units)
        parts = [
            (store.codec.decode(stored, index), store.codec.decode(own, index), unit.flatten(1))
            for index, unit in enumerate(units)
        ]
        apart, rounded, size = (
            torch.cat([difference.double() for difference in column], 1).norm()
            for column in zip(*((theirs - whole, mine - whole, whole) for theirs, mine, whole in parts), strict=True)
        )
        if not apart <= _TIMES * rounded + rounding * size:
            raise StoreMismatch(
                found=f"a stored row of {name!r} that is {float(apart / size):.2g} of its length from the gradient made again, where its "
                f"type loses {float(rounded / size):.2g}",
                needed="rows of this model, made as this version makes them",
                do="check the store with `whence verify`, or build it again",
            )


def _packed(value: Any, name: str, tensors: dict[str, Tensor], device: torch.device) -> Any:
    """A batch as JSON, its tensors put aside by name.

    Raises:
        TypeError: If there is something in it that JSON has not.
    """
    if isinstance(value, Tensor):
        if value.dtype not in _TYPES or value.layout is not torch.strided:
            raise TypeError(f"a tensor of {value.dtype}")
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name, "is_on_device": value.device.type == device.type}
    if isinstance(value, Mapping):
        return {
            "mapping": [
                [key, _packed(part, f"{name}.{number}", tensors, device)] for number, (key, part) in enumerate(value.items())
            ]
        }
    if type(value) in (list, tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(part, f"{name}.{number}", tensors, device) for number, part in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise TypeError(f"a {type(value).__name__}")


def _unpacked(content: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    ((kind, value), *_) = content.items()
    if kind == "tensor":
        # A copy: the file is mapped, and what runs on it may write.
        return tensors[value].to(device, copy=True) if content["is_on_device"] else tensors[value].clone()
    if kind == "mapping":
        return {key: _unpacked(part, tensors, device) for key, part in value}
    if kind == "value":
        return value
    parts = [_unpacked(part, tensors, device) for part in value]
    return parts if kind == "list" else tuple(parts)


def _read(tensors: Mapping[str, Tensor], device: torch.device) -> tuple[Probe, list[int] | None, list[Batch], set[str]]:
    """What a store keeps of its model: the probe, the rows of its examples, their inputs, and names of units for the functional twin.

    Raises:
        StoreCorrupt: If it is something else.
    """
    try:
        about = parse_json(bytes(tensors["about"].tolist()))
        probe, rows = Probe.from_json(about["probe"]), about["rows"]
        batches = [_unpacked(tree, tensors, device) for tree in about["inputs"]]
        twin = {str(name) for name in about.get("twin", ())}
        lengths = {len(batches), len(probe.examples), len(probe.examples if rows is None else rows)}
        why = "parts of different lengths" if len(lengths) > 1 else ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = str(error)
    if why:
        raise StoreCorrupt(
            found=f"an unreadable {PROBE_FILE} ({why})", needed="the file as it was written", do="build the store again"
        )
    return probe, rows, batches, twin
