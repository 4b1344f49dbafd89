"""The folders that whence reads back: how each is made, and how it is read by whoever uses it."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import whence
from tests.settings import QUIET
from tests.test_ensemble import member
from tests.test_select import table as planted
from tests.test_shares import SOURCES, drawn, table
from tests.test_store import SMALL, make_records, make_task
from tests.torture.jobs import bank, recorded
from whence.errors import BadInput
from whence.evaluate import load_table, open_bank, save_table
from whence.evaluate.table_files import origin_of_table
from whence.guide.marks import Marked
from whence.ledger import (
    Period,
    Sealed,
    chained,
    credit_of,
    new_key,
    read_proof,
    read_public_key,
    read_signer,
    verify_chain,
    write_proof,
)
from whence.pipeline import spool
from whence.shares.answers import Answers
from whence.shares.verify import verify_shares
from whence.store import check_proof, open_store, prove, verify_store

ROWS = 10


@dataclass(frozen=True)
class Kind:
    """A kind of folder.

    Args:
        name: What it is called.
        make: Makes one.
        read: Reads it as its users do; the answer, to be compared.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]


def digest(*parts: Any) -> str:
    """Of an answer: text, numbers, tensors, nested."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().numpy()
        if isinstance(part, np.ndarray):
            part = f"{part.dtype} {part.shape} ".encode() + part.tobytes()
        elif isinstance(part, dict):
            part = digest(*(one for item in part.items() for one in item))
        elif isinstance(part, list | tuple):
            part = digest(*part)
        found.update(b"|" + (part if isinstance(part, bytes) else repr(part).encode()))
    return found.hexdigest()


def _store(method: dict[str, Any]) -> Kind:
    def make(folder: Path) -> None:
        whence.build(
            make_task(), make_records(ROWS), folder / "store", config=whence.BuildConfig(**method, **SMALL), runtime=QUIET
        )

    def read(folder: Path) -> Any:
        store = open_store(folder / "store")
        hits = whence.query(store, make_task(), make_records(2, first=50), runtime=QUIET)
        verify_store(store)  # which says what it finds
        return digest(str(hits.to_dict()))

    return Kind(f"store of {method['method']}", make, read)


def _bank(folder: Path) -> None:
    bank(folder, 4)


def _read_bank(folder: Path) -> Any:
    found = open_bank(folder / "bank")
    return digest(
        found.masks_MN,
        found.values_MSQ,
        found.full_SQ,
        found.seeds,
        found.train_ids,
        found.query_ids,
        found.unit,
        dict(found.facts),
    )


def _table(folder: Path) -> None:
    save_table(replace(table(drawn()), notes=("a note",)), folder / "table", origin={"models": ["m"], "data": ["d"]})


def _read_table(folder: Path) -> Any:
    found = load_table(folder / "table")
    facts = [found.query_ids, found.train_ids, found.unit, found.method, found.notes, found.tuned_on, found.seconds]
    return digest(found.scores, facts, dict(found.provenance), found.is_weighted, origin_of_table(folder / "table"))


def _run(folder: Path) -> None:
    recorded(folder)


def _read_run(folder: Path) -> Any:
    run = whence.runs.open_run(folder / "run")
    log = run.log
    tensors = [run.tensors(step) for step in run.checkpoints]
    return digest(
        run.ids, run.losses, tensors, log.members, log.weights, log.rates, log.factors, run.recipe(), run.preconditioner([10])
    )


def _fit(folder: Path) -> None:
    whence.pipeline.fit_curvature(make_task(), make_records(ROWS), folder / "factors", runtime=QUIET)


def _read_fit(folder: Path) -> Any:
    found = whence.pipeline.fit_curvature(make_task(), make_records(ROWS), folder / "factors", runtime=QUIET)
    return digest(found.note, [(block.outputs_OO, block.inputs_II, block.values_OI) for block in found.blocks], found.kfac)


def _selection(folder: Path) -> None:
    scores = planted(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
    whence.select.select(scores, config=whence.settings.SelectConfig(keep=4)).save(folder / "chosen")


def _read_selection(folder: Path) -> Any:
    found = whence.select.load_selection(folder / "chosen")
    return digest(str(found.decisions), str(found.summary()), found.keep, found.weights)


def _marks(folder: Path) -> None:
    marked = [Marked(f"t{n}", 9, (1, 4, 7), (5, n, 3), 0.5 * n, 3, 1.25) for n in range(5)]
    (folder / "guide").mkdir()
    whence.guide.Marks({one.id: one for one in marked}, {"method": "ekfac", "examples": 9}).save(
        folder / "guide" / "marks.jsonl"
    )


def _read_marks(folder: Path) -> Any:
    found = whence.guide.open_marks(folder / "guide" / "marks.jsonl")
    rows = found.rows(["t1"], torch.tensor([[0, 5, 0, 0, 1, 0, 0, 3, 0]]))
    return digest(str(dict(found.examples)), str(dict(found.about)), rows)


def _ensemble(folder: Path) -> None:
    ensemble = whence.score.Ensemble(folder / "ensemble", settings={"method": "kfac"})
    for seed in range(2):
        ensemble.add(member(seed), member=f"m{seed}")


def _read_ensemble(folder: Path) -> Any:
    ensemble = whence.score.Ensemble(folder / "ensemble", settings={"method": "kfac"})
    found = ensemble.table()
    return digest(ensemble.members, found.scores, found.query_ids, found.train_ids, found.unit, found.method, found.notes)


def _shares(folder: Path) -> None:
    save_table(table(drawn()), folder / "table", origin={"models": ["m"]})
    found = whence.shares.shares(
        [folder / "table"], SOURCES, config=whence.settings.SharesConfig(payout="100.00 EUR", draws=50)
    )
    whence.shares.write_shares(found, folder / "report", inputs={"table": folder / "table"})


def _read_shares(folder: Path) -> Any:
    found = verify_shares(folder / "report")
    if found.faults:  # said, which is what it is for
        raise BadInput(found=found.faults[0], do="look")
    return digest(found.sources, found.queries)


def _answered(folder: Path) -> None:
    """A report of a service's answers, by robust rules: with answers.jsonl, examples.jsonl and facts.jsonl."""
    facts = {"store": "d", "method": "m", "unit": "nats", "tokens": 3, "token": None}
    credits = tuple(credit_of(row.numpy(), {**facts, "id": f"q{n}", "time": 1.0 + n}) for n, row in enumerate(drawn()))
    found = whence.shares.shares(
        Answers({"d": np.arange(40)}, Period("1970", 0.0, 3e7), tuple(f"d{n}" for n in range(40)), credits, 1, ("a note",)),
        SOURCES,
        config=whence.settings.SharesConfig(payout="100.00 EUR", draws=50, robust=True),
        facts=whence.shares.ExampleFacts({"d1": "d0"}, dict.fromkeys(SOURCES, 1.0)),
        quiet=True,
    )
    whence.shares.write_shares(found, folder / "report")


