"""Records an ordinary training run: what every step did, and the weights now and then.

Axes: S steps, G groups of parameters, M members of batches.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import BadInput, Unsupported
from whence.store.files import check_writable, locked
from whence.unroll.folder import VERSION, RunFolder
from whence.unroll.steps import Steps, optimizer_settings, settings_seen
from whence.unroll.weights import checkpoint_tensors, load_checkpoint

__all__ = ["VERSION", "Recorder"]


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

    The folder is then what `whence.attribute(..., method="source", run="run")` reads. A step that a gradient scaler skips is not seen, so its
    examples would be counted with the next one's: record runs in float32 or bfloat16.

    Args:
        folder: Where the run is kept; made if it is not there.
        model: The model that is trained, without wrappers that rename its parameters.
        optimizer: Any of torch's; SOURCE knows what SGD, Adam and AdamW do.
        every: Steps between checkpoints, counted from the start of a stage. A sixth of the run is what Bae et al. (2024) take.
        seed: Of the run, for the record.

    Raises:
        BadInput: If `every` is not positive.
        Unsupported: If the optimizer steps parameters that the model does not have.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int,
        seed: int | None = None,
    ):
        if every < 1:
            raise BadInput(found=f"every={every}", needed="1 or more steps between checkpoints", do="correct it")
        self.folder = Path(folder)
        self.model = model
        self.every = every
        self._run = RunFolder(self.folder, seed)
        self._stack = ExitStack()
        self._pending: list[tuple[list[str], float | None]] = []
        self._factor = 1.0
        self._must_restore = False
        self._hooks: list[Any] = []
        self._optimizer = optimizer
        self._check(optimizer)

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
            stack.enter_context(locked(self.folder))
            if self._run.is_new:
                self.checkpoint()
            else:
                self._run.take_up(checkpoint_tensors(self.model, self._optimizer))
                self._must_restore = True
            self._stack = stack.pop_all()
        self._watch(self._optimizer)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        try:
            if kind is None and not self._must_restore:
                self.checkpoint(finished=True)
        finally:
            self._stack.close()

    def batch(self, ids: Iterable[Any], *, divided_by: float | None = None) -> None:
        """Say which examples the coming step is computed on; once per micro-batch where gradients are accumulated.

        Args:
            ids: Of the examples, as those of the training data in `attribute`.
            divided_by: What the sum of these examples' losses is divided by in the loss that is minimised: 1 for a sum, the number of
                scored tokens for a mean over tokens. None for a mean over the examples of the whole step.

        Raises:
            BadInput: If the batch is empty, or the divisor is not positive.
        """
        self._check_open()
        names = [str(name.item() if isinstance(name, Tensor) else name) for name in ids]
        if not names or (divided_by is not None and not divided_by > 0):
            raise BadInput(
                found=f"a batch of {len(names)} examples with divided_by={divided_by}",
                needed="at least one id and a positive divisor",
                do="pass the ids of the batch's examples",
            )
        self._pending.append((names, divided_by))

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

    def stage(self, name: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Begin a stage of training on other data: pretraining, then fine-tuning.

        Every stage is attributed to the examples that it was trained on. Where a stopped run goes on, call it again for the stage that
        was under way, before `restore()`, which loads the state of the stage's optimizer.

        Args:
            name: Of the stage that begins, for people; one that is there already is not begun again.
            optimizer: If it is a new one.
        """
        if optimizer is not None:
            self._watch(optimizer)
        if any(stage["name"] == name for stage in self._run.record["stages"]):
            return
        self._check_open()
        if self.steps:
            self.checkpoint()
        self._run.record["stages"].append({"name": name, "start": self.steps})

    def checkpoint(self, *, finished: bool = False) -> None:
        """Keep the weights as they are now, with the optimizer's state; happens by itself every `every` steps and at the end.

        Args:
            finished: Whether the run ends here.
        """
        if not self._run.has_checkpoint(self.steps):
            self._run.add_checkpoint(self.steps, checkpoint_tensors(self.model, self._optimizer))
        self._run.record["finished"] = finished
        self.flush()

    def flush(self) -> None:
        """Write what was recorded since the last time, without weights: call it where your own checkpoint is written."""
        self._run.flush()

    def restore(self) -> int:
        """Load the last checkpoint of a run that was stopped into the model and the optimizer.

        Random numbers, schedules and the order of the data are the caller's to bring to the same step.

        Returns:
            The step to go on from; 0 for a new run.
        """
        step, tensors = self._run.last_checkpoint()
        load_checkpoint(self.model, self._optimizer, tensors)
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
        self._must_restore = False
        self._pending.clear()
        self._run.cut(step)

    def _check_open(self) -> None:
        """Refuse to record before it is known what is recorded.

        Raises:
            BadInput: If the recorder is not open, or an unfinished run was not taken up.
        """
        if not self._hooks:
            raise BadInput(
                found="a recorder that is not open",
                needed="one that watches the optimizer",
                do="use it as `with whence.Recorder(...) as run:` around the loop",
            )
        if self._must_restore:
            raise BadInput(
                found=f"a run of {self.steps:,} steps in {self.folder} that was not finished",
                needed="to know from which step this one goes on",
                do="call restore(), which loads its last checkpoint, or resume(step) if you loaded one of your own, before the first batch",
            )

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        known = {id(parameter) for parameter in self.model.parameters()}
        if any(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"]):
            raise Unsupported(
                found="an optimizer that steps parameters which the model does not have",
                needed="the model whose parameters it was made with",
                do="pass that model, not a wrapper or a copy of it",
            )

    def _watch(self, optimizer: torch.optim.Optimizer) -> None:
        self._check(optimizer)
        self._optimizer, self._seen = optimizer, None
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def _before_step(self) -> None:
        if not self._pending:
            raise BadInput(
                found=f"step {self.steps + 1:,} of the optimizer without the ids of its batch",
                needed="to know which examples it was computed on",
                do="call batch(ids) of the recorder before optimizer.step()",
            )
        # Now, since a schedule may change them before the step is written down.
        seen = settings_seen(self._optimizer)
        if seen != self._seen:
            self._seen, self._settings = seen, optimizer_settings(self.model, self._optimizer)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]

    def _after_step(self) -> None:
        self.log.add(self._pending, self._rates, self._factor, self._settings)
        self._pending, self._factor = [], 1.0
        stages = self._run.record["stages"]
        if (self.steps - (stages[-1]["start"] if stages else 0)) % self.every == 0:
            self.checkpoint()
