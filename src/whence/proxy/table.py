"""Attribution by a model that stands in for another one: other weights, another size, another tokenizer.

Axes: Q queries, N training records, W windows that records were cut into, M rows of either axis.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.data import Dataset
from whence.digests import digested_once
from whence.errors import BadInput
from whence.evaluate import Agreement, agreement
from whence.pipeline import attribute, score_table
from whence.pipeline.inputs import as_dataset
from whence.records import ScoreTable
from whence.score import representation_similarity, representer_scores
from whence.settings import ExactSettings, ProbeConfig, Runtime, records_only
from whence.store import Store
from whence.tasks import AbstractTask

__all__ = ["proxy_agreement", "proxy_table"]

Records = Dataset | Iterable[Any]


@records_only(method=ExactSettings, runtime=Runtime)
def proxy_table(
    proxy: AbstractTask,
    target: AbstractTask | str,
    train: Records | Store,
    queries: Records,
    *,
    name: str = "",
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> ScoreTable:
    """Scores of the training data for a target model's behaviour, by the gradients of another model.

    For a target whose weights are closed, or too large to differentiate (Li et al. 2025, arXiv 2509.12581). The proxy may be another size or
    seed, a checkpoint from before training, one that was never trained, or one distilled from the target with `whence.proxy.distil`. What it
    says of the target is to be measured: by `proxy_agreement` where the target can be differentiated on a few examples, by `whence evaluate`
    where it, or something like it, can be retrained.

    The two models may read text differently. Rows and columns are records, by id: where the proxy's tokenizer cuts a text into several
    windows (`long="split"`), their scores are added up, since the weight of a record is the weight of all of its windows.

    Args:
        proxy: The model that attributes, with its own tokenizer and loss.
        target: The model that the scores are about; or a name for it, where it cannot be loaded.
        train: The target's training data as records, or a store that was built of it with the proxy. A prepared dataset fits only the
            tokenizer it was prepared with.
        queries: What is asked, the same way.
        name: What to call this proxy in tables; its digest if left out. Proxies that are to be averaged with `whence.score.Ensemble` need one
            name.
        method: As in `whence.attribute`, those that go back through a recorded run of the proxy included; or "representation" or
            "representer" for what the last hidden states, or the output layer alone, say. A store has its own.
        runtime: How the job runs.

    Returns:
        The table. `provenance` says who attributed for whom, and so does a note; both are kept by `save_table`.

    Raises:
        BadInput: If data is prepared although proxy and target read it differently.
    """
    queries, query_ids = _read(queries, proxy, target)
    if isinstance(train, Store):
        table = score_table(train, proxy, queries, runtime=runtime)
        fingerprint, train_ids = train.digest, table.train_ids
    else:
        train, train_ids = _read(train, proxy, target)
        table = _table(proxy, train, queries, method, runtime)
        fingerprint = train.fingerprint
    scores_QN = _added_up(table.scores, table.train_ids, train_ids)
    scores_QN = _added_up(scores_QN.T, table.query_ids, query_ids).T
    attributor, attributed = proxy.weights, target if isinstance(target, str) else target.weights
    short = attributed if isinstance(target, str) else attributed[:8]
    notes = [f"attributed by another model for the model {short}: how well it stands in has to be measured"]
    for what, windows, records in (("training records", table.train_ids, train_ids), ("queries", table.query_ids, query_ids)):
        if len(windows) != len(records):
            notes.append(f"scores of {len(windows):,} windows of {len(records):,} {what} are added up")
    return dataclasses.replace(
        table,
        scores=scores_QN,
        train_ids=train_ids,
        query_ids=query_ids,
        method=f"{table.method}, by proxy {name or attributor[:8]}",
        notes=(*notes, *table.notes),
        provenance={
            "attributor": attributor,
            "attributor_preprocessing": proxy.preprocessing,
            "target": attributed,
            "train": fingerprint,
            "queries": queries.fingerprint,
        },
    )


@digested_once()
@records_only(probe=ProbeConfig, method=ExactSettings, runtime=Runtime)
def proxy_agreement(
    proxy: AbstractTask,
    target: AbstractTask,
    train: Records,
    queries: Records,
    *,
    probe: ProbeConfig = ProbeConfig(),
    method: str | ExactSettings = "ekfac",
    runtime: Runtime = Runtime(),
) -> Agreement:
    """Whether a proxy ranks the training data as the target itself does, on as much of both as the target can be asked.

    Both models attribute the same few records, evenly spread over the data, each with its curvature fitted on these. Agreement is not truth:
    two models may rank alike and be wrong alike, and only retraining tells (`whence evaluate`).

    Args:
        proxy: The model that is to attribute.
        target: The model that it stands in for.
        train: The training data, as in `proxy_table`.
        queries: The queries, the same way.
        probe: On how much of the data.
        method: As in `whence.attribute`, the same for both.
        runtime: How the job runs.

    Returns:
        Rank correlation and shared ends per query, each with an interval over queries.
    """
    train, queries = (_spread(data, count) for data, count in ((train, probe.train), (queries, probe.queries)))
    tables = [
        proxy_table(model, target, train, queries, name=name, method=method, runtime=runtime)
        for model, name in ((target, "target itself"), (proxy, "proxy"))
    ]
    return agreement(tables[0], tables[1], k=probe.k)


def _table(proxy: AbstractTask, train: Dataset, queries: Dataset, method: str | ExactSettings, runtime: Runtime) -> ScoreTable:
    baselines = {"representation": representation_similarity, "representer": representer_scores}
    if isinstance(method, str) and method in baselines:
        return baselines[method](proxy, train, queries, quiet=runtime.is_quiet)
    return attribute(proxy, train, queries, method=method, runtime=runtime)


def _read(data: Records, proxy: AbstractTask, target: AbstractTask | str) -> tuple[Dataset, tuple[str, ...]]:
    """Data as the proxy reads it, and the ids of its records.

    Raises:
        BadInput: If it was prepared by one model's tokenizer for another's.
    """
    if not isinstance(data, Dataset):
        if isinstance(data, str | bytes | Mapping):
            return as_dataset(proxy, data), ()  # which refuses it
        records = list(data)
        ids = tuple(
            str(record.get("id", number)) if isinstance(record, Mapping) else str(number)
            for number, record in enumerate(records)
        )
        return proxy.prepare(records), ids
    if not isinstance(target, str) and proxy.preprocessing != target.preprocessing:
        raise BadInput(
            found="prepared data for a proxy and a target with different tokenizers",
            needed="the records, which each model reads in its own way",
            do="pass the texts instead of what task.prepare made of them",
        )
    return data, data.ids


def _spread(data: Records, count: int) -> Records:
    if isinstance(data, Dataset):
        return data.spread(count)
    # With their ids written down: a record that is known by its place has another place among a few.
    records = [(str(number), record) for number, record in enumerate(data)]
    count = min(count, len(records))
    chosen = [records[number * len(records) // count] for number in range(count)]
    return [{"id": number, **record} if isinstance(record, Mapping) else record for number, record in chosen]


def _added_up(scores_MW: Tensor, windows: Sequence[str], records: Sequence[str]) -> Tensor:
    """Scores of records from those of the windows that a tokenizer cut them into, along the last axis.

    Raises:
        BadInput: If a window is of no record.
    """
    if tuple(windows) == tuple(records):
        return scores_MW
    number_of = {name: number for number, name in enumerate(records)}
    owners = []
    for window in windows:
        owner = number_of.get(window, number_of.get(window.rpartition("#")[0]))
        if owner is None:
            raise BadInput(
                found=f"an example {window!r} of no record, such as {records[0]!r}",
                needed="examples named by their record, or by it and #number",
                do="give the records ids, or let the task's prepare keep them",
            )
        owners.append(owner)
    found_MN = scores_MW.new_zeros(len(scores_MW), len(records))
    return found_MN.index_add_(1, torch.tensor(owners), scores_MW)
