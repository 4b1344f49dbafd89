"""A case made real: a model, data, a task of whence, and the same losses written plainly for one example.

Axes: B examples, T positions, C outputs.
"""

from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

import whence
from tests.fuzz.case import Case
from tests.fuzz.formula import WIDTH
from tests.fuzz.language import FAMILIES, LABELS, MASK, TOKENS
from tests.fuzz.losses import CALLS, CLASSES, LOSSES, logits_of
from tests.fuzz.network import KINDS, Network
from tests.fuzz.tokens import VOCABULARY
from whence.data import Dataset
from whence.tasks import Outputs

__all__ = ["Program", "make_program", "with_dtype"]

Record = dict[str, Any]


@dataclass
class Fields:
    """A batch as a dataclass."""

    inputs: Any
    target: Tensor
    shared: Any = None


Named = namedtuple("Named", "inputs target shared")


@dataclass(frozen=True)
class Program:
    """A case made real.

    Args:
        case: The case.
        model: The model, as a user would have it.
        train: Training records.
        queries: Query records.
        shared: What all examples share.
    """

    case: Case
    model: nn.Module
    train: list[Record]
    queries: list[Record]
    shared: dict[str, Tensor]

    def task(self, functional: Any, ignore: list[str], model: nn.Module | None = None) -> whence.tasks.AbstractTask:
        """The task of whence.

        Args:
            functional: As `whence.tasks.AbstractTask` takes it.
            ignore: Names of parameters that are left out besides the case's own.
            model: Another model than the program's.
        """
        case, model = self.case, self.model if model is None else model
        options: dict[str, Any] = {**self.choice(), "functional": functional}
        if ignore:
            options["ignore"] = [*options.get("ignore", ()), *ignore]
        if case.task == "causal":
            return whence.CausalLM(model, None, **options)
        if case.task == "masked":
            return whence.MaskedLM(model, None, hiding=whence.tasks.Hiding(mask_id=MASK, share=0.4), **options)
        if case.task == "classification":
            return whence.Classification(model, measure=case.measure, **options)
        if case.task == "regression":
            return whence.Regression(model, measure=case.measure, **options)
        measure = self._norms if case.measure == "norm" else None
        outputs = self._outputs if LOSSES[case.loss].likelihood else None
        collate = None if self._is_pair() else self.collate
        return whence.Custom(model, self.losses, measure=measure, collate=collate, outputs=outputs, **options)

    def choice(self) -> dict[str, list[str]]:
        """Which parameters the case attributes, as options of a task."""
        names = [name for name, _ in self.model.named_parameters()]
        if self.case.choice == "all" or not names:
            return {}
        chosen = Random(self.case.seed).sample(names, max(1, len(names) // 3))
        return {self.case.choice: chosen}

    def functional(self) -> bool | list[str]:
        """What the case sends through the twin."""
        names = [name for name, _ in self.model.named_parameters()]
        some = Random(self.case.seed + 1).sample(names, max(1, len(names) // 2))
        return {"no": False, "yes": True, "all": ["*"], "some": some}[self.case.functional]

    def records(self, records: list[Record]) -> list[Any]:
        """Records as whence takes them."""
        if self.case.kind == "language":
            return [{name: value for name, value in record.items() if value is not None} for record in records]
        if self._is_pair():
            return [(record["inputs"], record["target"]) for record in records]
        name = {"classification": "label", "regression": "target"}.get(self.case.task, "target")
        return [{**{key: record[key] for key in record if key != "target"}, name: record["target"]} for record in records]

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """The custom loss, shape (B,) unless it is a mistake."""
        inputs, target, shared = self._unpacked(batch)
        return LOSSES[self.case.loss].value(CALLS[self.case.call](model, inputs), target, shared)

    def collate(self, records: list[Record]) -> Any:
        """Records as a custom batch."""
        case = self.case
        if case.batch == "list of records":
            return records
        target = torch.stack([torch.as_tensor(record["target"]) for record in records])
        rows = [record["inputs"] for record in records]
        inputs: Any = {"inputs": pad_sequence(rows, batch_first=True)}
        if case.batch == "time first":
            inputs = {"inputs": pad_sequence(rows)}
        if case.batch == "packed":
            inputs = {"inputs": pack_sequence(rows, enforce_sorted=False)}
        for name in ("attention_mask", "shift"):
            if name in records[0]:
                inputs[name] = pad_sequence([record[name] for record in records], batch_first=True)
        if case.batch == "dataclass":
            return Fields(inputs, target, self.shared)
        if case.batch == "named tuple":
            return Named(inputs, target, self.shared)
        if case.batch == "encoding":
            from transformers import BatchEncoding

            return BatchEncoding({**inputs, "target": target})
        if case.batch == "dict":
            return {**inputs, "target": target, "shared": self.shared, "name": "a batch", "size": len(records)}
        return inputs, target

    def plain_loss(self, model: nn.Module, record: Record) -> Tensor:
        """The loss of one example, on its own and unpadded."""
        if self.case.kind == "language":
            return _language_loss(self.case, model, record)
        if self.case.task == "custom":
            return self.losses(model, self._batch_of_one(record)).sum()
        values_C, target = self.plain_values(model, record)[0], record["target"]
        if self.case.task == "classification":
            return F.cross_entropy(values_C[None], target[None])
        return 0.5 * (values_C - target.to(values_C)).square().sum()

    def plain_measurement(self, model: nn.Module, record: Record) -> Tensor:
        """What a query asks about."""
        measure = self.case.measure
        if measure == "loss":
            return -self.plain_loss(model, record)
        values_C = self.plain_values(model, record)[0]
        if measure == "margin":
            others = torch.arange(len(values_C)) != record["target"]
            return values_C[record["target"]] - values_C[others].logsumexp(0)
        return values_C.mean() if measure == "prediction" else values_C.square().sum()

    def plain_values(self, model: nn.Module, record: Record) -> Tensor:
        """What the loss is a convex function of, shape (rows, C)."""
        case = self.case
        if case.kind == "language":
            return _language_values(case, model, record)
        if case.task == "custom":
            return CALLS[case.call](model, self._unpacked(self._batch_of_one(record))[0])
        inputs = {name: value[None] for name, value in record.items() if name != "target"}
        values = logits_of(model(**inputs))
        return values if values.dtype == torch.float64 else values.float()

    def plain(self, records: list[Record], dataset: Dataset) -> list[Any]:
        """Records for the plain functions: as they are, or, of texts, what whence made of them."""
        return [example.fields for example in dataset.examples] if self.case.kind == "language" else records

    @property
    def mixes_examples(self) -> bool:
        """Whether a loss depends on the rest of its batch."""
        case = self.case
        if case.kind == "language":
            return False
        known = KINDS[case.kind]
        parts = [known.stems[case.stem], *(known.parts[name] for name in case.parts)]
        padded = case.ragged and any(part.mixes_positions for part in parts)
        return padded or LOSSES[case.loss].mixes_examples or any(part.mixes_examples for part in parts)

    @property
    def limits(self) -> tuple[str, ...]:
        """What whence may say to a model with these parts."""
        if self.case.kind == "language":
            return ()
        known = KINDS[self.case.kind]
        forms = ("a model that returns",) if self.case.form in ("tuple", "list") else ()
        return forms + tuple(
            limit for part in (known.stems[self.case.stem], *map(known.parts.get, self.case.parts)) for limit in part.limits
        )

    def _is_pair(self) -> bool:
        return self.case.batch == "tuple" and set(self.train[0]) == {"inputs", "target"}

    def _batch_of_one(self, record: Record) -> Any:
        if self._is_pair():
            return [record["inputs"][None], record["target"][None]]
        return self.collate([record])

    def _unpacked(self, batch: Any) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Inputs by name, targets, and what all share."""
        form = self.case.batch
        if form == "list of records":
            names = [name for name in batch[0] if name != "target"]
            inputs = {name: pad_sequence([record[name] for record in batch], batch_first=True) for name in names}
            return inputs, torch.stack([torch.as_tensor(record["target"]) for record in batch]), self.shared
        if form in ("dict", "encoding"):
            inputs = {name: batch[name] for name in ("inputs", "attention_mask", "shift") if name in batch}
            return inputs, batch["target"], batch["shared"] if form == "dict" else self.shared
        if form in ("dataclass", "named tuple"):
            return batch.inputs, batch.target, batch.shared
        inputs, target = batch
        inputs = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        if form == "time first":
            inputs["inputs"] = inputs["inputs"].transpose(0, 1)
        if form == "packed":
            inputs["inputs"] = pad_packed_sequence(inputs["inputs"], batch_first=True)[0]
        return inputs, target, self.shared

    def _norms(self, model: nn.Module, batch: Any) -> Tensor:
        return CALLS[self.case.call](model, self._unpacked(batch)[0]).square().sum(-1)

    def _outputs(self, model: nn.Module, batch: Any) -> Outputs:
        inputs, target, _ = self._unpacked(batch)
        values = CALLS[self.case.call](model, inputs)
        return Outputs(values, torch.arange(len(values)), target, LOSSES[self.case.loss].likelihood)


def make_program(case: Case) -> Program:
    """The program of a case: the same weights and data every time."""
    torch.manual_seed(case.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model = FAMILIES[case.stem].make() if case.kind == "language" else _network(case)
        records = [_record(case, number) for number in range(case.count + case.queries)]
        shared = {"class_weights": torch.rand(CLASSES) + 0.5, "prototypes": torch.randn(5, CLASSES)}
    finally:
        torch.set_default_dtype(before)
    dtype = getattr(torch, case.dtype)
    model = with_dtype(model, dtype).train(case.training)
    parameters = list(model.parameters())
    if case.frozen >= 0 and len(parameters) > 1:
        parameters[int(case.frozen * len(parameters))].requires_grad_(False)
    records = [{name: _cast(value, dtype) for name, value in record.items()} for record in records]
    shared = {name: _cast(value, dtype) for name, value in shared.items()}
    return Program(case, model, records[: case.count], records[case.count :], shared)


def with_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model in another precision, complex parameters too, which `Module.to` makes real."""
    turned = {torch.float64: torch.complex128}.get(dtype, torch.complex64)

    def cast(value: Tensor) -> Tensor:
        return value.to(turned) if value.is_complex() else _cast(value, dtype)

    return model._apply(cast)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _network(case: Case) -> Network:
    model = Network(case.kind, case.stem, case.parts, case.head, case.form)
    if case.call == "model(x) * model.scale":
        model.scale = nn.Parameter(torch.tensor(0.7))
    if case.call == "model(x) * parts.scale":
        model.extras = nn.ParameterDict({"scale": nn.Parameter(torch.rand(CLASSES))})
    return model


def _record(case: Case, number: int) -> Record:
    if case.kind == "language":
        return _text(case, number)
    length = 1 + int(torch.randint(4, ())) if case.ragged else 3
    equal = torch.Generator().manual_seed(case.seed)
    generator = equal if case.values == "equal" else None
    if case.kind in ("tokens", "bags"):
        inputs = torch.randint(VOCABULARY, (length,), generator=generator)
    else:
        shape = (length, WIDTH) if case.kind == "sequences" else KINDS[case.kind].shape
        inputs = torch.randn(shape, generator=generator)
        inputs = inputs * {"zeros": 0.0, "large": 1e3, "small": 1e-6}.get(case.values, 1.0)
    record: Record = {"inputs": inputs}
    if case.ragged:
        record["attention_mask"] = torch.ones(length, dtype=torch.long)
    if case.shift:
        record["shift"] = torch.randn(WIDTH)
    label = {"one class": 1, "imbalanced": int(number % 7 == 3)}.get(case.values, number % CLASSES)
    targets = {
        "class": torch.tensor(label),
        "real": torch.randn(CLASSES),
        "bits": torch.randint(2, (CLASSES,)).to(torch.get_default_dtype()),
    }
    return {**record, "target": targets[LOSSES[case.loss].target]}


def _text(case: Case, number: int) -> Record:
    length = 3 + int(torch.randint(6, ())) if case.ragged else 5
    ids = torch.randint(3, TOKENS, (length,))
    if case.task == "classification":
        mask = torch.ones(length, dtype=torch.long)
        return {"input_ids": ids, "attention_mask": mask, "label": number % LABELS}
    labels = [-100] * (number % 3) + ids.tolist()[number % 3 :]
    return {"input_ids": ids.tolist(), "labels": labels if number % 2 else None}


def _language_loss(case: Case, model: nn.Module, record: Any) -> Tensor:
    values = _language_values(case, model, record)
    if case.task == "classification":
        return F.cross_entropy(values, torch.as_tensor(record["target"])[None])
    labels = torch.as_tensor(record["labels"]).long()
    labels = labels[1:] if case.task == "causal" else labels
    return F.cross_entropy(values, labels[labels != -100], reduction="sum") if len(values) else values.sum()


def _language_values(case: Case, model: nn.Module, record: Any) -> Tensor:
    """Logits of an example's scored positions; the record is the fields of an example of whence."""
    logits_TV = model(input_ids=torch.as_tensor(record["input_ids"]).long()[None]).logits[0]
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    if case.task == "classification":
        return logits_TV[None]
    labels = torch.as_tensor(record["labels"]).long()
    if case.task == "causal":
        return logits_TV[:-1][labels[1:] != -100]
    return logits_TV[labels != -100]
