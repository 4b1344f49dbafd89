"""Preferences: pairs of answers of which one was chosen, for policies (DPO) and reward models (Bradley-Terry).

Axes: B pairs, T positions. A batch has two rows for a pair, the chosen answer first, one pair after the other.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.data import Dataset, Example
from whence.errors import BadInput, UnknownOption
from whence.settings import records_only
from whence.tasks.base import AbstractTask, Batch
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import TextLimits
from whence.tasks.fields import record_id, record_source, scalar
from whence.tasks.labelled import Texts
from whence.tasks.measures import Measure, chosen_measure
from whence.tasks.model_outputs import model_outputs
from whence.tasks.outputs import Outputs
from whence.tasks.prepared import examples_from
from whence.tasks.stacking import stacked
from whence.tasks.token_inputs import padding_token, vocabulary_size
from whence.tasks.token_rows import next_token_losses, token_rows

__all__ = ["Preference"]

_SIDES = ("chosen", "rejected")
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
# Pairs that the reference sees at a time.
_AT_ONCE = 8


class Preference(AbstractTask):
    """Which of two answers was preferred.

    The loss of a pair is -log sigmoid(h). For "dpo", h = beta ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected)), log p summed
    over the answer's tokens (Rafailov et al. 2023, equation 7). For "bradley-terry", h is the difference of the rewards that the model gives
    (Ouyang et al. 2022, equation 1, for one pair). A ranking of several answers is its pairs.

    A record is a mapping with `prompt`, `chosen` and `rejected`, texts or lists of messages, or with the latter two only; `id` and `source`
    are optional. `ref_chosen_logps` and `ref_rejected_logps` are the reference's log-probabilities, as other libraries write them. With
    `text` in place of `prompt` a reward model's tokenizer joins the two as a pair. A query may have a single `completion` after its
    `prompt`: what is measured of it is its own log-probability, or reward, and its proponents are the pairs that taught it.

    Args:
        model: For "dpo" a language model, for "bradley-terry" one that returns logits of shape (B, 1), a decoder or an encoder.
        tokenizer: Its Hugging Face tokenizer.
        form: Which of the two.
        reference: The frozen model that "dpo" holds the policy against, which is put into evaluation mode and run once on every pair; None
            where records bring its log-probabilities along.
        beta: Of "dpo".
        texts: How long prompt and answer may be together.
        measure: What a query asks about: "margin" (log p(chosen) - log p(rejected), or the difference of rewards, which need no reference),
            "loss" (the log-probability of the preference), or a function of model and batch that gives one value per query, shape (B,).
        **options: `unit`, what a measurement of one's own is counted in, and those of `AbstractTask`.

    Raises:
        BadInput: If `beta` is not positive, a reference is given that is not used, or `unit` for a measurement that has its own.
        UnknownOption: If `form` or `measure` is none of these.
    """

    kind = "preference"
    draws = 2

    @records_only(texts=TextLimits)
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        form: Literal["dpo", "bradley-terry"] = "dpo",
        reference: nn.Module | None = None,
        beta: float = 0.1,
        texts: TextLimits = TextLimits(),
        measure: Literal["margin", "loss"] | Measure = "margin",
        **options: Any,
    ):
        unit = options.pop("unit", None)
        super().__init__(model, **options)
        if form not in ("dpo", "bradley-terry"):
            raise UnknownOption(found=f"form={form!r}", needed="one of: dpo, bradley-terry", do="pick one")
        if not beta > 0 or (form != "dpo" and reference is not None):
            raise BadInput(
                found=f"beta={beta}" if form == "dpo" else "a reference for form='bradley-terry'",
                needed="a positive number" if form == "dpo" else "none, since rewards are compared with each other",
                do="pass that of the training" if form == "dpo" else "leave it out",
            )
        margin = "nats of log-probability, chosen less rejected" if form == "dpo" else "reward, chosen less rejected"
        self.measure, self.unit = chosen_measure(
            measure, unit, {"margin": margin, "loss": "nats of the preference's log-probability"}
        )
        self.tokenizer, self.form, self.beta = tokenizer, form, beta
        self.reference = None if reference is None else reference.eval()
        # Reads texts; it never runs.
        limit = min(texts.max_length or 1 << 20, int(getattr(tokenizer, "model_max_length", 1 << 20)), 1 << 20)
        self._texts = CausalLM(model, tokenizer, long=texts.long, max_length=limit)

    @property
    def preprocessing(self) -> str:
        """Digest of the tokenizer and of the loss; the reference's log-probabilities are part of the examples."""
        return hashlib.sha256(f"{self.form}:{self.beta}:{self._texts.preprocessing}".encode()).hexdigest()

    def prepare(self, records: Iterable[Any]) -> Dataset:
        """Tokenize both answers and have the reference read them; see the class for what a record may be."""
        data = examples_from(records, lambda number, record: [self._example(number, record)], skip_bad=self.skip_bad)
        return data if self.reference is None else replace(data, examples=self._referred(data.examples))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Rows of both answers, shape (2 B, T); signs (B, 2), 1 and -1, or 0 for an answer that is not there; the reference's part (B,)."""
        rows = [_side(example, side) for example in examples for side in _SIDES]
        if self.form == "dpo":
            batch = token_rows(rows, padding_token(self.model, self.tokenizer) or 0, self.device)
        else:
            batch = stacked([Example("", {**row, "target": 0}) for row in rows], self.model, None, self.tokenizer)
        for name in ("signs", "reference"):
            values = torch.as_tensor(np.stack([example.fields[name] for example in examples]))
            batch[name] = values.to(self.device, torch.float64)
        return batch

    def margins(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability, or reward, of the chosen answer less that of the rejected, shape (B,).

        Raises:
            BadInput: If a reward model gives more than one number for an answer.
        """
        if self.form == "dpo":
            scores_R = -next_token_losses(model, batch)
        else:
            scores_R = model_outputs(model, batch)
            if scores_R.numel() != len(scores_R):
                raise BadInput(
                    found=f"a reward model that returns numbers of shape {tuple(scores_R.shape)} for {len(scores_R)} answers",
                    needed="one each",
                    do="load it with num_labels=1",
                )
        return (scores_R.reshape(-1, 2) * batch["signs"].to(scores_R.dtype)).sum(1)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """-log sigmoid(h) of each pair in nats, shape (B,)."""
        return nn.functional.softplus(-self._h(model, batch))

    def measurement(self, model: nn.Module, batch: Batch) -> Tensor:
        """What `measure` says, shape (B,)."""
        if not isinstance(self.measure, str):
            return self.measure(model, batch)
        return self.margins(model, batch) if self.measure == "margin" else -self.loss(model, batch)

    @property
    def highest_measurement(self) -> float | None:
        """0 for the log-probability of the preference, None for any other measurement."""
        return 0.0 if self.measure == "loss" else None

    def output_function(self, model: nn.Module, batch: Batch) -> Tensor:
        """h, the log-odds of the preference, shape (B,)."""
        return self._h(model, batch)

    def output_weights(self, values_B: Tensor, batch: Batch) -> Tensor:
        """One minus the probability of the preference, shape (B,)."""
        return torch.sigmoid(-values_B)

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """h, the log-odds of a yes, one row per pair."""
        h_B1 = self._h(model, batch)[:, None]
        return Outputs(h_B1, torch.arange(len(h_B1), device=h_B1.device), torch.ones_like(h_B1.detach()), "bernoulli")

    def positions(self, batch: Batch) -> Tensor:
        """True at real tokens of both answers, shape (B, 2 T)."""
        mask_RT = batch["attention_mask"] if self.form == "dpo" else batch["inputs"]["attention_mask"]
        return mask_RT.bool().view(len(batch["signs"]), -1)

    def _h(self, model: nn.Module, batch: Batch) -> Tensor:
        if not bool(batch["signs"].all()):
            raise BadInput(
                found="a training record, or a query with measure='loss', that has no rejected answer",
                needed="'chosen' and 'rejected'",
                do="add the other answer; to train on single answers use whence.CausalLM",
            )
        margins_B = self.margins(model, batch)
        if self.form != "dpo":
            return margins_B
        if bool(batch["reference"].isnan().any()):
            raise BadInput(
                found="pairs without the log-probabilities of a reference",
                needed=f"{_REFERENCE[0]!r} and {_REFERENCE[1]!r} in each record, or the frozen model itself",
                do="pass reference=... to the task (--reference FOLDER)",
            )
        return self.beta * (margins_B - batch["reference"].to(margins_B.dtype))

    def _example(self, number: int, record: Any) -> Example:
        has_pair = isinstance(record, Mapping) and set(_SIDES) <= set(record)
        is_single = isinstance(record, Mapping) and "completion" in record and not set(_SIDES) & set(record)
        if not has_pair and not is_single:
            what = f"the fields {sorted(map(str, record))}" if isinstance(record, Mapping) else f"a {type(record).__name__}"
            missing = next((side for side in _SIDES if isinstance(record, Mapping) and side not in record), "chosen")
            raise BadInput(
                found=f"record {number} with {what}, without {missing!r}",
                needed="'prompt', 'chosen' and 'rejected'; of a query 'prompt' and 'completion' will do",
                do="convert the records; on the command line ask with --file and a file of such records",
            )
        sides = [self._row(number, record, side) for side in (_SIDES if has_pair else ("completion",))]
        rows = sides if has_pair else [sides[0], sides[0]]
        fields = {f"{side}.{name}": value for side, row in zip(_SIDES, rows, strict=True) for name, value in row.fields.items()}
        fields["signs"] = np.asarray([1.0, -1.0 if has_pair else 0.0])
        fields["reference"] = np.asarray(_given_reference(number, record))
        text = sides[0].text + (f"\n[rejected] {sides[1].text[sides[1].prompt :]}" if has_pair else "")
        length = 2 * max(row.length for row in rows)
        return Example(record_id(number, record), fields, length, record_source(number, record), text, prompt=sides[0].prompt)

    def _row(self, number: int, record: Mapping[str, Any], side: str) -> Example:
        """One answer as the model reads it: its inputs, text and where the answer begins in it."""
        answer = record[side]
        if "text" in record and self.form != "dpo":
            pair = {"text": record["text"], "text_pair": answer}
            texts = Texts(self.tokenizer, self._texts.max_length, self._texts.long == "truncate")
            inputs = texts.encoded(number, record_id(number, record), pair, vocabulary_size(self.model))
            return Example("", inputs, len(inputs["input_ids"]), text="\n".join(pair.values()), prompt=len(pair["text"]) + 1)
        prompt = record.get("prompt")
        if isinstance(answer, str):
            read = {"text": answer} if prompt is None else {"prompt": prompt, "completion": answer}
        else:
            read = {"messages": [*(prompt or ()), *answer], "tools": record.get("tools")}
        (example,) = self._texts.examples(number, {**read, "id": record_id(number, record)})
        if self.form == "dpo":
            return replace(example, fields={name: example.fields[name] for name in ("input_ids", "labels")})
        ids = np.asarray(example.fields["input_ids"], np.int64)
        return replace(example, fields={"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def _referred(self, examples: Sequence[Example]) -> list[Example]:
        """Examples with the reference's margin, where they have none."""
        assert self.reference is not None
        referred = list(examples)
        missing = [index for index, example in enumerate(referred) if np.isnan(example.fields["reference"])]
        for start in range(0, len(missing), _AT_ONCE):
            some = missing[start : start + _AT_ONCE]
            with torch.no_grad():
                margins = self.margins(self.reference, self.collate([referred[index] for index in some])).double().cpu().numpy()
            for index, margin in zip(some, margins, strict=True):
                fields = {**referred[index].fields, "reference": np.asarray(margin)}
                referred[index] = replace(referred[index], fields=fields)
        return referred


def _side(example: Example, side: str) -> dict[str, Any]:
    """One answer's fields."""
    return {name.partition(".")[2]: value for name, value in example.fields.items() if name.startswith(f"{side}.")}


def _given_reference(number: int, record: Mapping[str, Any]) -> float:
    """What the reference gives a record's chosen answer more than the rejected one; NaN if it does not say.

    Raises:
        BadInput: If it says so of one answer only, or no number.
    """
    given = [scalar(record.get(name)) for name in _REFERENCE]
    if all(value is None for value in given):
        return float("nan")
    if not all(isinstance(value, int | float) and np.isfinite(value) for value in given):
        raise BadInput(
            found=f"record {number} with {_REFERENCE[0]}={given[0]!r:.40} and {_REFERENCE[1]}={given[1]!r:.40}",
            needed="a finite log-probability of either answer, in nats",
            do="fill them in, or leave both out and pass the reference",
        )
    return float(given[0]) - float(given[1])
