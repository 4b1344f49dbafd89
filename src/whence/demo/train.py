"""Training on a handful of documents, from scratch or from weights that are there, the same way every time."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from whence.curvature import inverse_preconditioner
from whence.data import Dataset, digest_of
from whence.demo.model import DEFAULTS, Settings, new_model
from whence.errors import BadInput, NonFinite
from whence.progress import meter
from whence.recording import Recorder
from whence.records import Recipe
from whence.store import read_tensors
from whence.tasks import CausalLM

__all__ = ["QueryLosses", "Retrain", "Trained", "train"]

_IGNORED = -100
# Of a recorded run, spread evenly, as Bae et al. (2024) have them.
_CHECKPOINTS = 6
_ADAM_EPSILON = 1e-8
_ADAM_BETAS = (0.9, 0.95)
# Batches of similar length inside a window of this many: little padding, yet a new mixture in every epoch.
_WINDOW_BATCHES = 8


@dataclass(frozen=True)
class Trained:
    """A model after training.

    Args:
        model: In evaluation mode.
        recipe: What damping needs to know of the run.
        losses: Mean loss per token in nats, one per epoch, measured while training.
    """

    model: GPT2LMHeadModel
    recipe: Recipe
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Retrain:
    """Training as a removal test calls it: picklable, from a mask and a seed to a model.

    Args:
        dataset: All tokenized examples.
        vocabulary: Number of tokens.
        settings: Size and schedule.
        start: Weights (.safetensors) that every run starts from; None starts from the seed's own.
    """

    dataset: Dataset
    vocabulary: int
    settings: Settings
    start: Path | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data, the settings and the first weights: equal when the same mask and seed give the same model."""
        settings = json.dumps(asdict(self.settings), sort_keys=True)
        start = () if self.start is None else tuple(tensor for _, tensor in sorted(read_tensors(self.start).items()))
        return digest_of(self.dataset.fingerprint, self.vocabulary, settings, torch.__version__, *start).hex()

    def __call__(self, keep: Tensor, seed: int) -> GPT2LMHeadModel:
        """The model trained on what `keep` marks; shape (N,)."""
        return train(self.dataset, self.vocabulary, keep=keep, seed=seed, settings=self.settings, start=self.start).model

    def recorded(self, seed: int, folder: Path, data: Dataset) -> GPT2LMHeadModel:
        """The same on all examples of the data, recorded for attribution through training."""
        return train(data, self.vocabulary, seed=seed, settings=self.settings, start=self.start, record=folder).model


@dataclass(frozen=True)
class QueryLosses:
    """What a removal test measures: the loss of each query in nats, summed over its scored tokens.

    Args:
        queries: Tokenized, as `CausalLM.prepare` returns them.
    """

    queries: Dataset

    @property
    def fingerprint(self) -> str:
        """Digest of the queries."""
        return self.queries.fingerprint

    def __call__(self, model: GPT2LMHeadModel) -> Tensor:
        """One loss per query, shape (Q,)."""
        task = CausalLM(model, None)
        with torch.no_grad():
            return torch.cat([task.loss(model, task.collate([query])) for query in self.queries.examples])


