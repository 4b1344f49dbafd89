"""Gradients as a by-product of training: a store filled while somebody's own backward passes run.

After LogIX (Choe et al. 2024, arXiv 2405.13954). Axes: N training examples, B of a batch, T positions.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.capture import ModelRecord, forecast, plan_units, taps
from whence.curvature.stages import MODEL, check_identity
from whence.data import Dataset
from whence.errors import BadInput, Unsupported
from whence.internals import BATCH_NORMS, COMPILED, COMPILED_CALL
from whence.methods import Method, method_named
from whence.pipeline.class_labels import given_labels
from whence.pipeline.inputs import as_dataset
from whence.pipeline.stored.build import finish_store, make_blueprint
from whence.pipeline.stored.encoders import random_encoder
from whence.pipeline.stored.logged_factors import LoggedFactors
from whence.pipeline.stored.logged_rows import check_rows
from whence.pipeline.stored.same_model import PROBE_FILE, probe_tensors
from whence.pipeline.stored.write_rows import refuse_not_held
from whence.progress import say
from whence.recording import names_of
from whence.settings import BuildConfig, FitConfig, records_only
from whence.store import Store, check_writable, open_store, rows_type, write_store
from whence.store.files import locked, read_json, write_json, write_tensors
from whence.store.row_files import RowFile
from whence.tasks import AbstractTask

__all__ = ["GradientLog"]

_NOTE = "rows were logged while training: each is the gradient at the weights of the last step that met its example"


class GradientLog:
    """Keeps a compressed gradient of every example that a training run meets, from the run's own backward passes.

        log = whence.pipeline.GradientLog("store", task, train)
        for ids, inputs, targets in loader:
            optimizer.zero_grad()
            with log.batch(ids):
                loss(model(inputs), targets).backward()
            optimizer.step()
        store = log.finish()

    The store is an ordinary one, but its rows are not of one model: each is the gradient at the weights of the last step that met its
    example, and answers say so. Where the learning rate is 0 it is the store that `build` makes. Training is not changed. Dropout is in the
    rows as it was in the step; batch statistics, which mix examples, are refused, and so are compiled models, whose layers nobody can watch.

    A process that was stopped goes on in the same folder; rows that are met again are written again, factors begin anew.

    Args:
        folder: Where the store goes.
        task: The model that is trained, and its loss per example: the first batch is held against it, and the store is asked with it.
        train: The training data; the ids of batches are its.
        factors: Folder for the factors of K-FAC, summed over the same passes: what
            `EKFAC(factors=folder, fit=FitConfig(labels="dataset"))` goes on from at the weights that the run ends with. None keeps none.
        config: What the store holds, by a method that learns nothing from the data first (logra, factgrass, lorif, grad-dot, grad-cos).
        quiet: No progress on stderr.

    Raises:
        BadInput: If the method learns from the data first, or the folder holds a finished store.
        StoreMismatch: If the folder holds the log of something else.
        Unsupported: If the model cannot be watched.
    """

    @records_only(config=BuildConfig)
    def __init__(
        self,
        folder: str | Path,
        task: AbstractTask,
        train: Dataset | Iterable[Any],
        *,
        factors: str | Path | None = None,
        config: BuildConfig = BuildConfig(method="logra"),
        quiet: bool = False,
    ):
        self._config = config
        method = method_named(self._config.method)
        why = _why_not(method)
        if why:
            raise BadInput(
                found=f"method {method.name}, {why}",
                needed="logra, factgrass, lorif, grad-dot or grad-cos",
                do="take one of these, or build the store after training",
            )
        _check_model(task.model)
        self.folder, self.task, self._quiet = Path(folder), task, quiet
        self._train = as_dataset(task, train)
        self._row_of = {name: row for row, name in enumerate(self._train.ids)}
        self._plan = plan_units(task)
        if self._plan.functional:
            raise Unsupported(
                found=f"{self._plan.functional[0]!r}, a parameter that no layer rule covers",
                needed="layers that can be watched",
                do="leave it out with ignore=[...]",
            )
        if (self.folder / "manifest.json").exists():
            raise BadInput(
                found=f"a finished store in {self.folder}",
                needed="a folder of its own for every log",
                do="choose another folder",
            )
        check_writable(self.folder)
        self._encoder = random_encoder(self._plan, self._config, task.device)
        self._blueprint = make_blueprint(
            task, self._plan, self._encoder, self._config, self._config.batch_positions or 1, "", origin={"logged": _NOTE}
        )
        self._lock = ExitStack()
        self._lock.enter_context(locked(self.folder / "logged"))
        self._open()
        self._factors = (
            None if factors is None else LoggedFactors(Path(factors), self._plan, FitConfig(labels="dataset"), task.device)
        )
        self._is_checked = False

    @contextmanager
    def batch(self, ids: Iterable[Any], *, divided_by: float | None = None, mask: Tensor | None = None) -> Iterator[None]:
        """Log the gradients of one forward and backward pass; step the optimizer after it, not inside.

        Args:
            ids: Of the batch's examples, in their order.
            divided_by: What the sum of these examples' losses is divided by in the loss that goes backward: 1 for a sum, the number of scored
                tokens for a mean over tokens, times the number of micro-batches, over the scale of a gradient scaler. None for a mean over
                these examples.
            mask: For factors, True where a position is real and False where it is padding, shape (B, T); None if there is no padding.

        Yields:
            Nothing.

        Raises:
            BadInput: If an id is not of the training data, no gradient came, or the gradients are not those of the task's loss.
            NonFinite: If a gradient is NaN or infinite.
        """
        names = names_of(ids)
        unknown = [name for name in names if name not in self._row_of]
        if unknown or not names or (divided_by is not None and not divided_by > 0):
            raise BadInput(
                found=f"a batch of {len(names)} examples with divided_by={divided_by}"
                + (f", one of them {unknown[0]!r}, not in the training data" if unknown else ""),
                needed=f"ids such as {self._train.ids[0]!r}, and a positive divisor",
                do="pass the ids of the batch's examples as the training data has them",
            )
        sums = self._encoder.rows(len(names))
        moments = None if self._factors is None else self._factors.sums(mask)
        reached: set[int] = set()

        def consume(index: int, pair: Any) -> None:
            reached.add(index)
            sums(index, pair)
            if moments is not None:
                moments(index, pair)

        with taps(self._plan, consume, len(names), self.task.device) as mode:
            mode.copies = True  # a training model may change its layers' outputs in place
            # Rows are small and linear in the gradients, which are as large as the layers' outputs.
            mode.scale = 1.0 if moments is None else divided_by or len(names)
            yield
        if not reached:
            raise BadInput(
                found="a batch without a backward pass through the model",
                needed="loss.backward() inside `with log.batch(ids):`",
                do="put the forward and the backward pass into it",
            )
        scale = (divided_by or len(names)) / mode.scale
        rows = [row.cpu() * scale for row in sums.finished()]
        numbers = [self._row_of[name] for name in names]
        if not self._is_checked:
            examples = [self._train.examples[number] for number in numbers[:2]]
            check_rows(self.task, self._plan, self._encoder, examples, rows, self._config)
            self._is_checked = True
        self._keep(numbers, rows)
        if moments is not None and self._factors is not None:
            self._factors.add(moments, len(names))

    def has(self, name: str) -> bool:
        """Whether the training data has an example of this id."""
        return name in self._row_of

    def finish(self) -> Store:
        """Make the store of all examples that were met, to be asked with the model as it is now.

        Returns:
            The store.

        Raises:
            BadInput: If no batch was logged.
        """
        met = self._met.read(range(len(self._train))).nonzero().flatten().tolist()
        if not met:
            raise BadInput(found="a log without a batch", needed="at least one", do="train inside `with log.batch(ids):`")
        if len(met) < len(self._train) and not self._quiet:
            say(f"note: {len(self._train) - len(met):,} examples were never met and have no row")
        dataset = Dataset([self._train.examples[row] for row in met])
        positions = self._config.batch_positions
        if not positions:
            positions = forecast(self.task, self._plan, dataset.examples).batch_positions
        blueprint = dataclasses.replace(self._blueprint, model=self.task.weights, batch_positions=positions)
        with write_store(self.folder, blueprint, dataset, append=False) as writer:
            for shard in writer.pending:
                rows = met[shard.start : shard.stop]
                labels = [label.fields() for label in given_labels(self.task, self._train.examples[shard.start : shard.stop])]
                writer.write(shard, {name: file.read(rows) for name, file in self._row_files.items()}, labels)
            probe = probe_tensors(self.task, self._plan, blueprint, dataset.examples, has_rows=False)
            sealed = {PROBE_FILE: write_tensors(self.folder / PROBE_FILE, probe)} if probe else {}
            finish_store(writer, sealed, self._quiet)
        if self._factors is not None:
            self._factors.write(self.task, self._train, positions)
        for file in (*self._row_files.values(), self._met):
            file.close()
        self._row_files.clear()
        self._lock.close()
        shutil.rmtree(self.folder / "logged", ignore_errors=True)
        return open_store(self.folder)

    def _keep(self, numbers: list[int], rows: list[Tensor]) -> None:
        norms_B = sum((row.flatten(1).square().sum(1) for row in rows), torch.zeros(())).sqrt()
        # The norm of a row that is NaN is, too, while codes of whole numbers are not.
        tensors = {**self._codec.encode(rows), "norms": norms_B.to(rows_type(self._blueprint.dtype))}
        refuse_not_held(tensors, [self._train.ids[number] for number in numbers], self._blueprint.dtype)
        for name, tensor in tensors.items():
            self._row_files[name].write(numbers, tensor)
        self._met.write(numbers, torch.ones(len(numbers), dtype=torch.bool))  # last: a row counts when it is there

    def _open(self) -> None:
        """Open the files that rows wait in, new or from a process that was stopped.

        Raises:
            StoreMismatch: If they are of another log.
        """
        logged_folder = self.folder / "logged"
        self._codec = self._blueprint.codec()
        what = {**self._blueprint.to_json(), "model": None, "libraries": None, "structure": None}
        # Its weights change while it is trained, so that no example gives what it gave.
        model = ModelRecord.of(self.task).to_json()
        identity = json.loads(json.dumps({"blueprint": what, "data": self._train.fingerprint, MODEL: model}))
        if not (logged_folder / "log.json").exists():
            write_json(logged_folder / "log.json", identity)
        check_identity(read_json(logged_folder / "log.json"), identity, "a log", self.folder)
        example_row = self._codec.encode([torch.zeros(1, *shape) for shape in self._encoder.shapes()])
        example_row["norms"] = torch.zeros(1, dtype=rows_type(self._blueprint.dtype))
        self._row_files = {
            name: RowFile(logged_folder / name, len(self._train), tensor) for name, tensor in example_row.items()
        }
        self._met = RowFile(logged_folder / "met", len(self._train), torch.zeros(1, dtype=torch.bool))


def _why_not(method: Method) -> str:
    """Why rows of a method cannot be made of the gradients that go backward in training; empty if they can."""
    if method.objective == "output":
        return "whose rows are gradients of the log-odds and not of the loss that goes backward"
    if method.projection == "pca" or method.optimizer_scaled or method.mask == "selective":
        return "which learns from the data before it stores anything"
    return ""


def _check_model(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module, COMPILED, None) is not None or getattr(module, COMPILED_CALL, None) is not None:
            raise Unsupported(
                found="a compiled model",
                needed="layers that can be watched",
                do="train without torch.compile while gradients are logged, or build the store after training",
            )
        if isinstance(module, BATCH_NORMS):
            raise Unsupported(
                found=f"a {type(module).__name__}, whose statistics mix the examples of a batch",
                needed="a gradient for each example",
                do="build the store after training",
            )
