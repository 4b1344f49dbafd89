"""The facts of an audit, in the order of the European Commission's template for the public summary of training content.

The template is that of Article 53(1)(d) of Regulation (EU) 2024/1689 (AI Act), published on 24 July 2025. A store knows a part of what
it asks for. The rest stands there as not known, with what is missing: nothing is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from whence.audit.sources import SourceCount, Sources
from whence.methods import method_named
from whence.records import recipe_text
from whence.store import Fidelity, Store, addition_notes, committed, deleted_notes, left_out_notes, read_fidelity

__all__ = ["Fact", "Section", "recorded_name", "sections_of"]

_SHOWN = 20
_KINDS = {"causal_lm": "language model", "masked_lm": "masked language model", "diffusion": "diffusion model"}


@dataclass(frozen=True)
class Fact:
    """One line of the document.

    Args:
        name: What it is about.
        value: What is known; None if nothing is.
        missing: For what is not known, what whoever files the document has to add.
    """

    name: str
    value: str | None
    missing: str = ""

    @property
    def text(self) -> str:
        """As the document has it."""
        return self.value if self.value is not None else f"Not known from the store. To be added: {self.missing}."


@dataclass(frozen=True)
class Section:
    """One part of the document.

    Args:
        title: Its heading.
        facts: Its lines.
        header: Columns of a table below them.
        rows: Of that table.
        text: A paragraph before them.
    """

    title: str
    facts: tuple[Fact, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    text: str = ""


def sections_of(store: Store, sources: Sources, faults: Sequence[str]) -> tuple[Section, ...]:
    """Everything that the document says.

    Args:
        store: The store.
        sources: Of its documents.
        faults: What `whence verify` finds.

    Returns:
        The sections, those of the template first.
    """
    return (
        _general(store, sources),
        *_data_sources(store, sources),
        _processing(),
        _attribution(store),
        _agreement(store),
        _limits(store),
        _records(store, faults),
    )


def _general(store: Store, sources: Sources) -> Section:
    task = store.blueprint.task
    parameters = sum(unit.outputs * unit.inputs for unit in store.blueprint.units)
    modalities = [name for name, has in (("text", sources.has_texts), ("images", sources.has_images)) if has]
    deleted = f"; {store.num_deleted:,} more were deleted" if store.num_deleted else ""
    size = f"{sources.everything.documents:,} documents{deleted}, {sources.everything.positions:,} positions (tokens of texts)"
    kind = str(task.get("task", ""))
    return Section(
        "1. General information",
        (
            Fact("1.1 Provider", None, "name and contact of the provider, and of the authorised representative"),
            Fact("1.2 Model, as it was loaded", recorded_name(task, "model"), "name and version of the model"),
            Fact("Kind of model", _KINDS.get(kind, kind) or None, "the kind of model"),
            Fact("Digest of its weights", store.blueprint.model),
            Fact("Parameters that scores are about", f"{parameters:,}"),
            Fact(
                "Models that it was made from", None, "the base model, with its own summary, if it was fine-tuned or modified"
            ),
            Fact("1.3 Modalities of this data", ", ".join(modalities) or None, "text, images, audio, video"),
            Fact("Size of this data", size),
            Fact(
                "Size of all training data",
                None,
                "whether the model was trained on more than the documents of this store, and on how much",
            ),
            Fact("Languages, and the period in which the data was collected", None, "both; the store does not record them"),
        ),
    )


def _data_sources(store: Store, sources: Sources) -> tuple[Section, ...]:
    named, unnamed = sources.by_source, sources.unnamed
    counts = f"{len(named):,} named sources; {unnamed.documents:,} documents have none"
    sites = f"{len(sources.by_site):,} sites" if sources.by_site else None
    every = sources.everything
    facts = (
        Fact("Read from", recorded_name(store.blueprint.task, "data"), "the files that the store was built from"),
        Fact("Sources", counts if named else None, "sources: no document of this store has one"),
        Fact("2.1 Publicly available datasets", None, "which of the sources below are such datasets, with names and links"),
        Fact(
            "2.2 Private datasets of third parties",
            None,
            "which are licensed by rightsholders, and which are obtained otherwise",
        ),
        Fact(
            "2.3 Data crawled and scraped from online sources", sites, "which of the sources are, by which crawlers, and when"
        ),
        Fact("2.4 User data", None, "which of the sources come from users of the provider's services"),
        Fact("2.5 Synthetic data", None, "which of the sources were made by models, and by which"),
        Fact("2.6 Other sources", None, "the rest"),
    )
    sections = [Section("2. List of data sources", facts, ("source", *_COLUMNS), _counted(named, every))]
    if sources.by_site:
        sections.append(Section("Web sites among the sources", (), ("site", *_COLUMNS), _counted(sources.by_site, every)))
    return tuple(sections)


_COLUMNS = ("documents", "share", "positions")


def _counted(counts: Mapping[str, SourceCount], every: SourceCount) -> tuple[tuple[str, ...], ...]:
    """The largest ones a row each, and the rest in one."""
    first = list(counts.items())[:_SHOWN]
    rest = list(counts.values())[_SHOWN:]
    others = SourceCount(sum(count.documents for count in rest), sum(count.positions for count in rest))
    rows = [*first, *([(f"{len(rest):,} others, in sources.csv", others)] if rest else [])]
    return tuple(
        (name, f"{count.documents:,}", f"{count.documents / every.documents:.1%}", f"{count.positions:,}")
        for name, count in rows
    )


def _processing() -> Section:
    return Section(
        "3. Data processing",
        (
            Fact("3.1 Reservations of rights", None, "how opt-outs from text and data mining were found and respected"),
            Fact("3.2 Illegal content", None, "what was done to keep it out"),
            Fact("3.3 Other", None, "what else was done to the data, if it is to be told"),
        ),
    )


def _attribution(store: Store) -> Section:
    blueprint, method = store.blueprint, method_named(store.blueprint.method)
    sizes = store.disk_bytes()
    facts = [
        Fact("Method", f"{method.name}: {method.summary}"),
        Fact("Source", method.paper),
        Fact("Numbers kept of each document", f"{store.codec.row_bytes():,} bytes, {blueprint.dtype}"),
        Fact("Curvature", blueprint.task.get("bases") or method.curvature),
        Fact("Code", blueprint.task.get("code"), "nothing: the build recorded none") if "code" in blueprint.task else None,
        Fact("Random seed", str(blueprint.seed)),
        Fact(
            "Training recipe",
            recipe_text(blueprint.recipe) if blueprint.recipe else None,
            "optimizer, learning rate and weight decay, if damping is to follow them",
        ),
        Fact("On disk", str(sizes)),
        Fact(
            "Made with",
            ", ".join(f"{name} {version}" for name, version in sorted(blueprint.libraries.items())) or None,
            "versions",
        ),
    ]
    return Section("4. How attribution is done", tuple(fact for fact in facts if fact is not None))


def _agreement(store: Store) -> Section:
    by_dataset = read_fidelity(store)
    if not by_dataset:
        missing = "how far the store's scores agree with exact ones; a build of method aligned measures it"
        return Section("5. How well the scores agree", (Fact("Agreement with exact scores", None, missing), *_RETRAINING))
    rows = [row for name, fidelity in by_dataset.items() for row in _measured(name[:12], fidelity)]
    text = (
        "Rank and linear correlation of the store's scores with those of exact EK-FAC, mean over documents that stood in for "
        "questions, with 95 % intervals. Controls know nothing of the question, or nothing of the model: scores that agree no "
        "better than they do say nothing."
    )
    return Section(
        "5. How well the scores agree", _RETRAINING, ("data", "what", "documents", "Spearman", "Pearson"), tuple(rows), text
    )


_RETRAINING = (
    Fact(
        "Agreement with retraining",
        None,
        "the result of `whence evaluate` against models retrained on parts of the data, if it was measured",
    ),
)


def _measured(name: str, fidelity: Fidelity) -> list[tuple[str, ...]]:
    controls = fidelity.controls
    measured = {
        "stored scores, documents that the code was learned from": fidelity.learned,
        "stored scores, other documents": fidelity.others,
        "control: length of the document's gradient": controls and controls.length,
        "control: scores of another question": controls and controls.unrelated,
        "control: shared words (BM25)": controls and controls.bm25,
    }
    return [
        (name, what, f"{each.documents:,}", _interval(each.spearman), _interval(each.pearson))
        for what, each in measured.items()
        if each
    ]


def _interval(values: tuple[float, float, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*values)


def _limits(store: Store) -> Section:
    """What whoever reads scores has to know; notes of this store after what holds of all."""
    always = (
        "A score predicts, to first order, how a measurement of the model changes if a document weighs more in training. It is not "
        "a proof that the document was needed: another one may teach the same.",
        "Scores are about the parameters and the documents of this store only. Data that is not in it, such as that of an earlier "
        "stage of training, gets none.",
        "Documents that are alike share what each of them alone would get.",
    )
    notes = (*always, *left_out_notes(store), *deleted_notes(store), *addition_notes(store.folder))
    return Section("6. Limits", tuple(Fact(str(number), note) for number, note in enumerate(notes, start=1)))


def _records(store: Store, faults: Sequence[str]) -> Section:
    documents = committed(store)
    root = f"{documents.root} of {documents.count:,} documents" if documents else None
    datasets = "; ".join(f"{fingerprint} ({rows:,} rows)" for fingerprint, rows in store.datasets())
    state = f"{len(faults)} faults: {'; '.join(faults[:3])}" if faults else "every file is as it was sealed"
    return Section(
        "7. Records",
        (
            Fact("Check of all files (`whence verify`)", state),
            Fact("Fingerprints of the data", datasets),
            Fact("Digest of the store's description", store.blueprint.digest()),
            Fact("Root over all documents", root, "the root, which stores of earlier versions lack; a refit makes it"),
        ),
    )


def recorded_name(task: Mapping[str, Any], name: str) -> str | None:
    """What is recorded of where something was; of a path the last part, since the document leaves the house."""
    value = str(task.get(name) or "")
    return (PurePath(value).name if PurePath(value).is_absolute() else value) or None