def train(
    dataset: Dataset,
    vocabulary: int,
    *,
    keep: Tensor | None = None,
    seed: int = 0,
    settings: Settings = DEFAULTS,
    start: Path | None = None,
    record: Path | None = None,
    quiet: bool = True,
) -> Trained:
    """Train on the kept examples, from scratch or from weights that are there.

    Leaving examples out keeps the number of epochs, the batch size and the shape of the schedule; there are fewer steps, because
    there is less to read. The order of what remains is the same as with everything kept. What is minimised is the mean loss per token
    over the kept examples: every token counts the same, whatever batch it is in.

    The same arguments give the same bits on one machine and number of threads.

    Args:
        dataset: Tokenized examples with `input_ids` and `labels`, as `CausalLM.prepare` returns them.
        vocabulary: Number of tokens the model knows.
        keep: Shape (N,), False for examples to leave out; None keeps all.
        seed: Of the order, and of the initial weights unless there is a `start`.
        settings: Size and schedule.
        start: Weights (.safetensors) to start from, as a model of this size has them.
        record: Folder where the run is recorded.
        quiet: No progress bar.

    Returns:
        The model with its recipe.

    Raises:
        BadInput: If nothing is kept, or `keep` does not fit the dataset.
        NonFinite: If the loss stops being a number.
    """
    rows = list(range(len(dataset))) if keep is None else torch.nonzero(keep).flatten().tolist()
    if not rows or (keep is not None and len(keep) != len(dataset)):
        raise BadInput(
            found=f"{len(rows)} kept examples of {len(dataset)}, by a mask of {len(rows) if keep is None else len(keep)}",
            needed="one True or False per example, and at least one True",
            do="check the mask",
        )
    tokens = sum(int((np.asarray(dataset.examples[i].fields["labels"])[1:] != _IGNORED).sum()) for i in rows)
    tokens_per_example = tokens / len(rows)
    model = new_model(vocabulary, seed, settings)
    if start is not None:
        # Not strict: the head is the embedding, which is written once.
        model.load_state_dict(read_tensors(start), strict=False)
    task = CausalLM(model, None)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=_ADAM_BETAS,
        eps=_ADAM_EPSILON,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    num_steps = settings.epochs * -(-len(rows) // settings.batch_examples)
    rates = _learning_rates(num_steps, settings)
    generator = np.random.default_rng(seed)
    losses = []
    model.train()
    # Divided by a constant, not by a batch's own tokens: a mean over the tokens of all batches.
    divisor = settings.batch_examples * tokens_per_example
    with ExitStack() as stack:
        progress = stack.enter_context(meter(f"training, seed {seed}", num_steps, quiet=quiet))
        recorder = None
        if record is not None:
            every = -(-num_steps // _CHECKPOINTS)
            recorder = stack.enter_context(Recorder(record, model, optimizer, every=every, seed=seed, data=dataset))
            recorder.resume(0)  # one that was stopped begins again
        for _ in range(settings.epochs):
            total = 0.0
            for batch in _epoch(dataset, rows, settings.batch_examples, generator):
                optimizer.param_groups[0]["lr"] = next(rates)
                if recorder is not None:
                    recorder.batch([dataset.examples[index].id for index in batch], divided_by=divisor)
                loss = _summed_loss(model, task.collate([dataset.examples[index] for index in batch]))
                (loss / divisor).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += float(loss.detach())
                progress.advance()
            losses.append(total / tokens)
            if not np.isfinite(total):
                raise NonFinite(found=f"a loss of {total} with seed {seed}", needed="a number", do="lower the learning rate")
    model.eval()
    recipe = Recipe(
        optimizer="adamw",
        learning_rate_sum=sum(_learning_rates(num_steps, settings)),
        momentum=0.0,
        weight_decay=settings.weight_decay,
        loss_divisor=tokens_per_example,
        inverse_preconditioner=inverse_preconditioner(model, optimizer),
    )
    return Trained(model, recipe, tuple(losses))


def _summed_loss(model: GPT2LMHeadModel, batch: dict[str, Tensor]) -> Tensor:
    """What `CausalLM.loss` gives, summed, without the head on padding: with this vocabulary the head is half of the arithmetic."""
    labels_BT = batch["labels"][:, 1:]
    is_scored_BT = labels_BT != _IGNORED
    # Padding is on the right and attention is causal, so no real position sees it: no mask is needed.
    hidden_BTH = model.transformer(input_ids=batch["input_ids"]).last_hidden_state[:, :-1]
    logits_SV = model.lm_head(hidden_BTH[is_scored_BT])
    return nn.functional.cross_entropy(logits_SV, labels_BT[is_scored_BT], reduction="sum")


def _learning_rates(num_steps: int, settings: Settings) -> Iterator[float]:
    rising = max(1, round(settings.warmup * num_steps))
    for step in range(num_steps):
        share = min((step + 1) / rising, (num_steps - step) / max(1, num_steps - rising))
        yield settings.learning_rate * share


def _epoch(dataset: Dataset, rows: Sequence[int], size: int, generator: np.random.Generator) -> list[list[int]]:
    # Drawn over all examples, so that leaving one out does not reshuffle the others.
    chosen = np.zeros(len(dataset), dtype=bool)
    chosen[list(rows)] = True
    order = [int(index) for index in generator.permutation(len(dataset)) if chosen[index]]
    batches = []
    for start in range(0, len(order), size * _WINDOW_BATCHES):
        window = sorted(order[start : start + size * _WINDOW_BATCHES], key=lambda index: dataset.examples[index].length)
        batches += [window[first : first + size] for first in range(0, len(window), size)]
    # One draw whatever the number of batches, so that the next epoch's order does not depend on what was left out.
    np.random.default_rng(int(generator.integers(1 << 32))).shuffle(batches)
    return batches
