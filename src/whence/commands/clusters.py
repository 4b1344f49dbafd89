"""The verb that says what is in the training data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from whence.commands.early import check_number
from whence.commands.recorded import task_of_store
from whence.commands.work_options import DeviceOptions, OnDevice, Recorded, RecordedOptions, Shown, ShownOptions, refuse_given
from whence.terminal import tell_json

__all__ = ["clusters"]


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How examples are clustered.

    Args:
        k: How many clusters.
        central: Examples shown per cluster.
        shared: Principal directions of the rows that are clustered; more tells finer things apart, and has more noise.
        seed: Of the starts.
    """

    k: Annotated[int, Parameter(name=["-k", "--k"])] = 12
    central: int = 5
    shared: int = 32
    seed: int = 0


def clusters(
    store: Path,
    *,
    clustered: Annotated[ClusterOptions, Parameter(name="*")] = ClusterOptions(),
    queries: str | None = None,
    recorded: Recorded = RecordedOptions(),
    machine: OnDevice = DeviceOptions(),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    shown: Shown = ShownOptions(),
) -> None:
    """Cluster a store's training examples by what they teach, and name the clusters.

    Args:
        store: Folder made by `whence build` with method aligned.
        clustered: How examples are clustered.
        queries: Also say which of these queries each cluster helps and harms; in any form that `whence build` takes as data.
        recorded: For queries: what is loaded of what the store records.
        machine: For queries: where the model runs.
        output: Also write everything as JSON into this file, the cluster of every example included.
        shown: How the clusters are shown.

    Raises:
        BadInput: If there is a model or trust without queries.
    """
    from whence.clusters import clusters as find
    from whence.clusters.page import show_clusters, write_clusters
    from whence.load import load_records
    from whence.pipeline import score_table
    from whence.store import open_store, write_json

    if queries is None:
        refuse_given(recorded, machine, where="without --queries", needed="queries, for which a model is loaded")
    opened = open_store(store)
    check_number("-k", clustered.k, most=len(opened), of="training examples")
    check_number("--central", clustered.central, least=0)
    check_number("--shared", clustered.shared)
    table = None
    if queries is not None:
        table = score_table(
            opened, task_of_store(opened, store, recorded.model, machine.placement, trust=recorded.trust), load_records(queries)
        )
    clustering = find(opened, table=table, **asdict(clustered))
    if output is not None:
        write_json(output, clustering.to_dict())
    if shown.html is not None:
        write_clusters(shown.html, clustering)
    if shown.as_json:
        tell_json(clustering.to_dict())
    else:
        show_clusters(clustering)
