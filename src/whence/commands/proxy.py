"""The verb about models that cannot be asked themselves."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from whence._version import __version__
from whence.commands.early import check_count, check_number
from whence.commands.exact_options import Exact, ExactOptions
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
        by: What scores: "gradients" with the method's curvature; or as baselines "representation" (likeness of the last hidden states) or
            "representer" (representer points of the output layer).
        as_json: Print JSON.
    """

    output: Annotated[Path, Parameter(alias="-o")]
    name: str = ""
    by: Literal["gradients", "representation", "representer"] = "gradients"
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
        recorded: Of --distil: outputs of a target that is only named, in a file with `prompt`, `completion` and perhaps
            `token_log_probabilities` each; with --probe, the last so many are held out, and it is printed how near the proxy is to them.
        sampled: Of --distil: show the proxy drawn answers of the target instead of its distributions.
        save_model: Of --distil: folder for the trained proxy.
    """

    distil: int = 0
    learning_rate: float = DistilConfig.learning_rate
    batch_examples: int = DistilConfig.batch_examples
    recorded: str | None = None
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

    def train(self, target: Any, proxy: Any, records: list[Any], seed: int, *, held_out: int = 0) -> dict[str, Any]:
        """Train the proxy, and keep it if that was asked for; what there is to say of it."""
        from whence.load import load_records
        from whence.proxy import distil, distil_recorded, trust_recorded
        from whence.store import disk_errors

        config = self.config()
        if config is None:
            return {}
        content: dict[str, Any] = {}
        if self.recorded is None:
            content["distil"] = list(distil(target, proxy, records, config, seed=seed).losses)
        else:
            outputs = list(load_records(self.recorded))
            check_number("--probe", held_out, least=0, most=len(outputs) - 1, of="recorded outputs that are held out")
            learned, probed = outputs[: len(outputs) - held_out], outputs[len(outputs) - held_out :]
            content["distil"] = list(distil_recorded(proxy, learned, config, seed=seed).losses)
            if probed:
                content["trust"] = trust_recorded(proxy, probed).to_dict()
        if self.save_model is not None:
            with disk_errors(self.save_model):
                proxy.model.save_pretrained(self.save_model)
                proxy.tokenizer.save_pretrained(self.save_model)
        return content


def proxy(
    model: str,
    data: str,
    queries: str,
    *,
    table: Annotated[TableOptions, Parameter(name="*")],
    aim: Annotated[TargetOptions, Parameter(name="*")] = TargetOptions(),
    distilled: Annotated[DistilOptions, Parameter(name="*")] = DistilOptions(),
    exact: Exact = ExactOptions(),
    work: Work = WorkOptions(),
) -> None:
    """Score training examples for a target model by the gradients of another one, which may be smaller or read text differently.

    The table says who attributed for whom; `whence evaluate` judges it as any other.

    Args:
        model: The proxy: Hugging Face folder or hub name, or file.py:function that returns a task.
        data: The target's training data, as in build; or a store that was built of it with the proxy, whose method is inside it.
        queries: Queries, in any form that build takes as data.
        table: The table.
        aim: The model that the scores are about.
        distilled: Training of the proxy on the target's outputs.
        exact: The method and its settings; with a recorded run of the proxy (--run), those that go back through it, too.
        work: How either model and the data are read, and what memory may be taken. Scores of the parts of a text are added up.

    Raises:
        BadInput: If it is not said which model the target is, or something is asked of one that is only named.
    """
    from whence.evaluate import save_table
    from whence.load import load_records
    from whence.proxy import proxy_table
    from whence.store import open_store

    _check_options(aim, distilled)
    _check_method(exact, aim, distilled, table)
    settings = exact.settings()
    store = open_store(data) if (Path(data) / "manifest.json").is_file() else None
    _check_store(store, aim, distilled, exact, table)
    records = [] if store is not None else list(load_records(data, split=work.reading.split))
    query_records = list(load_records(queries))
    if store is None:
        check_count("--fit-on", exact.final.factored.fit_on, records, work.reading)
    task = work.load(model)
    target: Any = aim.target_name if aim.target is None else work.load(aim.target)
    if distilled.save_model is not None:
        _check_savable(task)
    recorded = _origin_of(task, target, exact, distilled) | {"name": table.name, "reading": flags_given(work.reading)}
    recorded |= {
        "train": task.prepare(records).fingerprint if store is None else store.digest,
        "by": table.by,
        "queries": task.prepare(query_records).fingerprint,
    }
    check_table_folder(table.output, recorded)
    content: dict[str, Any] = {"table": str(table.output)}
    held_out = aim.probe if distilled.recorded is not None else 0
    content |= distilled.train(target, task, records, exact.final.factored.seed or 0, held_out=held_out)
    runtime = work.runtime()
    method = settings if table.by == "gradients" else table.by
    corpus = records if store is None else store
    scores = proxy_table(task, target, corpus, query_records, name=table.name, method=method, runtime=runtime)
    origin = {"models": (task.weights,), "data": [recorded["train"]], "queries": recorded["queries"], "whence": __version__}
    save_table(scores, table.output, origin=origin | {"settings": recorded})
    content |= {"method": scores.method, "queries": len(scores.query_ids), "train": len(scores.train_ids)}
    content["provenance"] = dict(scores.provenance)
    if exact.final.factored.factors is not None:  # of all the data; the probe fits its own
        fit = replace(exact.final.factored, factors=None)
        settings = replace(exact, final=replace(exact.final, factored=fit)).settings()
    agreement = None if held_out else aim.agreement(task, target, records, query_records, settings, runtime)
    if table.as_json:
        tell_json(content | ({} if agreement is None else {"agreement": agreement.to_dict()}))
        return
    tell(f"{scores.method}: {content['queries']:,} queries, {content['train']:,} training examples in {table.output}")
    tell(scores.notes[0])
    if "distil" in content:
        losses = ", ".join(f"{loss:.3g}" for loss in content["distil"])
        tell(f"distance from the target per position, by epoch: {losses} nats")
    if "trust" in content:
        trust = content["trust"]
        gap = "" if trust["gap"] is None else f", {trust['gap']['mean']:.3g} more than the target itself gives them"
        tell(f"{trust['outputs']} outputs held out: {trust['nats']['mean']:.3g} nats a token under the proxy{gap}")
        if trust["token_spearman"] is not None:
            tell(f"  rank correlation of the two models' log-probabilities, tokens: {trust['token_spearman']:.2f}")
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
    if distilled.recorded is not None and (aim.target is not None or distilled.sampled):
        raise BadInput(
            found=f"--recorded with {'--target' if aim.target is not None else '--sampled'}",
            needed="outputs of a target that is only named",
            do="leave one of them out",
        )
    if aim.target is None and distilled.recorded is None and (aim.probe or distilled.distil):
        raise BadInput(
            found=f"--{'probe' if aim.probe else 'distil'} for a target that is only named",
            needed="--target, to run it, or --recorded with what it said",
            do="leave it out, or pass one of them",
        )
    if not distilled.distil:
        refuse_given(distilled, where="without --distil", needed="a proxy to train", do="leave it out, or add --distil 4")
    if "--probe-train" in flags_given(aim) and not aim.probe:
        raise BadInput(found="--probe-train without --probe", needed="a probe", do="leave it out, or add --probe 16")


def _check_method(exact: ExactOptions, aim: TargetOptions, distilled: DistilOptions, table: TableOptions) -> None:
    """Refuse what does not go with the method.

    Raises:
        BadInput: If something does not.
    """
    if table.by != "gradients":
        refuse_given(exact, where=f"with --by {table.by}", needed="gradients for it", do="leave one of them out")
    if exact.per_segment:
        raise BadInput(
            found="--per-segment for a proxy", needed="one table", do="leave it out, or use whence attribute with the proxy"
        )
    if exact.run is None:
        return
    for flag, is_given in (("--distil", distilled.distil), ("--probe", aim.probe)):
        if is_given:
            raise BadInput(
                found=f"{flag} with --run",
                needed="the weights that the run ended with, and no other model's",
                do="leave one of them out",
            )


def _check_store(store: Any, aim: TargetOptions, distilled: DistilOptions, exact: ExactOptions, table: TableOptions) -> None:
    """Refuse what a store of the proxy's gradients has no use for.

    Raises:
        BadInput: If something is asked that needs the records, or a model that the store was not built with.
    """
    given = {
        **flags_given(exact),
        **({"--distil": 1} if distilled.distil else {}),
        **({"--by": 1} if table.by != "gradients" else {}),
    }
    given |= {"--probe": 1} if aim.probe else {}
    if store is not None and given:
        raise BadInput(
            found=f"{next(iter(given))} with a store of the proxy's gradients",
            needed="the records themselves for it",
            do="leave it out, or name the data",
        )


def _origin_of(task: Any, target: Any, exact: ExactOptions, distilled: DistilOptions) -> dict[str, Any]:
    """What scores depend on besides the data, for the table to say."""
    from whence.tasks import structure_of

    config = distilled.config()
    options = {name: value for name, value in exact.given().items() if name != "factors"}
    options |= {} if exact.run is None else {"run": str(exact.run.absolute())}
    origin = {"method": exact.method, **options, "distil": None if config is None else asdict(config), "proxy": task.weights}
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
