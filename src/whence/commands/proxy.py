"""The verb about models that cannot be asked themselves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence._version import __version__
from whence.commands.shared import Json, check_table_folder
from whence.commands.task_options import TaskOptions
from whence.errors import BadInput
from whence.terminal import tell, tell_json

__all__ = ["proxy"]


def proxy(
    model: str,
    data: str,
    queries: str,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    target: str | None = None,
    target_name: str | None = None,
    name: str = "",
    probe: int = 0,
    probe_train: int = 256,
    distil: int = 0,
    learning_rate: float = 1e-3,
    batch_examples: int = 16,
    sampled: bool = False,
    save_model: Path | None = None,
    task: Literal["causal_lm", "classification"] = "causal_lm",
    split: str = "train",
    long: Literal["error", "split", "truncate"] = "error",
    method: str = "ekfac",
    relative_damping: float | None = None,
    absolute_damping: float | None = None,
    factors: Path | None = None,
    query_rank: int | None = None,
    seed: int = 0,
    memory_gib: float | None = None,
    as_json: Json = False,
) -> None:
    """Score training examples for a target model by the gradients of another one, which may be smaller or read text differently.

    The table says who attributed for whom; `whence evaluate` judges it as any other.

    Args:
        model: The proxy: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: The target's training data, as in build.
        queries: Queries, in any form that build takes as data.
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        target: The model that the scores are about, in the forms of the proxy.
        target_name: Instead, a name for a target that cannot be loaded.
        name: What to call the proxy in tables; its digest if left out.
        probe: Also attribute so many queries with the target itself and say how well the two agree.
        probe_train: Training examples of that probe.
        distil: Train the proxy on the target's outputs first, for so many passes over the training inputs.
        learning_rate: Of --distil, at its highest.
        batch_examples: Of --distil, inputs per step.
        sampled: Of --distil: show the proxy drawn answers of the target instead of its distributions.
        save_model: Of --distil: folder for the trained proxy.
        task: What both models do.
        split: Split of a Hugging Face dataset.
        long: What either model does with texts longer than its context; scores of the parts of a text are added up.
        method: One of the exact methods of `whence methods`.
        relative_damping: Damping as a share of each layer's mean curvature.
        absolute_damping: Damping in units of the loss's curvature.
        factors: Folder where the proxy's fitted curvature is kept.
        query_rank: Singular directions kept of every query's gradient of a weight: less memory.
        seed: Of everything random.
        memory_gib: Memory to take besides the models.
        as_json: Print JSON.

    Raises:
        BadInput: If it is not said which model the target is, or something is asked of one that is only named.
    """
    from whence.apply.proxy import proxy_agreement, proxy_table
    from whence.apply.proxy.distil import DistilConfig
    from whence.apply.proxy.distil import distil as train_proxy
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.store import disk_errors
    from whence.tasks import structure_of

    if (target is None) == (target_name is None):
        raise BadInput(
            found="no target" if target is None else "both --target and --target-name",
            needed="one of the two",
            do="pass --target, or --target-name for a model that cannot be loaded",
        )
    if target is None and (probe or distil):
        raise BadInput(
            found=f"--{'probe' if probe else 'distil'} for a target that is only named",
            needed="--target, to run it",
            do="leave it out, or pass --target",
        )
    settings = {"learning-rate": learning_rate != 1e-3, "batch-examples": batch_examples != 16}
    unused = [name for name, value in {**settings, "sampled": sampled, "save-model": save_model is not None}.items() if value]
    if unused and not distil:
        raise BadInput(found=f"--{unused[0]} without --distil", needed="a proxy to train", do="leave it out, or add --distil 4")
    if probe_train != 256 and not probe:
        raise BadInput(found="--probe-train without --probe", needed="a probe", do="leave it out, or add --probe 16")
    records, asked = list(load_records(data, split=split)), list(load_records(queries))
    reading = TaskOptions(task=task, long=long)
    loaded, _ = reading.load(model)
    aim: Any = target_name if target is None else reading.load(target)[0]
    if save_model is not None:
        _check_savable(loaded)
    options: dict[str, Any] = {
        "method": method, "relative_damping": relative_damping, "absolute_damping": absolute_damping, "query_rank": query_rank,
        "seed": seed,
    }  # fmt: skip
    config = (
        DistilConfig(epochs=distil, batch_examples=batch_examples, learning_rate=learning_rate, is_sampled=sampled)
        if distil
        else None
    )
    known = options | {"name": name, "distil": None if config is None else asdict(config), "proxy": loaded.weights}
    known |= {"target": target_name or aim.weights, "proxy_structure": asdict(structure_of(loaded.model))}
    known |= {} if target is None else {"target_structure": asdict(structure_of(aim.model))}
    known |= {"train": loaded.prepare(records).fingerprint, "queries": loaded.prepare(asked).fingerprint}
    check_table_folder(output, known)
    options["memory_gib"] = memory_gib
    content: dict[str, Any] = {"table": str(output)}
    if config is not None:
        content["distil"] = list(train_proxy(aim, loaded, records, config, seed=seed).losses)
        if save_model is not None:
            with disk_errors(save_model):
                loaded.model.save_pretrained(save_model)
                loaded.tokenizer.save_pretrained(save_model)
    table = proxy_table(loaded, aim, records, asked, name=name, factors=factors, **options)
    origin = {"models": (loaded.weights,), "data": [known["train"]], "queries": known["queries"], "whence": __version__}
    save_table(table, output, origin=origin | {"settings": known})
    content |= {"method": table.method, "queries": len(table.query_ids), "train": len(table.train_ids)}
    content["provenance"] = dict(table.provenance)
    if probe:
        k = min(10, max(1, min(probe_train, len(records)) // 4))
        found = proxy_agreement(loaded, aim, records, asked, num_train=probe_train, num_queries=probe, k=k, **options)
        content["agreement"] = found.to_dict()
    if as_json:
        tell_json(content)
        return
    tell(f"{table.method}: {content['queries']:,} queries, {content['train']:,} training examples in {output}")
    tell(table.notes[0])
    if distil:
        tell(f"distance from the target per position, by epoch: {', '.join(f'{loss:.3g}' for loss in content['distil'])} nats")
    if probe:
        tell(
            f"agreement with the target on {len(found.query_ids)} queries and {found.num_examples} examples, 95 % interval over queries:"
        )
        tell(
            f"  rank correlation {found.spearman}; shared top {found.k} {found.top}, bottom {found.bottom}, by chance {found.chance:.2g}"
        )


def _check_savable(task: Any) -> None:
    """Refuse, before anything long runs, what has no form on disk.

    Raises:
        BadInput: If it is no Hugging Face model.
    """
    if not hasattr(task.model, "save_pretrained") or getattr(task, "tokenizer", None) is None:
        raise BadInput(
            found=f"--save-model for a {type(task.model).__name__}",
            needed="a Hugging Face model with a tokenizer",
            do="leave it out, or call whence.distil from Python and save the model there",
        )
