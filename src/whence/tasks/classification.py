"""Classification and regression: one target per example."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.causal_lm import tokenizer_digest
from whence.tasks.outputs import Outputs

__all__ = ["Classification", "Regression"]


class Classification(AbstractTask):
    """One class per example.

    A record is a pair (input, label), a mapping of the model's keyword inputs with a `label`, or, with a tokenizer, a mapping with `text`
    and `label`. `id` and `source` are optional in mappings.

    Args:
        model: Called with the input, or with the mapping's inputs as keywords; returns logits (B, classes) or a record with `.logits`.
        tokenizer: A Hugging Face tokenizer, for records with `text`.
        measure: What a query asks about: "loss" (minus the cross-entropy, the log-probability of the label) or "margin",
            log p / (1 - p) of the label, which does not saturate (Park et al. 2023, section 3).
        **options: See `AbstractTask`.

    Raises:
        UnknownOption: If `measure` is neither.
    """

    kind = "classification"

    def __init__(self, model: nn.Module, tokenizer: Any = None, *, measure: Literal["loss", "margin"] = "loss", **options: Any):
        super().__init__(model, **options)
        if measure not in ("loss", "margin"):
            raise UnknownOption(found=f"measure={measure!r}", needed="one of: loss, margin", do="pick one")
        self.tokenizer = tokenizer
        self.measure = measure
        self.unit = "nats of the label's log-probability" if measure == "loss" else "log-odds of the label"

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer, if there is one."""
        return tokenizer_digest(self.tokenizer) if self.tokenizer is not None else ""

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from pairs or mappings; see the class.

        A label is a class number; a string is looked up in the `label2id` of the model's configuration.

        Raises:
            BadInput: If a record is something else or its label is no class.
        """
        config: Any = getattr(self.model, "config", None)
        names = getattr(config, "label2id", None) or {}
        return Dataset([_labelled(number, record, "label", self.tokenizer, names) for number, record in enumerate(records)])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stacked inputs, right-padded with zeros where lengths differ, and labels."""
        return _stack(examples, self.model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each example in nats, shape (B,).

        Raises:
            BadInput: If a label is beyond the model's classes.
        """
        logits_BC = _logits(model, batch)
        highest = int(batch["target"].max())
        if logits_BC.ndim != 2 or highest >= logits_BC.shape[1]:
            raise BadInput(
                found=f"the label {highest} for logits of shape {tuple(logits_BC.shape)}",
                needed="logits (examples, classes) and labels from 0 to classes - 1",
                do="check the labels and the model's last layer",
            )
        return nn.functional.cross_entropy(logits_BC, batch["target"], reduction="none")

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability or log-odds of each query's label, shape (B,)."""
        return -self.loss(model, batch) if self.measure == "loss" else self.output_function(model, batch)

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-odds of each label, log p / (1 - p), shape (B,) (Park et al. 2023, section 3)."""
        log_p = nn.functional.log_softmax(_logits(model, batch), -1)
        chosen = nn.functional.one_hot(batch["target"], log_p.shape[-1]).bool()
        # log(1 - p) as the log-sum of the other classes: stable when p is close to 1.
        rest = log_p.masked_fill(chosen, -torch.inf).logsumexp(-1)
        return log_p.gather(-1, batch["target"][:, None]).squeeze(-1) - rest

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """1 - p of each label, shape (B,)."""
        return torch.sigmoid(-values_B)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits, one row per example."""
        logits_BC = _logits(model, batch)
        return Outputs(logits_BC, torch.arange(len(logits_BC), device=logits_BC.device), batch["target"], "categorical")

    def positions(self, batch: Batch) -> Tensor | None:
        """True at real tokens, when the inputs have an attention mask."""
        mask = batch["inputs"].get("attention_mask")
        return None if mask is None else mask.bool()


class Regression(AbstractTask):
    """One or several real targets per example, with the loss half the squared error.

    That is the negative log-likelihood of a Gaussian with unit variance up to a constant, so its Fisher information and its
    Gauss-Newton matrix agree.

    Args:
        model: Returns predictions of shape (B,), (B, 1) or (B, targets).
        **options: See `AbstractTask`.
    """

    kind = "regression"
    unit = "half squared error, negated"

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from pairs (input, target) or mappings with a `target`."""
        return Dataset([_labelled(number, record, "target", None, {}) for number, record in enumerate(records)])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stacked inputs and targets."""
        return _stack(examples, self.model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Half the squared error of each example, summed over its targets, shape (B,)."""
        return 0.5 * self._residuals(model, batch).square().sum(1)

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the distance to the target, shape (B,): for one target the prediction itself, up to a sign that scores do not see.

        Its gradient times its weight is the loss's, as in Park et al. 2023.
        """
        return -torch.linalg.vector_norm(self._residuals(model, batch), dim=1)

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """The distance to the target, shape (B,)."""
        return -values_B

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Predictions, one row per example."""
        prediction = _logits(model, batch)
        rows = len(batch["target"])
        target_BC = batch["target"].to(prediction.dtype).reshape(rows, -1)
        return Outputs(prediction.reshape(rows, -1), torch.arange(rows, device=prediction.device), target_BC, "gaussian")

    def _residuals(self, model: nn.Module, batch: Batch) -> Tensor:
        """Prediction minus target, shape (B, targets).

        Raises:
            BadInput: If predictions and targets do not match in number.
        """
        prediction = _logits(model, batch)
        target = batch["target"].to(prediction.dtype)
        if prediction.numel() != target.numel():
            raise BadInput(
                found=f"predictions of shape {tuple(prediction.shape)} for targets of shape {tuple(target.shape)}",
                needed="one prediction per target",
                do="check the model's last layer and the targets",
            )
        rows = len(target)
        return prediction.reshape(rows, -1) - target.reshape(rows, -1)


def _labelled(number: int, record: Any, target_name: str, tokenizer: Any, names: Mapping[str, int]) -> Example:
    if isinstance(record, Sequence) and not isinstance(record, str) and len(record) == 2:
        record = {"inputs": record[0], target_name: record[1]}
    elif not isinstance(record, Mapping) or target_name not in record:
        found = f"the fields {sorted(record)}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
        raise BadInput(
            found=f"record {number} with {found}" if isinstance(record, Mapping) else f"record {number}, {found}",
            needed=f"a pair (input, {target_name}) or a mapping with {target_name!r}",
            do="convert the records; on the command line ask with --file and a file of such records",
        )
    name, source, text = str(record.get("id", number)), str(record.get("source", "")), record.get("text", "")
    target = _array(number, target_name, record[target_name])
    if target_name == "label":
        target = _class_number(number, target, names)
    if tokenizer is None:
        skipped = (target_name, "id", "source", "text")
        inputs = {key: _array(number, key, value) for key, value in record.items() if key not in skipped}
        length = max((len(value) for value in inputs.values() if value.ndim == 1 and value.dtype.kind in "iu"), default=1)
        return Example(name, {**inputs, "target": target}, length, source, str(text))
    if not isinstance(text, str) or not text:
        raise BadInput(found=f"record {number} without a text", needed="a non-empty 'text'", do="drop or fill it")
    encoded = tokenizer(text, truncation=True)
    inputs = {key: np.asarray(value, np.int64) for key, value in encoded.items()}
    return Example(name, {**inputs, "target": target}, len(encoded["input_ids"]), source, text)


def _class_number(number: int, label: np.ndarray, names: Mapping[str, int]) -> np.ndarray:
    known = f", or one of {', '.join(map(str, names))}" if names else ""
    if label.size == 1 and label.dtype.kind in "US" and str(label.item()) in names:
        return np.asarray(names[str(label.item())], np.int64)
    if label.size != 1 or label.dtype.kind not in "iu" or label.item() < 0:
        raise BadInput(
            found=f"record {number} with the label {label.item()!r}"
            if label.size == 1
            else f"record {number} with several labels",
            needed=f"one class number from 0{known}",
            do="convert the labels",
        )
    return label.reshape(()).astype(np.int64)


def _array(number: int, field: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # A copy: what changes or moves the tensor later, sharing it with other processes among them, must not reach the examples.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()  # NumPy has no bfloat16
    try:
        array = np.array(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.hasobject:
        raise BadInput(
            found=f"record {number} whose {field!r} is no array of numbers",
            needed="a tensor, an array or a number; several inputs as a mapping of the model's keywords",
            do="convert the record",
        )
    return array


def _stack(examples: Sequence[Example], model: nn.Module) -> Batch:
    parameter = next(model.parameters())
    names = [name for name in examples[0].fields if name != "target"]
    masked = "attention_mask" in names
    inputs = {name: _pad(name, [example.fields[name] for example in examples], masked) for name in names}
    # Real inputs take the model's precision: NumPy's default is float64.
    inputs = {
        name: value.to(parameter.device, parameter.dtype) if value.is_floating_point() else value.to(parameter.device)
        for name, value in inputs.items()
    }
    target = torch.stack([torch.as_tensor(example.fields["target"]) for example in examples])
    return {"inputs": inputs, "target": target.to(parameter.device)}


def _pad(name: str, arrays: Sequence[np.ndarray], masked: bool) -> Tensor:
    tensors = [torch.as_tensor(array) for array in arrays]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) == 1:
        return torch.stack(tensors)
    if not masked:
        raise BadInput(
            found=f"inputs {name!r} of different shapes ({', '.join(map(str, sorted(shapes)[:2]))}) and no attention_mask",
            needed="equal shapes, or a mask that the model heeds: padding would change what it computes",
            do="pad them yourself, or use whence.Custom with a collate function",
        )
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    inputs = batch["inputs"]
    found = model(inputs["inputs"]) if set(inputs) == {"inputs"} else model(**inputs)
    found = getattr(found, "logits", found)
    return found if found.dtype == torch.float64 else found.float()
