"""Classification and regression: one class, several, shares of them, or real targets per example."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption
from whence.functions import identity_of
from whence.settings import records_only, typed
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.causal_lm import tokenizer_digest
from whence.tasks.fields import class_number, class_set, class_shares
from whence.tasks.images import Preprocess
from whence.tasks.labelled import Texts, as_mapping, labelled_example, target_of
from whence.tasks.measures import Measure, chosen_measure, mean_log_odds
from whence.tasks.model_outputs import model_outputs
from whence.tasks.outputs import Outputs
from whence.tasks.prepared import SameInputs, examples_from
from whence.tasks.stacking import stacked
from whence.tasks.token_inputs import context_length

__all__ = ["Classification", "Labelling", "Regression", "TextLimits"]

Labelling = Literal["single", "multi", "soft"]
"""What a record's label is: one class, a yes or no for each class, or a probability of each."""


@dataclass(frozen=True, kw_only=True)
@typed
class TextLimits:
    """How long a text may be.

    Args:
        long: What to do with a text longer than the context: refuse it, or cut it as a truncating tokenizer does.
        max_length: Tokens per text at most; None takes the model's context or the tokenizer's limit, whichever is less.

    Raises:
        BadInput: If `max_length` is not positive.
        UnknownOption: If `long` is neither.
    """

    long: Literal["error", "truncate"] = "error"
    max_length: int | None = None

    def __post_init__(self):
        if self.long not in ("error", "truncate"):
            raise UnknownOption(found=f"long={self.long!r}", needed="one of: error, truncate", do="pick one")
        if self.max_length is not None and self.max_length < 1:
            raise BadInput(found=f"max_length={self.max_length}", needed="1 or more", do="correct it, or leave it out")


