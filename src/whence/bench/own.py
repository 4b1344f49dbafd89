"""Methods of people's own on the bench."""

from pathlib import Path

import torch

from whence.bench.entries import Entry
from whence.bench.settings import Setting
from whence.data import digest_of
from whence.errors import BadInput
from whence.functions import function_at, sources_of
from whence.records import ScoreTable
from whence.tasks import AbstractTask

__all__ = ["own_entry"]

_DIGITS = 8


def own_entry(name: str) -> Entry:
    """A row of the bench for a function in a Python file, which is run.

    It is called with a task (`task.model` is trained on everything), the training examples and the queries, both as `whence.Dataset`, and
    gives a `whence.ScoreTable` or scores of shape (queries, train): positive where more weight on an example raises the query's
    log-probability. Its table is made again when its file changes, or one that it imports from beside it.

    Args:
        name: As file.py:function.

    Returns:
        The row; the scores of another query, and those of the query in another format, are its controls.

    Raises:
        BadInput: If there is no such function.
    """
    function = function_at(name)
    path, _, short = name.rpartition(":")
    label = f"{Path(path).name}:{short}"
    digest = digest_of(*(file.read_text() for file in sources_of(name)), short).hex()[:_DIGITS]

    def make(setting: Setting, task: AbstractTask, work: Path) -> ScoreTable:
        return _as_table(function(task, setting.train, setting.queries), setting, label)

    return Entry(f"own-{short}-{digest}", make, has_control=True, has_format=True)


def _as_table(found: object, setting: Setting, label: str) -> ScoreTable:
    """What a function gave, as a table of the setting's ids.

    Raises:
        BadInput: If it is no table of scores, of another shape, or not finite.
    """
    needed = (
        f"a ScoreTable or finite scores of shape ({len(setting.queries)}, {len(setting.train)}): queries, training examples"
    )
    if isinstance(found, ScoreTable):
        found, table = found.scores, found
    else:
        table = None
    try:
        scores_QN = torch.as_tensor(found, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(found=f"a {type(found).__name__} from {label}", needed=needed, do="return one") from None
    if scores_QN.shape != (len(setting.queries), len(setting.train)) or not bool(torch.isfinite(scores_QN).all()):
        is_finite = bool(torch.isfinite(scores_QN).all())
        problem = f"scores of shape {tuple(scores_QN.shape)}{'' if is_finite else ', not all of them finite,'} from {label}"
        raise BadInput(found=problem, needed=needed, do="correct the function")
    return table or ScoreTable(scores_QN.cpu(), setting.queries.ids, setting.train.ids, "as its function says", label)
