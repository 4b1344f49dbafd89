"""Records an ordinary training run: what every step did, and the weights now and then.

Axes: S steps, G groups of parameters, M members of batches.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.optimizers import Watch
from whence.recording.folder import VERSION, RunFolder
from whence.recording.frozen import Frozen, check_optimizers
from whence.recording.ids import names_of
from whence.recording.online import OnlineCurvature
from whence.recording.ranks import ranks_of
from whence.recording.scaler import check_scaler, overflowed, watched_scaler
from whence.recording.step_hooks import StepHooks, several
from whence.recording.steps import Steps, optimizer_settings, settings_seen
from whence.recording.weights import bare, checkpoint_tensors, load_checkpoint, lost_state
from whence.store.files import check_writable, locked
from whence.tasks import structure_of

__all__ = ["VERSION", "Recorder"]

# Steps of an optimizer that are held against what is known of optimizers; the first alone does not tell all of them apart.
_LOOKS = 3


class Recorder:
    """Keeps what attribution through training needs of a run, in one folder, while the run goes on as it would without.

    One line in the loop says which examples a batch holds; the rest is read off the optimizer when it steps: learning rates, momentum, weight
    decay, second moments. The initial weights, those of every `every`-th step and the last ones are kept, with the optimizer's state.

        with whence.Recorder("run", model, optimizer, every=500) as run:
            for ids, inputs, targets in loader:
                run.batch(ids)
                loss(model(inputs), targets).backward()
                optimizer.step()
                optimizer.zero_grad()

    The folder is then what `whence.attribute(..., method=whence.Source(run="run"))` reads.

    Weights that are frozen when the recorder is made (no gradient asked for, not in the optimizer) are written once, at the end. Of several
    processes with a model in `DistributedDataParallel` each says the ids of its own part of a batch, and the first writes the weights.

    Args:
        folder: Where the run is kept; made if it is not there.
        model: The model that is trained; compiled or in `DistributedDataParallel` it is kept under the names of the model inside.
        optimizer: Any of torch's base class, or several that each step parameters of their own, such as Muon and AdamW. What it does
            is told by its state and its first steps, whatever its name; docs/recording.md says which are understood.
        every: Steps between checkpoints, counted from the start of a stage. A sixth of the run is what Bae et al. (2024) take.
        seed: Of the run, for the record.
        scaler: The `torch.amp.GradScaler` of a run in float16. A step that it skips is not a step of the record; without it the examples of a
            skipped step would be counted with the next one's.
        data: The training data as `task.prepare` makes it: a stopped run goes on with the same only, and attribution refuses another, down to
            the contents of an example. A text that tells it from another serves the first.
        curvature: Keeps bases of the curvature along the run, see `whence.runs.OnlineCurvature`; None keeps none.

    Raises:
        BadInput: If `every` is not positive.
        Unsupported: If the optimizer steps parameters that the model does not have, or several processes train in another way.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        every: int,
        seed: int | None = None,
        scaler: Any = None,
        data: Dataset | str | None = None,
        curvature: OnlineCurvature | None = None,
    ):
        if every < 1:
            raise BadInput(found=f"every={every}", needed="1 or more steps between checkpoints", do="correct it")
        self.folder = Path(folder)
        self.model = bare(model)
        self.every = every
        self._ranks = ranks_of(model)
        fingerprint = data.fingerprint if isinstance(data, Dataset) else None
        about = {"seed": seed, "data": data if fingerprint is None else fingerprint, "fingerprint": fingerprint}
        about["structure"] = asdict(structure_of(self.model))
        self._run = RunFolder(self.folder, self._ranks, about)
        self._scaler = scaler
        self._stack = ExitStack()
        self._pending: list[tuple[list[str], float | None]] = []
        self._losses: list[float] = []
        self._factor = 1.0
        self._must_restore = False
        self._hooks: StepHooks | None = None
        self._curvature = curvature
        self._optimizers = several(optimizer)
        self._frozen = Frozen(self.model, self._optimizers)
        self._check_optimizers()

    @property
    def log(self) -> Steps:
        """What the steps so far did."""
        return self._run.log

    @property
    def steps(self) -> int:
        """Steps recorded so far."""
        return self.log.stop

    def __enter__(self) -> "Recorder":
        check_writable(self.folder)
        with ExitStack() as stack:
            stack.enter_context(locked(self._run.folder))
            # Whether there is a run is the first process's to say: the others write before it does.
            if self._ranks.of_first(self._run.is_new):
                self._frozen.mark()
                if self._ranks.rank == 0:
                    self._run.record["frozen"] = self._frozen.digest()
                self.checkpoint()
            else:
                self._run.take_up(self._tensors())
                self._must_restore = True
            stack.enter_context(watched_scaler(self._scaler, self._after_scaler))
            self._stack = stack.pop_all()
        self._watch(self._optimizers)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = None
        if self._curvature is not None:
            self._curvature.close()
        try:
            if kind is None and not self._must_restore:
                self.checkpoint(finished=True)
        finally:
            self._stack.close()

    def batch(self, ids: Iterable[Any], *, divided_by: float | None = None, inputs: Mapping[str, Any] | None = None) -> None:
        """Say which examples the coming step is computed on; once per micro-batch where gradients are accumulated.

        Args:
            ids: Of the examples, as those of the training data in `attribute`.
            divided_by: What the sum of these examples' losses is divided by in the loss that is minimised: 1 for a sum, the number of
                scored tokens for a mean over tokens. None for a mean over the examples of the whole step.
            inputs: What the model gets by keyword: digests of tokens and labels are kept, which attribution compares with its examples.

        Raises:
            BadInput: If the batch is empty, the divisor is not positive, or `inputs` are not by keyword.
        """
        self._check_open()
        self._check_restored()
        names = names_of(ids)
        if not names or (divided_by is not None and not divided_by > 0):
            raise BadInput(
                found=f"a batch of {len(names)} examples with divided_by={divided_by}",
                needed="at least one id and a positive divisor",
                do="pass the ids of the batch's examples",
            )
        self.log.see(names, {} if inputs is None else inputs)
        self._pending.append((names, divided_by))
        if self._curvature is not None:
            self._curvature.watch(len(names), self.steps)
        if self._hooks is not None:
            self._hooks.forget()

    def loss(self, value: Tensor | float) -> None:
        """Say what goes backward, as it is minimised, after each `batch`: attribution then sees whether it is the task's loss.

        Looked at where weights are kept only, a step at a time.

        Args:
            value: Divided by what `batch` was told; of accumulated micro-batches each one's part, without the scale of a gradient scaler.
        """
        if self._run.has_checkpoint(self.steps):
            self._losses.append(float(value.detach() if isinstance(value, Tensor) else value))

    def scaled(self, factor: float) -> None:
        """Say that the gradients of the coming step were multiplied by a factor, as clipping does."""
        self._factor *= float(factor)

    def clip(self, max_norm: float) -> Tensor:
        """Clip the gradients as `torch.nn.utils.clip_grad_norm_` does, and record by how much.

        Args:
            max_norm: What their norm is cut to.

        Returns:
            The norm before.
        """
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)
        self.scaled(min(1.0, max_norm / (float(norm) + 1e-6)))
        return norm

    def stage(self, name: str, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None) -> None:
        """Begin a stage of training on other data: pretraining, then fine-tuning.

        Every stage is attributed to the examples that it was trained on. Where a stopped run goes on, call it again for the stage that
        was under way, before `restore()`, which loads the state of the stage's optimizer.

        Args:
            name: Of the stage that begins, for people; one that is there already is not begun again.
            optimizer: If it is a new one, or new ones.
        """
        self._check_open()
        is_begun = any(stage["name"] == name for stage in self._run.record["stages"])
        if not is_begun:
            self._check_restored()
            if self.steps:
                self.checkpoint()  # with the state of the optimizer that came there
        if optimizer is not None:
            self._watch(several(optimizer))
        if not is_begun:
            self._run.record["stages"].append({"name": name, "start": self.steps, "is_new": optimizer is not None})

    def checkpoint(self, *, finished: bool = False) -> None:
        """Keep the weights as they are now, with the optimizer's state; happens by itself every `every` steps and at the end.

        Args:
            finished: Whether the run ends here.
        """
        if self._ranks.rank == 0:
            self._frozen.check_unchanged()
            if finished and self._frozen.parameters:
                self._run.add_checkpoint(self.steps, checkpoint_tensors(self.model, self._optimizers), "final")
            elif not self._run.has_checkpoint(self.steps):
                self._run.add_checkpoint(self.steps, self._tensors())
            if self._curvature is not None and (bases := self._curvature.tensors()):
                self._run.add_bases(self.steps, bases)
            self._run.record["finished"] = finished
            if unrestored := lost_state(self._optimizers):
                self._run.record["unrestored"] = unrestored
        self.flush()

    def flush(self) -> None:
        """Write what was recorded since the last time, without weights: call it where your own checkpoint is written."""
        self._run.write()

    def restore(self) -> int:
        """Load the last checkpoint of a run that was stopped into the model and the optimizer.

        Random numbers, schedules and the order of the data are the caller's to bring to the same step.

        Returns:
            The step to go on from; 0 for a new run.

        Raises:
            Unsupported: If the optimizer keeps what the checkpoint has no place for.
        """
        step, tensors = self._run.last_checkpoint()
        if step and (unrestored := self._run.record.get("unrestored")):
            raise Unsupported(
                found=f"a run in {self.folder} whose {unrestored}, which a checkpoint of the run has no place for",
                needed="all of the optimizer's state",
                do="load a checkpoint of your own and call resume(step) with its step",
            )
        if any(stage["start"] == step and stage.get("is_new") for stage in self._run.record["stages"]):
            # What is kept there is of the optimizer before.
            tensors = {key: value for key, value in tensors.items() if key.startswith("model.")}
        load_checkpoint(self.model, self._optimizers, tensors)
        if self._curvature is not None:
            self._curvature.load(self._run.bases(step))
        self.resume(step)
        return step

    def resume(self, step: int) -> None:
        """Go on from a step whose weights the caller has loaded: what was recorded after it is dropped.

        Args:
            step: At most the number of recorded steps.

        Raises:
            BadInput: If fewer steps were recorded.
        """
        if not 0 <= step <= self.steps:
            raise BadInput(
                found=f"a record of {self.steps:,} steps in {self.folder}, to go on from step {step:,}",
                needed="all steps up to there",
                do="call flush() whenever you write a checkpoint of your own; here go on from an earlier one, or record into another folder",
            )
        if self._ranks.rank == 0:
            self._frozen.check_same(self._run.record.get("frozen"))
        self._frozen.mark()
        self._must_restore = False
        self._pending.clear()
        self._losses.clear()
        self._factor, self._seen = 1.0, None
        self._run.cut(step)

    def _check_open(self) -> None:
        """Refuse to record where nobody would write it.

        Raises:
            BadInput: If the recorder is not open.
        """
        if self._hooks is None:
            raise BadInput(
                found="a recorder that is not open",
                needed="one that watches the optimizer",
                do="use it as `with whence.Recorder(...) as run:` around the loop",
            )

    def _check_restored(self) -> None:
        """Refuse to record before it is known which step comes next.

        Raises:
            BadInput: If an unfinished run was not taken up.
        """
        if self._must_restore:
            raise BadInput(
                found=f"a run of {self.steps:,} steps in {self.folder} that was not finished",
                needed="to know from which step this one goes on",
                do="call restore(), which loads its last checkpoint, or resume(step) if you loaded one of your own, before the first batch",
            )

    def _check_optimizers(self) -> None:
        check_optimizers(self.model, self._optimizers, self._frozen)
        check_scaler(self._scaler, self._optimizers)

    def _watch(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers, self._seen = optimizers, None
        self._looks, self._watches = 0, None
        self._check_optimizers()
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = StepHooks(optimizers, self._before_step, self._after_step)

    def _before_step(self) -> None:
        if not self._pending:
            raise BadInput(
                found=f"step {self.steps + 1:,} of the optimizer without the ids of its batch",
                needed="to know which examples it was computed on",
                do="call batch(ids) of the recorder before optimizer.step()",
            )
        if self._curvature is not None:
            self._curvature.step()
        # Now, since a schedule may change them before the step is written down.
        seen = settings_seen(self._optimizers)
        self._settings = None
        if seen != self._seen:
            self._check_optimizers()
            self._seen, self._settings = seen, optimizer_settings(self.model, self._optimizers)
        self._rates = [float(group["lr"]) for group in self._groups]
        self._watches = (
            [Watch(optimizer, self._has_closure) for optimizer in self._optimizers] if self._looks < _LOOKS else None
        )

    @property
    def _has_closure(self) -> bool:
        return self._hooks is not None and self._hooks.has_closure

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _after_step(self) -> None:
        if any(overflowed(optimizer) for optimizer in self._optimizers):
            self._skip()
            return
        if self._watches is not None:
            fitting = [fits for watch in self._watches for fits in watch.fitting()]
            states = [keys for watch in self._watches for keys in watch.states()]
            self._run.add_rules(self.steps, fitting, states, is_new=self._looks == 0)
            self._looks += any(fits is not None for fits in fitting)
            self._watches = None
        if len(self._losses) == len(self._pending) and self._ranks.count == 1:
            self._run.record["losses"].append({"step": self.steps, "loss": math.fsum(self._losses)})
        # What a warmup inside the optimizer made of the learning rate.
        rates = [float(group.get("scheduled_lr", rate)) for group, rate in zip(self._groups, self._rates, strict=True)]
        self.log.add(self._pending, rates, self._factor, self._settings, processes=self._ranks.count)
        self._pending, self._losses, self._factor = [], [], 1.0
        stages = self._run.record["stages"]
        if (self.steps - (stages[-1]["start"] if stages else 0)) % self.every == 0:
            self.checkpoint()

    def _after_scaler(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self._optimizers[0] and self._pending:  # it was not called
            self._skip()

    def _skip(self) -> None:
        """Forget what was said of a step that changed nothing."""
        self._pending, self._losses, self._factor, self._seen, self._watches = [], [], 1.0, None, None
        self._run.record["skipped"] = self._run.record.get("skipped", 0) + 1

    def _tensors(self) -> dict[str, Tensor]:
        return checkpoint_tensors(self.model, self._optimizers, without=self._frozen.parameters)