class Classification(AbstractTask):
    """One class per example, several, or a probability of each.

    A record is a pair (input, label), a mapping of the model's keyword inputs with a `label`, or, with a tokenizer, a mapping with `text`
    (and `text_pair`, which the tokenizer joins to it) and `label`. `id` and `source` are optional in mappings. An `image` that is a path is
    opened when its batch is made; its id is the path if it has no other.

    Texts of different lengths are filled up on the right with the padding token of the model's configuration, or else its tokenizer's.

    Args:
        model: Called with the input, or with the mapping's inputs as keywords; returns logits (B, classes), a record or a mapping with
            `logits`, or a tuple with that one tensor.
        tokenizer: A Hugging Face tokenizer, for records with `text`.
        texts: How long a text may be.
        labelling: What a label is: "single", a class; "multi", which of the classes an example has, each a yes or no of its own (a list of
            names, or a 0 or 1 for each); "soft", a probability for each, as several annotators or a teacher give them.
        measure: What a query asks about: "loss" (minus the cross-entropy, the log-probability of the label) or "margin",
            log p / (1 - p) of the label, or of all of an example's labels together, which does not saturate (Park et al. 2023, section
            3); or a function of model and batch that gives one value per query, shape (B,). The batch is a mapping: `inputs` by keyword and
            `target`.
        preprocess: From an RGB `PIL.Image.Image` to the model's input, or to a mapping of keyword inputs, for records with the path of an
            image; None takes its channels between 0 and 1, shape (3, height, width). The same image has to give the same result.
        labels: Names of the classes in order, for records whose label is a name; None takes those of the model's configuration.
        **options: `unit`, what a measurement of one's own is counted in, and those of `AbstractTask`.

    Raises:
        BadInput: If `unit` is given for one of the named measurements, which have their own.
        UnknownOption: If `measure` or `labelling` is none of these.
    """

    kind = "classification"

    @records_only(texts=TextLimits)
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        texts: TextLimits = TextLimits(),
        labelling: Labelling = "single",
        measure: Literal["loss", "margin"] | Measure = "loss",
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        **options: Any,
    ):
        unit = options.pop("unit", None)
        super().__init__(model, **options)
        units = {"loss": "nats of the label's log-probability", "margin": "log-odds of the label"}
        self.measure, self.unit = chosen_measure(measure, unit, units)
        if labelling not in ("single", "multi", "soft"):
            raise UnknownOption(found=f"labelling={labelling!r}", needed="one of: single, multi, soft", do="pick one")
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.labels = labels
        self.labelling: Labelling = labelling
        self.long, self.max_length = texts.long, _text_limit(model, tokenizer, texts)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer or of the function that prepares images, if there is one."""
        return _preprocessing(self.preprocess, self.tokenizer)

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from pairs or mappings; see the class.

        A class is a number; a string is looked up in `labels`, or in the `label2id` of the model's configuration.

        Raises:
            BadInput: If a record is something else or its label is no class.
        """
        config: Any = getattr(self.model, "config", None)
        label_ids = getattr(config, "label2id", None) or {}
        names = label_ids if self.labels is None else {name: number for number, name in enumerate(self.labels)}
        classes = len(names) if self.labels is not None else getattr(config, "num_labels", None)
        texts = None if self.tokenizer is None else Texts(self.tokenizer, self.max_length, self.long == "truncate")
        same = SameInputs()
        read = {"single": class_number, "multi": class_set, "soft": class_shares}[self.labelling]

        def example(number: int, record: Any) -> list[Example]:
            record = as_mapping(number, record, "label", has_texts=texts is not None)
            label = read(number, record["label"], names, classes)
            return [same.checked(number, labelled_example(number, record, "label", label, self.model, texts))]

        return examples_from(records, example, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stacked inputs, right-padded where lengths differ, and labels."""
        return stacked(examples, self.model, self.preprocess, self.tokenizer)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of each example in nats, shape (B,)."""
        if self.labelling == "single":
            return nn.functional.cross_entropy(self.logits(model, batch), batch["target"], reduction="none")
        outputs = self.outputs(model, batch)
        return outputs.losses(len(outputs.values_MC))

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability or log-odds of each query's label, or what one's own function gives, shape (B,)."""
        if not isinstance(self.measure, str):
            return self.measure(model, batch)
        return -self.loss(model, batch) if self.measure == "loss" else self.output_function(model, batch)

    @property
    def highest_measurement(self) -> float | None:
        """0 for the log-probability, None for any other measurement."""
        return 0.0 if self.measure == "loss" else None

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-odds of each label, log p / (1 - p), shape (B,) (Park et al. 2023, section 3); p is exp(-loss) where there are several."""
        if self.labelling != "single":
            loss_B = self.loss(model, batch)
            return mean_log_odds(loss_B, torch.ones_like(loss_B))
        log_p = nn.functional.log_softmax(self.logits(model, batch), -1)
        chosen = nn.functional.one_hot(batch["target"], log_p.shape[-1]).bool()
        # log(1 - p) as the log-sum of the other classes: stable when p is close to 1.
        rest = log_p.masked_fill(chosen, -torch.inf).logsumexp(-1)
        return log_p.gather(-1, batch["target"][:, None]).squeeze(-1) - rest

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """1 - p of each label, shape (B,)."""
        return torch.sigmoid(-values_B)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Logits, one row per example."""
        logits_BC = self.logits(model, batch)
        targets = batch["target"] if self.labelling == "single" else batch["target"].to(logits_BC)
        likelihood = "bernoulli" if self.labelling == "multi" else "categorical"
        return Outputs(logits_BC, torch.arange(len(logits_BC), device=logits_BC.device), targets, likelihood)

    def positions(self, batch: Batch) -> Tensor | None:
        """True at real tokens, when the inputs have an attention mask."""
        return _real_positions(batch)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in order; empty where they have none."""
        names = getattr(getattr(self.model, "config", None), "id2label", None) or {}
        return tuple(map(str, self.labels or [names[number] for number in sorted(names)]))

    def label_name(self, target: Any) -> str:
        """What a label is called: its class, all of them, or the likeliest.

        Args:
            target: As an example's field of that name.
        """
        values = np.asarray(target)
        if self.labelling == "multi":
            return ", ".join(self._name(int(number)) for number in values.nonzero()[0]) or "none"
        return self._name(int(values if self.labelling == "single" else values.argmax()))

    def seen_labels(self, logits_BC: Tensor) -> list[str]:
        """What the model sees, in the words of `label_name`."""
        if self.labelling == "multi":
            return [self.label_name(row.cpu().numpy()) for row in logits_BC > 0]
        return [self._name(number) for number in logits_BC.argmax(1).tolist()]

    def _name(self, number: int) -> str:
        return self.class_names[number] if number < len(self.class_names) else str(number)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape (B, classes).

        Raises:
            BadInput: If the model gives something else, or labels beyond its classes.
        """
        logits_BC = model_outputs(model, batch)
        if self.labelling != "single":
            if logits_BC.shape == batch["target"].shape:
                return logits_BC
            raise BadInput(
                found=f"labels of shape {tuple(batch['target'].shape)} for logits of shape {tuple(logits_BC.shape)}",
                needed="a number for every class of the model",
                do="check the labels and the model's last layer",
            )
        highest = int(batch["target"].max())
        if logits_BC.ndim != 2 or highest >= logits_BC.shape[1]:
            raise BadInput(
                found=f"the label {highest} for logits of shape {tuple(logits_BC.shape)}",
                needed="logits (examples, classes) and labels from 0 to classes - 1",
                do="check the labels and the model's last layer",
            )
        return logits_BC


class Regression(AbstractTask):
    """One or several real targets per example, with the loss half the squared error.

    That is the negative log-likelihood of a Gaussian with unit variance up to a constant, so its Fisher information and its
    Gauss-Newton matrix agree. Records are those of `Classification` with `target`, a number or a list of them, in place of `label`.

    Args:
        model: Returns predictions of shape (B,), (B, 1) or (B, targets).
        tokenizer: A Hugging Face tokenizer, for records with `text` (and `text_pair`).
        texts: How long a text may be.
        measure: What a query asks about: "loss" (minus half the squared error), "prediction" (the mean of its predictions), or a function of
            model and batch that gives one value per query, shape (B,). The batch is a mapping: `inputs` by keyword and `target`.
        preprocess: As in `Classification`.
        unit: What a measurement of one's own is counted in.
        **options: See `AbstractTask`.

    Raises:
        BadInput: If `unit` is given for one of the named measurements, which have their own.
        UnknownOption: If `measure` is none of these.
    """

    kind = "regression"

    @records_only(texts=TextLimits)
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        texts: TextLimits = TextLimits(),
        measure: Literal["loss", "prediction"] | Measure = "loss",
        preprocess: Preprocess | None = None,
        unit: str | None = None,
        **options: Any,
    ):
        super().__init__(model, **options)
        units = {"loss": "half squared error, negated", "prediction": "units of the prediction"}
        self.measure, self.unit = chosen_measure(measure, unit, units)
        self.preprocess, self.tokenizer = preprocess, tokenizer
        self.long, self.max_length = texts.long, _text_limit(model, tokenizer, texts)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer or of the function that prepares images, if there is one."""
        return _preprocessing(self.preprocess, self.tokenizer)

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Examples from pairs (input, target) or mappings with a `target`."""
        texts = None if self.tokenizer is None else Texts(self.tokenizer, self.max_length, self.long == "truncate")
        same = SameInputs()

        def example(number: int, record: Any) -> list[Example]:
            record = as_mapping(number, record, "target", has_texts=texts is not None)
            target = target_of(number, record["target"])
            return [same.checked(number, labelled_example(number, record, "target", target, self.model, texts))]

        return examples_from(records, example, skip_bad=self.skip_bad)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Stacked inputs and targets."""
        return stacked(examples, self.model, self.preprocess, self.tokenizer)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Half the squared error of each example, summed over its targets, shape (B,)."""
        return 0.5 * self._residuals(model, batch).square().sum(1)

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """Minus the loss, the mean prediction, or what one's own function gives, shape (B,)."""
        if not isinstance(self.measure, str):
            return self.measure(model, batch)
        if self.measure == "loss":
            return -self.loss(model, batch)
        prediction = model_outputs(model, batch)
        return prediction.reshape(len(batch["target"]), -1).mean(1)

    @property
    def highest_measurement(self) -> float | None:
        """0 for minus the squared error, None for any other measurement."""
        return 0.0 if self.measure == "loss" else None

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
        prediction = model_outputs(model, batch)
        rows = len(batch["target"])
        target_BC = batch["target"].to(prediction.dtype).reshape(rows, -1)
        return Outputs(prediction.reshape(rows, -1), torch.arange(rows, device=prediction.device), target_BC, "gaussian")

    def positions(self, batch: Batch) -> Tensor | None:
        """True at real tokens, when the inputs have an attention mask."""
        return _real_positions(batch)

    def _residuals(self, model: nn.Module, batch: Batch) -> Tensor:
        """Prediction minus target, shape (B, targets).

        Raises:
            BadInput: If predictions and targets do not match in number.
        """
        prediction = model_outputs(model, batch)
        target = batch["target"].to(prediction.dtype)
        if prediction.numel() != target.numel():
            raise BadInput(
                found=f"predictions of shape {tuple(prediction.shape)} for targets of shape {tuple(target.shape)}",
                needed="one prediction per target",
                do="check the model's last layer and the targets",
            )
        rows = len(target)
        return prediction.reshape(rows, -1) - target.reshape(rows, -1)


def _text_limit(model: nn.Module, tokenizer: Any, texts: TextLimits) -> int:
    limit = min(context_length(model, tokenizer), int(getattr(tokenizer, "model_max_length", 1 << 20)))
    return limit if texts.max_length is None else min(texts.max_length, limit)


def _preprocessing(preprocess: Preprocess | None, tokenizer: Any) -> str:
    if preprocess is not None:
        return hashlib.sha256(identity_of(preprocess).encode()).hexdigest()
    return tokenizer_digest(tokenizer) if tokenizer is not None else ""


def _real_positions(batch: Batch) -> Tensor | None:
    mask = batch["inputs"].get("attention_mask")
    return None if mask is None else mask.bool()
