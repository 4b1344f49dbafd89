"""The verb about models that cannot be asked themselves."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from whence._version import __version__
from whence.commands.early import check_count, check_number
from whence.commands.exact_options import Factored, FactoredOptions
from whence.commands.shared import Json, check_table_folder
from whence.commands.work_options import Work, WorkOptions, flags_given, refuse_given
from whence.errors import BadInput
from whence.settings import DistilConfig
from whence.terminal import tell, tell_json

__all__ = ["proxy"]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The table.

    Args:
        output: Folder of the table: scores.npy and table.json; a table of other settings is not written over.
        name: What to call the proxy in tables; its digest if left out.
        as_json: Print JSON.
    """

    output: Annotated[Path, Parameter(alias="-o")]
    name: str = ""
    as_json: Json = False


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The model that the scores are about.

    Args:
        target: The model that the scores are about, in the forms of the proxy.
        target_name: Instead, a name for a target that cannot be loaded.
        probe: Also attribute so many queries with the target itself and say how well the two agree.
        probe_train: Training examples of that probe.
    """

    target: str | None = None
    target_name: str | None = None
    probe: int = 0
    probe_train: int = 256

    def agreement(self, proxy: Any, target: Any, records: list[Any], queries: list[Any], method: Any, runtime: Any) -> Any:
        """What the probe says; None without one."""
        from whence.proxy import proxy_agreement
        from whence.settings import ProbeConfig

        if not self.probe:
            return None
        k = min(10, max(1, min(self.probe_train, len(records)) // 4))
        probe = ProbeConfig(train=self.probe_train, queries=self.probe, k=k)
        return proxy_agreement(proxy, target, records, queries, probe=probe, method=method, runtime=runtime)


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """Training of the proxy on the target's outputs.

    Args:
        distil: Train the proxy on the target's outputs first, for so many passes over the training inputs.
        learning_rate: Of --distil, at its highest.
        batch_examples: Of --distil, inputs per step.
        sampled: Of --distil: show the proxy drawn answers of the target instead of its distributions.
        save_model: Of --distil: folder for the trained proxy.
    """

    distil: int = 0
    learning_rate: float = DistilConfig.learning_rate
    batch_examples: int = DistilConfig.batch_examples
    sampled: bool = DistilConfig.is_sampled
    save_model: Path | None = None

    def config(self) -> DistilConfig | None:
        """How the proxy is trained; None if it is not."""
        if not self.distil:
            return None
        return DistilConfig(
            epochs=self.distil,
            batch_examples=self.batch_examples,
            learning_rate=self.learning_rate,
            is_sampled=self.sampled,
        )

    def train(self, target: Any, proxy: Any, records: list[Any], seed: int) -> dict[str, Any]:
        """Train the proxy, and keep it if that was asked for; what there is to say of it."""
        from whence.proxy import distil
        from whence.store import disk_errors

        config = self.config()
        if config is None:
            return {}
        losses = list(distil(target, proxy, records, config, seed=seed).losses)
        if self.save_model is not None:
            with disk_errors(self.save_model):
                proxy.model.save_pretrained(self.save_model)
                proxy.tokenizer.save_pretrained(self.save_model)
        return {"distil": losses}


def proxy(
    model: str,
    data: str,
    queries: str,
    *,
    table: Annotated[TableOptions, Parameter(name="*")],
    aim: Annotated[TargetOptions, Parameter(name="*")] = TargetOptions(),
    distilled: Annotated[DistilOptions, Parameter(name="*")] = DistilOptions(),
    factored: Factored = FactoredOptions(),
    work: Work = WorkOptions(),
) -> None:
    """Score training examples for a target model by the gradients of another one, which may be smaller or read text differently.

    The table says who attributed for whom; `whence evaluate` judges it as any other.

    Args:
        model: The proxy: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: The target's training data, as in build.
        queries: Queries, in any form that build takes as data.
        table: The table.
        aim: The model that the scores are about.
        distilled: Training of the proxy on the target's outputs.
        factored: The method and its settings.
        work: How either model and the data are read, and what memory may be taken. Scores of the parts of a text are added up.

    Raises:
        BadInput: If it is not said which model the target is, or something is asked of one that is only named.
    """
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.proxy import proxy_table

    _check_options(aim, distilled)
    settings = factored.settings()
    records, query_records = list(load_records(data, split=work.reading.split)), list(load_records(queries))
    check_count("--fit-on", factored.fit_on, records, work.reading)
    task = work.load(model)
    target: Any = aim.target_name if aim.target is None else work.load(aim.target)
    if distilled.save_model is not None:
        _check_savable(task)
    recorded = _origin_of(task, target, factored, distilled) | {"name": table.name, "reading": flags_given(work.reading)}
    recorded |= {"train": task.prepare(records).fingerprint, "queries": task.prepare(query_records).fingerprint}
    check_table_folder(table.output, recorded)
    content: dict[str, Any] = {"table": str(table.output)}
    content |= distilled.train(target, task, records, factored.seed or 0)
    runtime = work.runtime()
    scores = proxy_table(task, target, records, query_records, name=table.name, method=settings, runtime=runtime)
    origin = {"models": (task.weights,), "data": [recorded["train"]], "queries": recorded["queries"], "whence": __version__}
    save_table(scores, table.output, origin=origin | {"settings": recorded})
    content |= {"method": scores.method, "queries": len(scores.query_ids), "train": len(scores.train_ids)}
    content["provenance"] = dict(scores.provenance)
    if factored.factors is not None:  # of all the data; the probe fits its own
        settings = replace(factored, factors=None).settings()
    agreement = aim.agreement(task, target, records, query_records, settings, runtime)
    if table.as_json:
        tell_json(content | ({} if agreement is None else {"agreement": agreement.to_dict()}))
        return
    tell(f"{scores.method}: {content['queries']:,} queries, {content['train']:,} training examples in {table.output}")
    tell(scores.notes[0])
    if "distil" in content:
        losses = ", ".join(f"{loss:.3g}" for loss in content["distil"])
        tell(f"distance from the target per position, by epoch: {losses} nats")
    if agreement is not None:
        of = f"{len(agreement.query_ids)} queries and {agreement.num_examples} examples"
        tell(f"agreement with the target on {of}, 95 % interval over queries:")
        ends = f"shared top {agreement.k} {agreement.top}, bottom {agreement.bottom}, by chance {agreement.chance:.2g}"
        tell(f"  rank correlation {agreement.spearman}; {ends}")


def _check_options(aim: TargetOptions, distilled: DistilOptions) -> None:
    """Refuse options that do not go together.

    Raises:
        BadInput: If there are some.
    """
    if (aim.target is None) == (aim.target_name is None):
        raise BadInput(
            found="no target" if aim.target is None else "both --target and --target-name",
            needed="one of the two",
            do="pass --target, or --target-name for a model that cannot be loaded",
        )
    check_number("--probe", aim.probe, least=0)
    check_number("--probe-train", aim.probe_train)
    if aim.target is None and (aim.probe or distilled.distil):
        raise BadInput(
            found=f"--{'probe' if aim.probe else 'distil'} for a target that is only named",
            needed="--target, to run it",
            do="leave it out, or pass --target",
        )
    if not distilled.distil:
        refuse_given(distilled, where="without --distil", needed="a proxy to train", do="leave it out, or add --distil 4")
    if "--probe-train" in flags_given(aim) and not aim.probe:
        raise BadInput(found="--probe-train without --probe", needed="a probe", do="leave it out, or add --probe 16")


def _origin_of(task: Any, target: Any, factored: FactoredOptions, distilled: DistilOptions) -> dict[str, Any]:
    """What scores depend on besides the data, for the table to say."""
    from whence.tasks import structure_of

    config = distilled.config()
    options = {name: value for name, value in factored.given().items() if name != "factors"}
    origin = {"method": factored.method, **options, "distil": None if config is None else asdict(config), "proxy": task.weights}
    origin["proxy_structure"] = asdict(structure_of(task.model))
    if isinstance(target, str):
        return origin | {"target": target}
    return origin | {"target": target.weights, "target_structure": asdict(structure_of(target.model))}


def _check_savable(task: Any) -> None:
    """Refuse, before anything long runs, what has no form on disk.

    Raises:
        BadInput: If it is no Hugging Face model.
    """
    if not hasattr(task.model, "save_pretrained") or getattr(task, "tokenizer", None) is None:
        raise BadInput(
            found=f"--save-model for a {type(task.model).__name__}",
            needed="a Hugging Face model with a tokenizer",
            do="leave it out, or call whence.proxy.distil from Python and save the model there",
        )