def _receipts(folder: Path) -> None:
    folder = folder / "ledger"
    new_key(folder / "key")
    contents = ({"n": n, "hits": [[n, 0.5 * n]], "salt": f"{n:032x}"} for n in range(4))
    sealed = [
        Sealed(kind="answer", id=f"a{n}", time=1.5 * n, store="d", token=None, content=each) for n, each in enumerate(contents)
    ]
    chained(folder / "receipts.jsonl", read_signer(folder / "key"), sealed)


def _read_receipts(folder: Path) -> Any:
    """With the public key that lies beside, and without its own head: only what the chain itself says."""
    folder = folder / "ledger"
    chain = verify_chain(_named(folder / "receipts.jsonl"), keys=[read_public_key(str(_named(folder / "key.pub")))])
    read_signer(_named(folder / "key"))
    if chain.faults:
        raise BadInput(found=chain.faults[0], do="look")
    return digest(chain.head, [chain.contents[head.number] for head in chain.heads])


def _proof(asked: str) -> Kind:
    def make(folder: Path) -> None:
        config = whence.BuildConfig(method="lorif", **SMALL)
        store = whence.build(make_task(), make_records(ROWS), folder / "store", config=config, runtime=QUIET)
        write_proof(prove(store, id=asked), folder / "proofs" / "proof.json")
        shutil.rmtree(folder / "store")

    def read(folder: Path) -> Any:
        proof = read_proof(_named(folder / "proofs" / "proof.json"))
        if faults := check_proof(proof, root=None, text=None):
            raise BadInput(found=faults[0], do="look")
        return digest(str(proof))

    return Kind(f"proof of {asked}", make, read)


def _named(path: Path) -> Path:
    """A file that people name themselves: a link there is followed on purpose, so it is none of what is tried here."""
    if path.is_symlink():
        raise BadInput(found=f"a link at {path}", do="name the file")
    return path


def _study(folder: Path) -> None:
    _studied(folder)


def _studied(folder: Path) -> Any:
    records = {"a": make_records(2, first=50)}
    found = whence.study.study(make_task(), make_records(ROWS), records, folder / "study", method="kfac", runtime=QUIET)
    return digest(str(found.to_dict()))


def _spool(folder: Path) -> None:
    spool(make_task(), make_records(ROWS), folder / "spool", source="s", quiet=True)


def _read_spool(folder: Path) -> Any:
    found = spool(make_task(), make_records(ROWS), folder / "spool", source="s", quiet=True)
    return digest(
        found.fingerprint, [(one.id, one.length, one.source, one.text, one.scored, one.fields) for one in found.examples]
    )


def _words(folder: Path) -> Any:
    return whence.score.word_index(["the old man and the sea", "rain on the old roof"], folder / "words", identity="a")


def _read_words(folder: Path) -> Any:
    found = _words(folder)  # made again where its record is gone
    return digest(str(found.spans("the old man", least=2)), found.bm25("the old roof"))


def kinds() -> list[Kind]:
    """All of them."""
    return [
        _store({"method": "lorif", "factor_rank": 1}),
        _store({"method": "logra-pca"}),
        _store({"method": "aligned"}),
        Kind("bank", _bank, _read_bank),
        Kind("table", _table, _read_table),
        Kind("run", _run, _read_run),
        Kind("fit", _fit, _read_fit),
        Kind("selection", _selection, _read_selection),
        Kind("marks", _marks, _read_marks),
        Kind("ensemble", _ensemble, _read_ensemble),
        Kind("share report", _shares, _read_shares),
        Kind("answers report", _answered, _read_shares),
        Kind("receipts", _receipts, _read_receipts),
        _proof("r3"),
        _proof("nobody"),
        Kind("study", _study, _studied),
        Kind("spool", _spool, _read_spool),
        Kind("words", _words, _read_words),
    ]
