"""Choose among a step's candidates while a model is trained: those whose gradients would lower the loss of a validation set.

Axes: B candidates, N validation examples, O outputs, I inputs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.capture import Blocks, as_blocks, check_task, forecast, frozen, plan_units, with_weights
from whence.data import Dataset, batches
from whence.errors import BadInput, NonFinite, Unsupported
from whence.optimizers import candidates, counted, flat_state
from whence.pipeline.inputs import refuse_bare_model
from whence.progress import meter
from whence.recording import check_device, check_known, check_one_model, names_of, narrow_steps, numbered
from whence.score import exact_scores
from whence.select.budget import Budget, soft_weights
from whence.settings import SelectInTraining, records_only
from whence.tasks import AbstractTask

__all__ = ["Chosen", "TrainingSelection", "select_trainer"]


@dataclass(frozen=True)
class Chosen:
    """What a step is to be trained on.

    Args:
        ids: Of the candidates that are kept, in their order.
        rows: Their places among the candidates.
        weights_B: Of every candidate, mean 1 over those that are kept; 0 of those that are not.
        scores_B: Of every candidate: by how much a step along its gradient alone, of length 1, lowers the mean validation loss.
    """

    ids: tuple[str, ...]
    rows: tuple[int, ...]
    weights_B: Tensor
    scores_B: Tensor


class TrainingSelection:
    """Scores the candidates of a step by the model as it is then, and keeps the best.

        selection = whence.select.TrainingSelection(task, train, validation, optimizer)
        for ids in loader:                     # more of them than a step is to be trained on
            chosen = selection.choose(ids)
            loss(model, chosen.ids).backward()
            optimizer.step()

    A candidate's score is the inner product of two gradients, that of its loss and that of the mean measurement of the validation set, with
    P between them, what the optimizer divides gradients by (1 / (sqrt(v) + eps) of Adam, as LESS takes it along a run, arXiv 2402.04333;
    1 of SGD): to first order, what the coming step would do to the validation set if it were made of this candidate alone. Gradients are
    whole and those of the model in evaluation mode. Scoring takes a pass forwards and one back over the candidates, without gradients by the
    weights.

    Args:
        task: The model that is trained, its loss, and what is measured of the validation set.
        train: The training data; the ids of candidates are its.
        validation: What the model should get better at. Not what the outcome is judged by.
        optimizer: Of the training, for P and for the learning rates of its groups; not needed with `plain`, and by a Trainer, which has it.
        config: How many are kept, and how they are ranked.

    Raises:
        BadInput: If what is to be kept is in tokens, or a model is passed for a task.
    """

    @records_only(config=SelectInTraining)
    def __init__(
        self,
        task: AbstractTask,
        train: Dataset | Iterable[Any],
        validation: Dataset | Iterable[Any],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        config: SelectInTraining = SelectInTraining(),
    ):
        refuse_bare_model(task)
        self.task, self.optimizer, self._config = task, optimizer, config
        self._budget = Budget.read(config.keep)
        if self._budget.unit == "tokens":
            raise BadInput(found=f"keep={config.keep!r}", needed="a share or a number of examples", do="write such as '50%'")
        self._train = train if isinstance(train, Dataset) else task.prepare(train)
        self._validation = validation if isinstance(validation, Dataset) else task.prepare(validation)
        self._row_of = {name: row for row, name in enumerate(self._train.ids)}
        self._plan = plan_units(task)
        check_task(task, self._plan, self._train.examples)
        check_task(task, self._plan, self._validation.examples, objective="measurement")
        self._positions = forecast(task, self._plan, self._train.examples).batch_positions
        self._steps, self._wanted = 0, {}

    @property
    def is_weighted(self) -> bool:
        """Whether examples are weighed instead of chosen."""
        return self._config.reweight

    def has(self, name: str) -> bool:
        """Whether the training data has an example of this id."""
        return name in self._row_of

    def choose(self, ids: Iterable[Any]) -> Chosen:
        """Score the candidates of a step, and keep the best.

        Args:
            ids: Of the candidates.

        Returns:
            Which of them to train on.

        Raises:
            BadInput: If there is none, or one is not of the training data.
            NonFinite: If a score is NaN or infinite.
        """
        names = names_of(ids)
        unknown = [name for name in names if name not in self._row_of]
        if unknown or not names:
            raise BadInput(
                found=f"{len(names)} candidates"
                + (f", one of them {unknown[0]!r}, not in the training data" if unknown else ""),
                needed=f"ids such as {self._train.ids[0]!r}",
                do="pass the ids of the candidates as the training data has them",
            )
        examples = [self._train.examples[self._row_of[name]] for name in names]
        with meter("scan", len(names), quiet=True) as progress:
            scores = exact_scores(
                self.task, self._plan, examples, self._blocks(), max_positions=self._positions, progress=progress
            )
        scores_B = scores.scores_QN[0]
        if not bool(torch.isfinite(scores_B).all()):
            row = int((~torch.isfinite(scores_B)).nonzero()[0])
            raise NonFinite(
                found=f"a score of {float(scores_B[row])} for {names[row]!r}",
                needed="finite gradients",
                do="lower the learning rate",
            )
        if self._config.per_token:
            scores_B = scores_B / torch.tensor([max(example.length, 1) for example in examples], dtype=torch.float64)
        weights_B = self._weights(scores_B)
        rows = tuple(weights_B.nonzero()[:, 0].tolist())
        return Chosen(tuple(names[row] for row in rows), rows, weights_B, scores_B)

    def _weights(self, scores_B: Tensor) -> Tensor:
        count = min(max(1, self._budget.units(len(scores_B))), len(scores_B))
        if self._config.reweight:
            weights_B = soft_weights(scores_B, count)
            return weights_B / weights_B[weights_B > 0].mean()
        weights_B = torch.zeros_like(scores_B)
        weights_B[scores_B.argsort(descending=True, stable=True)[:count]] = 1.0
        return weights_B

    def _blocks(self) -> Blocks:
        """Minus P times the gradient of the mean measurement, per unit, shape (1, O, I); the gradient is taken anew every so often."""
        if self._steps % self._config.every == 0:
            self._wanted = self._mean_gradient()
        self._steps += 1
        gains = {} if self._config.plain else self._gains()
        return as_blocks(self._plan, {name: -(value * gains.get(name, 1.0))[None] for name, value in self._wanted.items()})

    def _mean_gradient(self) -> dict[str, Tensor]:
        """Of the mean measurement of the validation set, by parameter."""
        task, examples = self.task, self._validation.examples
        names = [name for unit in self._plan.units for name in unit.parameters]
        leaves = {name: value.detach().requires_grad_(name in names) for name, value in task.model.named_parameters()}
        total = {
            name: torch.zeros_like(leaves[name], dtype=torch.promote_types(leaves[name].dtype, torch.float32)) for name in names
        }

        def add_up() -> None:
            for batch in batches([example.length for example in examples], max_positions=self._positions):
                values_B = task.measurement(task.model, task.collate([examples[row] for row in batch]))
                gradients = torch.autograd.grad(
                    values_B.sum() / len(examples), [leaves[name] for name in names], allow_unused=True
                )
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        total[name] += gradient

        with frozen(task.model), torch.enable_grad():
            with_weights(task.model, leaves, add_up)
        return total

    def _gains(self) -> dict[str, Tensor]:
        """What the optimizer multiplies gradients with as it is now, by parameter; learning rates as shares of the largest.

        Raises:
            BadInput: If there is no optimizer, or it steps none of the model's parameters.
            Unsupported: If it is no diagonal.
        """
        if self.optimizer is None:
            raise BadInput(
                found="a selection without the training's optimizer",
                needed="what gradients are divided by in a step",
                do="pass the optimizer, or SelectInTraining(plain=True) for plain inner products",
            )
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's, around the one that steps
        name_of = {id(value): name for name, value in self.task.model.named_parameters()}
        stepped = [id(value) for group in getattr(optimizer, "param_groups", ()) for value in group["params"]]
        if not any(name_of.get(key) in self._wanted for key in stepped):
            raise BadInput(
                found=f"a {type(optimizer).__name__} that steps no parameter of the task's model",
                needed="the optimizer that trains this very model, not a copy of it",
                do="make the task and the optimizer of one model",
            )
        largest = max(float(group["lr"]) for group in optimizer.param_groups)
        gains = {name: torch.zeros(()) for name in self._wanted}  # of what it does not step
        for group in optimizer.param_groups:
            rate = float(group["lr"]) / largest if largest else 1.0
            for parameter in group["params"]:
                name = name_of.get(id(parameter))
                if name in gains:
                    gains[name] = rate * _diagonal(optimizer, parameter, group, name)
        return {name: gain.to(self._wanted[name]) for name, gain in gains.items()}


def _diagonal(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any], name: str) -> Tensor:
    """What one parameter's gradient is multiplied with, 1 before its first step.

    Raises:
        Unsupported: If it is no diagonal.
    """
    state = flat_state(optimizer.state.get(parameter, {}))
    if not state:
        return torch.ones((), dtype=torch.float64)
    rules = candidates(group, state.keys(), parameter.ndim)
    diagonal = next((rule.diagonal for rule in rules if rule.diagonal is not None), None)
    if diagonal is not None:
        return diagonal(state, group, counted(state, group))
    if not rules or not all(rule.is_plain for rule in rules):
        raise Unsupported(
            found=f"{type(optimizer).__name__}, which multiplies the gradient of {name!r} with no diagonal that is known",
            needed="SGD, Adam, AdamW, LAMB or one that keeps the same",
            do="pass SelectInTraining(plain=True), for plain inner products",
        )
    return torch.ones((), dtype=torch.float64)


def select_trainer(trainer: Any, selection: TrainingSelection, *, id_field: str = "id") -> None:
    """Have a Hugging Face Trainer train on the best of each of its batches only.

        selection = whence.select.TrainingSelection(task, train, validation)  # task.model is the Trainer's model
        trainer = Trainer(model, arguments, train_dataset=data)
        whence.select.select_trainer(trainer, selection)
        trainer.train()

    The Trainer's batch is the candidates: `per_device_train_batch_size` of twice what a step is to be trained on, for half of them. The loss
    is the mean over what is left. P is of the Trainer's optimizer. A run may be recorded and logged too, if that is asked for before.

    Args:
        trainer: A Trainer, before `train()`, whose examples are those of the selection.
        selection: What chooses; without weights.
        id_field: Field of the examples that holds their id; without it they are numbered from 0.

    Raises:
        BadInput: If the Trainer trains another model, or examples that the selection does not have.
        Unsupported: If it accumulates gradients, or trains in float16 or on several devices, or the selection weighs examples.
    """
    check_device(trainer, "one device, in float32 or bfloat16", "train so, or call choose() in a loop of your own")
    steps, weighs = trainer.args.gradient_accumulation_steps, selection.is_weighted
    if steps != 1 or weighs:
        raise Unsupported(
            found="weights for the examples of a Trainer" if weighs else f"a Trainer with gradient_accumulation_steps={steps}",
            needed="a choice"
            if weighs
            else "batches that are a step each: the Trainer counts the tokens of a step before they are chosen from",
            do="leave reweight out" if weighs else "raise per_device_train_batch_size instead",
        )
    check_one_model(trainer, selection.task.model, "selection", "scored")
    ids = numbered(trainer, id_field)
    check_known(ids, selection.has, "selection")

    def chosen(names: Sequence[str]) -> Sequence[int]:
        selection.optimizer = trainer.optimizer  # which there is from the first step on
        return selection.choose(names).rows

    narrow_steps(trainer, ids, chosen)
