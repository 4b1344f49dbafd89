"""A share report that can be audited: every file, every setting and every input under one seal."""

import hashlib
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence._version import __version__
from whence.errors import BadInput, StoreMismatch
from whence.evaluate import origin_of_table
from whence.shares.answers import Answers
from whence.shares.answers_file import answers_files
from whence.shares.example_facts import FACTS, facts_lines
from whence.shares.files import FORMAT, content_of, copy_tables, csv_text, queries_rows, shares_rows, sources_text
from whence.shares.page import share_page
from whence.shares.shares import Shares
from whence.store import Store, check_writable, parse_json, read_plain, sha256_of, write_bytes, write_json
from whence.store.file_sets import new_folder

__all__ = ["RECORD", "SEAL", "answers_facts", "check_new", "digest_of_input", "store_facts", "unlike_answers", "write_shares"]

RECORD = "record.json"
# As `sha256sum` writes and checks it.
SEAL = "record.sha256"


def write_shares(
    report: Shares,
    folder: str | Path,
    *,
    store: Store | None = None,
    inputs: Mapping[str, str | Path] | None = None,
    validated: str | Path | None = None,
    command: Sequence[str] | None = None,
    signed_off_by: str = "",
    origin: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Write shares into a folder that `whence.shares.verify_shares` can check later, the originals gone or not.

    The folder gets `shares.json`, `shares.csv` (a row per source), `queries.csv`, `report.html`, copies of the score tables, the source of
    every training example, and `record.json`: digests of all of these and of the inputs, settings, versions, time and command. Its own
    digest stands in `record.sha256`.

    Args:
        report: The shares.
        folder: A new folder.
        store: The store that the scores come from, to be checked again later where it is.
        inputs: What else went in, by a name of its role: files to be checked again later where they are.
        validated: What `whence evaluate -o FILE` wrote for this method: how true its scores are.
        command: The words of the command line.
        signed_off_by: Who answers for the report.
        origin: For tables in memory: `models`, digests of the models' weights (`task.weights`), and `data`, fingerprints of the training data
            (`Dataset.fingerprint`). Without them, and without a store, the record says that it cannot name either.

    Returns:
        The seal: SHA-256 of `record.json`. Who keeps it elsewhere can tell later that nothing in the folder was rewritten.

    Raises:
        BadInput: If several tables are of one model.
    """
    folder = Path(folder)
    check_new(folder)
    origins = [origin_of_table(path) for path in report.tables.folders.values()]
    models, data = (sorted({each for origin in origins for each in origin.get(name, ())}) for name in ("models", "data"))
    models, data = _with_origin(models, data, origin)
    models_of_tables = [tuple(origin["models"]) for origin in origins if origin.get("models")]
    if report.tables.several == "models" and len(set(models_of_tables)) < len(models_of_tables):
        raise BadInput(
            found="two tables of one and the same model",
            needed="a model of its own for each, or the spread over models means nothing",
            do="leave the double out",
        )
    if store is not None:
        _check_store(store, report, models)
    table = report.tables
    record: dict[str, Any] = {
        "format": FORMAT,
        "method": table.method,
        "unit": table.unit,
        "models": models or ([] if store is None else [store.blueprint.model]),
        "data": data or ([] if store is None else [name for name, _ in store.datasets()]),
        "store": None if store is None else store_facts(store),
        "unnamed": "",
        "evidence": None if validated is None else _evidence(Path(validated), report),
        "settings": _settings(report),
        "inputs": {},
        "versions": {
            "whence": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "command": None if command is None else shlex.join(command),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "signed_off_by": signed_off_by,
    }
    unnamed = [name for name in ("models", "data") if not record[name]]
    if unnamed:
        record["unnamed"] = (
            f"the tables carry no digest of their {' and '.join(unnamed)}: it cannot be told from this record of which they are"
        )
    if isinstance(report.tables, Answers):
        # The report of a period is the same whenever and wherever in the file system it is made.
        record |= {"answers": answers_facts(report.tables), "command": None, "made_at": ""}
    given = {f"table {name}": path for name, path in report.tables.folders.items()} | dict(inputs or {})
    given |= {} if validated is None else {"validated": validated}
    for role, path in given.items():
        record["inputs"][role] = {"path": str(Path(path).absolute()), "sha256": digest_of_input(Path(path))}
    with new_folder(folder) as begun:
        record["tables"] = copy_tables(report, begun)
        files = {
            "shares.json": json.dumps(content_of(report), indent=1, ensure_ascii=False) + "\n",
            "shares.csv": csv_text(shares_rows(report)),
            "queries.csv": csv_text(queries_rows(report)),
            "sources.jsonl": sources_text(report.sources),
            "report.html": share_page(report, record),
        }
        # A lone surrogate, which broken text can hold, has no bytes.
        record["outputs"] = {name: write_bytes(begun / name, [text.encode("utf-8", "replace")]) for name, text in files.items()}
        if isinstance(report.tables, Answers):
            record["outputs"] |= {
                name: write_bytes(begun / name, lines) for name, lines in answers_files(report.tables).items()
            }
        if report.facts is not None:
            record["outputs"][FACTS] = write_bytes(begun / FACTS, facts_lines(report.facts))
        for path in record["tables"].values():
            record["outputs"] |= {f"{path}/{name}": sha256_of(begun / path / name) for name in ("scores.npy", "table.json")}
        seal = write_json(begun / RECORD, record)
        write_bytes(begun / SEAL, [f"{seal}  {RECORD}\n".encode()])
    return seal


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        BadInput: If it does.
    """
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise BadInput(
            found=f"something at {folder} already",
            needed="a new folder, since a record is never written over",
            do="choose another, or move that one away",
        )
    check_writable(folder)


def digest_of_input(input_path: Path) -> str | None:
    """SHA-256 of a file; of a folder, that of the names and digests of all files in it; None for what is neither, such as a hub name."""
    if input_path.is_file():
        return sha256_of(input_path.resolve())
    if not input_path.is_dir():
        return None
    files = sorted(
        path for path in input_path.rglob("*") if path.is_file() and not path.is_symlink() and not path.name.startswith(".")
    )
    lines = "".join(f"{path.relative_to(input_path).as_posix()} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def store_facts(store: Store) -> dict[str, Any]:
    """What a record keeps of a store, to tell later whether it is the same."""
    return {
        "folder": str(store.folder.absolute()),
        "blueprint": store.blueprint.digest(),
        "manifest": sha256_of(store.folder / "manifest.json"),
        "model": store.blueprint.model,
        "data": [[name, rows] for name, rows in store.datasets()],
    }


def answers_facts(answers: Answers) -> dict[str, Any]:
    """What a record says of answers; the times as people read them."""
    since, until = (datetime.fromtimestamp(at, UTC).isoformat() for at in (answers.period.since, answers.period.until))
    return {
        "stores": answers.stores, "period": answers.period.name, "since": since, "until": until, "count": len(answers.credits),
        "single_tokens": answers.single,
    }  # fmt: skip


def unlike_answers(store: Store, answers: Answers) -> str:
    """What a store is otherwise than the version of it that answers are of, in words; empty if nothing."""
    if store.digest not in answers.versions:
        return f"digest {store.digest[:12]}, and answers of {', '.join(name[:12] for name in answers.stores)}"
    named = tuple(answers.train_ids[number] for number in answers.versions[store.digest])
    return "" if named == store.ids() else "other examples than the answers say"


def _with_origin(models: list[str], data: list[str], origin: Mapping[str, Sequence[str]] | None) -> tuple[list[str], list[str]]:
    """Digests of models and data by the tables, and by who made the report where tables do not say.

    Raises:
        BadInput: If they say otherwise, or there is something else among them.
    """
    given = dict(origin or {})
    wrong = [name for name, digests in given.items() if name not in ("models", "data") or isinstance(digests, str)]
    for name, digests in (("models", models), ("data", data)):
        wrong += [name] if name in given and digests and sorted(given[name]) != digests else []
    if wrong:
        raise BadInput(
            found=f"an origin whose {wrong[0]} are other ones than the tables', or no list of digests",
            needed="models and data of these tables, a list of digests each",
            do="correct it, or leave it out where tables say it",
        )
    return models or sorted(given.get("models", ())), data or sorted(given.get("data", ()))


def _check_store(store: Store, report: Shares, models: Sequence[str]) -> None:
    """Refuse a store that the tables are not of.

    Raises:
        StoreMismatch: If its model is not among theirs, or its examples are others.
    """
    what = ""
    if isinstance(report.tables, Answers):
        what = unlike_answers(store, report.tables)
    elif models and store.blueprint.model not in models:
        what = f"model {store.blueprint.model[:12]}, and tables of {', '.join(name[:12] for name in models)}"
    elif store.ids() != report.tables.train_ids:
        what = "other examples than the tables"
    if what:
        raise StoreMismatch(
            found=f"a store in {store.folder} of {what}",
            needed="the store that the scores come from",
            do="pass that one, or leave the store out",
        )


def _evidence(path: Path, report: Shares) -> dict[str, Any]:
    """How true the scores are, from what `whence evaluate` wrote: those of the mean over models, or else those of one model.

    Raises:
        BadInput: If it is no such file, or says nothing of the method.
    """
    method_name = report.tables.method
    mean = f"{method_name}, {report.tables.num_models} models"  # as `whence.score.mean_table` names it
    try:
        content = parse_json(read_plain(path, is_named=True), any_number=True)
        rows = {row["method"]: row["lds"] for row in content["rows"]}
        method = mean if mean in rows else method_name
        facts = {
            name: float(rows[method][name_there]) for name, name_there in (("lds", "mean"), ("low", "low"), ("high", "high"))
        }
        return facts | {"method": method, "num_subsets": int(content["num_subsets"]), "summary": str(content["summary"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            found=f"{path}, which is no evaluation of {method_name!r}",
            needed="what `whence evaluate BANK TABLE -o FILE` writes for a table of this method",
            do="evaluate this table and pass that file",
        ) from error


def _settings(report: Shares) -> dict[str, Any]:
    """The arguments of `whence.shares.shares` that make the same again."""
    payout, rule = report.payout, report.rule
    carried = {line.name: line.settled.carried for line in report.lines if line.settled is not None and line.settled.carried}
    return {
        "rule": rule.name,
        "temperature": rule.temperature,
        "floor": rule.floor,
        "floor_errors": rule.floor_errors,
        "robust": report.is_robust,
        "several": report.tables.several,
        "weights": dict(zip(report.query_ids, report.weights, strict=True)),
        "payout": None if payout is None else f"{payout.text(payout.total)} {payout.currency}",
        "minimum": None if payout is None else payout.text(payout.minimum),
        "carried": None if payout is None else {name: payout.text(units) for name, units in carried.items()},
        "draws": report.draws,
        "seed": report.seed,
        **({"norm_control": True} if report.has_control else {}),
    }
