"""What several verbs share: types of options, where tables go, tokens and workers."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence.errors import BadInput
from whence.functions import is_function
from whence.plain_files import read_plain
from whence.progress import Stage, Stages, staged
from whence.settings import Placement

__all__ = ["TYPED", "Json", "Placed", "check_table_folder", "read_token", "shown_stages", "workers_of"]

# The words of the command that runs, for records of what was done.
TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())
Placed = Annotated[Placement, Parameter(name="*")]
_TOKEN_BYTES = 64 << 10
Json = Annotated[bool, Parameter(name="--json", negative="")]


def check_table_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything long runs, a folder with a table that was made in another way, which would be written over.

    Args:
        folder: Where a table is to go.
        settings: What its scores depend on, as JSON has it; what is written as `settings` of the table's origin. Under names that end in
            "structure" are descriptions of models, which another version of a library may give otherwise.

    Raises:
        BadInput: If there is such a table.
    """
    from whence.evaluate import origin_of_table

    if not (folder / "table.json").exists():
        return
    made_with = origin_of_table(folder).get("settings")
    mine = json.loads(json.dumps(settings))
    names = (
        []
        if not isinstance(made_with, dict)
        else [name for name in {**mine, **made_with} if not _is_same(name, made_with, mine)]
    )
    if isinstance(made_with, dict) and not names:
        return
    difference = f"made with other settings ({', '.join(names)})" if names else "that does not say what it was made with"
    raise BadInput(
        found=f"a table in {folder} {difference}",
        needed="a new folder, or one with a table that was made in the same way",
        do="choose another folder, or move that one away",
    )


def _is_same(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a setting is the same in two sets of them; a model's description that one has not is no other one."""
    from whence.tasks import Structure, differences

    if not name.endswith("structure"):
        return name in there and name in here and there[name] == here[name]
    if name not in there or name not in here:
        return True
    return not any(
        difference.is_certain for difference in differences(Structure.from_json(there[name]), Structure.from_json(here[name]))
    )


def read_token(path: Path) -> str:
    """The token of a service, from a file: on a command line everyone on the machine could read it.

    Raises:
        BadInput: If the file cannot be read.
    """
    try:
        return read_plain(path, at_most=_TOKEN_BYTES, is_named=True).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(found=f"no token in {path}", needed="a text file that holds it", do="check the path") from error


def shown_stages(stages: Sequence[Stage], model: str | None = None) -> AbstractContextManager[Stages]:
    """The stages of a command, begun before anything is loaded; of several processes the first shows them.

    Args:
        stages: All of them.
        model: What is loaded: a name of the hub may have to be downloaded, and that shows progress of its own.
    """
    downloads = model is not None and not is_function(model) and not Path(model).exists()
    return staged(stages, quiet=os.environ.get("RANK", "0") != "0", downloads=downloads)


def workers_of(workers: int | None, ray: str | None) -> AbstractContextManager[Any]:
    """The workers that were asked for, on their way, until the block ends; None in it if none were.

    Raises:
        BadInput: If it is not said how many.
    """
    if workers is None and ray is not None:
        raise BadInput(found="--ray without --workers", needed="how many workers", do="add --workers, or leave --ray out")
    if workers is None:
        return nullcontext()
    from whence.workers import Workers

    return Workers(workers, ray=ray)
