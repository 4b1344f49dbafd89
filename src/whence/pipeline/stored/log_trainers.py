"""Gradient logs of runs of the Hugging Face Trainer, of trainers that are built on it, such as TRL's SFTTrainer, and of Lightning's."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from whence.errors import BadInput, Unsupported
from whence.pipeline.stored.gradient_log import GradientLog
from whence.recording import (
    PlannedBatches,
    TrainerBatch,
    callback_class,
    check_device,
    check_known,
    check_one_model,
    numbered,
    watch_steps,
)

__all__ = ["log_lightning", "log_trainer"]


def log_trainer(trainer: Any, log: GradientLog, *, id_field: str = "id") -> None:
    """Have a Hugging Face Trainer log the gradients of the run that it is about to make.

        log = whence.pipeline.GradientLog("store", task, train)  # task.model is the Trainer's model
        trainer = Trainer(model, arguments, train_dataset=data)
        whence.runs.log_trainer(trainer, log)
        trainer.train()
        store = log.finish()

    Gradient accumulation and the token counts that the Trainer divides losses by are taken as they come. The run itself is not changed, and
    may be recorded with `record_trainer`, too. Every epoch writes the rows of its examples again.

    Args:
        trainer: A Trainer, before `train()`, whose examples are those of the log.
        log: Where the gradients go.
        id_field: Field of the Trainer's examples that holds their id; without it they are numbered from 0, as records without an id are.

    Raises:
        BadInput: If the Trainer trains another model than the log's, or examples that the log does not have.
        Unsupported: If it trains in float16, whose losses are scaled, or on several devices.
    """
    needed = "one device, where all backward passes run, in float32 or bfloat16"
    check_device(trainer, needed, "train so, or build the store after training")
    check_one_model(trainer, log.task.model, "log", "watched")
    ids = numbered(trainer, id_field)
    check_known(ids, log.has, "log")

    def logged(batch: TrainerBatch, step: Callable[[], Tensor]) -> Tensor:
        mask = batch.inputs.get("attention_mask")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        with log.batch(batch.ids, divided_by=batch.divided_by, mask=mask):
            return step()

    watch_steps(trainer, ids, logged)


def log_lightning(log: GradientLog, *, id_field: str = "id", divided_by: Callable[[Any], float] | None = None) -> Any:
    """A Lightning callback that logs the gradients of its Trainer's runs.

        log = whence.pipeline.GradientLog("store", task, train)  # task.model is the module, or a part of it
        trainer = Trainer(max_epochs=1, callbacks=[whence.runs.log_lightning(log)])
        trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))
        store = log.finish()

    Args:
        log: Where the gradients go.
        id_field: Field of the examples that holds their id, where they are mappings; without it they are numbered from 0.
        divided_by: From a batch to what the sum of its examples' losses is divided by in what `training_step` returns: the number of scored
            tokens, say. None for a mean over the examples.

    Returns:
        The callback.

    Raises:
        BadInput: If Lightning is not installed.
    """
    batches, passing = PlannedBatches(id_field, divided_by), ExitStack()

    class Log(callback_class()):
        """Has each forward and backward pass watched."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                _refuse(trainer, pl_module, log)
                batches.prepare(trainer)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            check_known(batches.ids, log.has, "log")

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            ids, divisor = batches.take(trainer, batch)
            passing.enter_context(log.batch(ids, divided_by=divisor))

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            passing.close()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            batches.put_back()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            passing.pop_all().__exit__(type(exception), exception, None)
            batches.put_back()

    return Log()


def _refuse(trainer: Any, module: Any, log: GradientLog) -> None:
    """Refuse what the log would get wrong.

    Raises:
        BadInput: If the log is of another model.
        Unsupported: If gradients are scaled, spread over devices, or made by the module itself.
    """
    is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if trainer.world_size > 1 or is_scaled or not module.automatic_optimization:
        raise Unsupported(
            found=f"a Trainer on {trainer.world_size} device(s) with precision={trainer.precision} and "
            f"{'automatic' if module.automatic_optimization else 'manual'} optimization",
            needed="one device, float32 or bfloat16, and automatic optimization",
            do="train so, or log a loop of your own with GradientLog.batch",
        )
    if all(part is not log.task.model for part in module.modules()):
        raise BadInput(
            found="a module that does not hold the log's model",
            needed="one model, watched while it is trained",
            do="make the task of the module's network",
        )
