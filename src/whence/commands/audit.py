"""The verb that writes down what a store knows."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from whence.commands.shared import Json
from whence.terminal import tell, tell_json

__all__ = ["audit"]


def audit(
    store: Path,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    template: Literal["ai-act"] = "ai-act",
    as_json: Json = False,
) -> int:
    """Write down what a store knows of the training data, of how attribution was done and of how far its scores can be relied on.

    audit.md and audit.html have the sections of the European Commission's template for the public summary of training content, and more;
    sources.csv has all sources. What the store does not know is said to be not known. All of its files are checked on the way.

    Args:
        store: Folder made by `whence build`.
        output: Folder for the three files.
        template: What the sections follow: the template for Article 53(1)(d) of the AI Act.
        as_json: Print JSON.

    Returns:
        Exit status: 0 if the store is as it was written, 1 if not.
    """
    from whence.audit import audit as write

    files = write(store, output, template=template)
    if as_json:
        paths = {"markdown": str(files.markdown), "page": str(files.page), "sources": str(files.sources)}
        tell_json(paths | {"unknown": list(files.unknown), "faults": list(files.faults)})
        return 1 if files.faults else 0
    for fault in files.faults:
        tell(fault)
    tell(f"{files.markdown}, {files.page} and {files.sources}")
    tell(f"{len(files.unknown)} facts are not known from the store and are to be added: {', '.join(files.unknown)}")
    return 1 if files.faults else 0
