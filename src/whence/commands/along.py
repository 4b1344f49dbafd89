"""What is shown of stores along a recorded run."""

from pathlib import Path
from typing import Any

from whence.commands.recorded import recorded_needs_trust
from whence.terminal import tell, tell_json

__all__ = ["inspect_along", "verify_along"]


def inspect_along(folder: Path, *, as_json: bool) -> None:
    """Say what stores along a run are of, and what each holds.

    Args:
        folder: Where they are.
        as_json: Print everything as JSON.
    """
    from whence.pipeline.through.along_record import open_along
    from whence.store import size_text

    along = open_along(folder, check=False)
    record, first = along.record, along.stores[0]
    content = {
        **along.to_json(),
        "examples": len(along),
        "stores": [
            {
                "folder": str(store.folder),
                "step": point.step,
                "weight": point.weight,
                "rows": len(store),
                "deleted": store.num_deleted,
                "bytes_per_row": store.codec.row_bytes(),
                "disk_bytes": store.disk_bytes().to_dict(),
            }
            for point, store in along.pairs()
        ],
        "method": first.blueprint.method,
        "needs_trust": recorded_needs_trust(first, folder),
    }
    if as_json:
        tell_json(content)
        return
    tell(f"{'along':>16}  a recorded run of {record.steps:,} steps, in {record.run} when they were built")
    tell(
        f"{'stores':>16}  {len(along.stores)}, of up to {record.checkpoints} checkpoints a stage; scores are their sum by weight"
    )
    for point, store in along.pairs():
        deleted = f", {store.num_deleted:,} deleted" if store.num_deleted else ""
        tell(
            f"{point.name:>16}  weight {point.weight:.3f}, {len(store):,} rows{deleted} of {store.codec.row_bytes():,} bytes; "
            f"disk: {store.disk_bytes()}"
        )
    tell(f"{'examples':>16}  {len(along):,}, {sum(map(len, along.stores)):,} rows in all")
    tell(f"{'disk':>16}  {size_text(sum(store.disk_bytes().total for store in along.stores))} in all")
    tell(f"{'method':>16}  {first.blueprint.method}")
    tell(f"{'model':>16}  {first.blueprint.task.get('model', 'given in Python')}")
    tell(f"{'data':>16}  {first.blueprint.task.get('data', 'given in Python')}")
    for note in record.notes:
        tell(f"{'note':>16}  {note}")
    for why in content["needs_trust"]:
        tell(f"{'with --trust':>16}  {why}")


def verify_along(along: Any, *, as_json: bool) -> int:
    """Check that stores along a run are what was written.

    Args:
        along: The stores.
        as_json: Print JSON.

    Returns:
        Exit status: 0 if all is well, 1 if not.
    """
    faults, stores = along.faults(), along.stores
    if as_json:
        sums = {"rows": sum(map(len, stores)), "deleted": sum(store.num_deleted for store in stores)}
        tell_json({"stores": len(stores), **sums, "shards": sum(len(store.sealed) for store in stores), "faults": faults})
    else:
        for fault in faults:
            tell(fault)
        if not faults:
            tell(f"{along.folder}: {len(stores)} stores along a run, {sum(map(len, stores)):,} rows, all as sealed")
    return 1 if faults else 0
