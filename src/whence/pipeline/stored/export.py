"""Rows of a store as vectors in the formats of engines that exist: Parquet, Lance, FAISS.

Axes: N rows, D numbers of a vector.
"""

import importlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from whence.data import spread_places
from whence.durable import sync
from whence.errors import BadInput, NonFinite, UnknownOption
from whence.pipeline.stored.row_vectors import check_vectors, row_vectors, vectors_in, width_of
from whence.progress import Meter, meter
from whence.store import Store, new_folder, open_store, sha256_of, write_record

__all__ = ["EXAMPLES", "FORMAT", "RECORD", "Engine", "Exported", "VectorType", "export", "package", "rows_file"]

RECORD, EXAMPLES, FORMAT = "whence.json", "examples.jsonl", "whence export 1"
"""What an export says of itself; what is known of the rows of an index, a line each; name and version of the record."""
Engine = Literal["parquet", "lance", "faiss"]
VectorType = Literal["float32", "float16"]
# Vectors that an index is trained on: for each of its lists, and at least and at most in all.
_SAMPLES_A_LIST, _FEWEST_SAMPLES, _SAMPLES = 64, 10_000, 100_000
# Of an inverted file's lists every so manyth is looked into; candidates that a graph keeps while it is walked.
_PROBED, _EF_SEARCH = 8, 128


@dataclass(frozen=True)
class Exported:
    """What an export says of itself.

    Args:
        format: Name and version of this record.
        to: Which engine it is for.
        store: Digest of the store as it was.
        rows: How many.
        width: Numbers of a vector.
        dtype: Of the vectors.
        factory: How FAISS makes the index; empty for the others.
        largest_norm: Of the vectors.
        files: SHA-256 of files that only whence writes, by name.
    """

    format: str
    to: Engine
    store: str
    rows: int
    width: int
    dtype: VectorType
    factory: str
    largest_norm: float
    files: dict[str, str]


@dataclass(frozen=True)
class _Part:
    """Some rows on their way out.

    Args:
        first: Number of the first.
        vectors_ND: Of the exported type.
        examples: What is known of each.
    """

    first: int
    vectors_ND: np.ndarray
    examples: list[dict[str, Any]]


def export(
    store: Store | str | Path,
    folder: str | Path,
    *,
    to: Engine,
    dtype: VectorType = "float32",
    texts: bool = False,
    factory: str = "",
    quiet: bool = False,
) -> Exported:
    """Write a store's rows as vectors, with ids and sources, for an engine that finds the largest inner products with a query's vector.

    Such an inner product is the row's score. `query_vectors` gives the queries' side, and `whence.query` of an `Indexed`
    store answers from an exported index or table. Deleted rows are left out. Memory holds one shard, and for FAISS the index.

    Args:
        store: A store or its folder, of a method whose rows are vectors.
        folder: Where it goes, new: `rows.parquet`, `rows.lance` or `rows.faiss` with `examples.jsonl`, and `whence.json`.
        to: "parquet", "lance" or "faiss".
        dtype: "float32" or "float16", of the vectors.
        texts: Whether texts are written, too, where they are known.
        factory: For FAISS, how its `index_factory` makes the index, such as "IVF1024,Flat" or "HNSW32"; empty for an exact one.
        quiet: No progress on stderr.

    Returns:
        What was written.

    Raises:
        BadInput: If rows of this method are no vectors, something is in the folder, or a package is missing.
        NonFinite: If float16 cannot hold a row.
        UnknownOption: If there is no such engine or type.
    """
    for name, value, choices in (("to", to, get_args(Engine)), ("dtype", dtype, get_args(VectorType))):
        if value not in choices:
            raise UnknownOption(found=f"{name}={value!r}", needed=f"one of: {', '.join(choices)}", do="pick one")
    if factory and to != "faiss":
        raise BadInput(found=f"factory={factory!r} for {to}", needed="FAISS, which has index factories", do="leave it out")
    folder, opened = Path(folder), store if isinstance(store, Store) else open_store(store)
    check_vectors(opened)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(
            found=f"something at {folder} already", needed="a new folder", do="choose another, or move that one away"
        )
    if to == "faiss":
        factory = factory or ("SQfp16" if dtype == "float16" else "Flat")
    norms: list[float] = []
    with new_folder(folder) as begun, meter("export", len(opened), quiet=quiet) as progress:
        parts = _parts(opened, dtype, norms, progress)
        if to == "faiss":
            _write_faiss(begun, opened, parts, factory, texts)
        else:
            _write_table(begun, opened, parts, to, dtype, texts)
        files = {path.name: sha256_of(path) for path in begun.iterdir() if path.is_file()}
        exported = Exported(FORMAT, to, opened.digest, len(opened), width_of(opened), dtype, factory, max(norms), files)
        write_record(begun / RECORD, asdict(exported))
        for path in begun.rglob("*"):  # an engine has written them
            sync(path)
    return exported


def rows_file(to: Engine) -> str:
    """Name of the file or folder that holds the vectors."""
    return f"rows.{to}"


def package(name: str) -> Any:
    """A package of the extra `export`.

    Raises:
        BadInput: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            found=f"no package {name.split('.')[0]}", needed="it, for this engine", do="pip install 'whence-tda[export]'"
        ) from error


def _parts(store: Store, dtype: VectorType, norms: list[float], progress: Meter) -> Iterator[_Part]:
    """The rows, shard by shard.

    Args:
        store: The store.
        dtype: Of the vectors.
        norms: Gets the largest norm of each part.
        progress: Advanced by rows.

    Yields:
        Parts, in order.

    Raises:
        NonFinite: If the type cannot hold a row.
    """
    examples, first = store.examples(), 0
    for vectors_ND in row_vectors(store):
        narrow_ND = vectors_ND.to(getattr(torch, dtype))
        some = list(itertools.islice(examples, len(narrow_ND)))
        is_bad_N = ~torch.isfinite(narrow_ND).all(1)
        if bool(is_bad_N.any()):
            raise NonFinite(
                found=f"a row of {some[int(is_bad_N.nonzero()[0])]['id']!r} that {dtype} cannot hold",
                needed="a type of wide enough range",
                do="export float32",
            )
        norms.append(float(narrow_ND.double().norm(dim=1).max()))
        yield _Part(first, narrow_ND.numpy(), some)
        first += len(narrow_ND)
        progress.advance(len(narrow_ND))


def _write_table(begun: Path, store: Store, parts: Iterator[_Part], to: Engine, dtype: VectorType, texts: bool) -> None:
    """A table of Parquet or Lance with the columns row, id, source, text if it is wanted, and vector."""
    arrow = package("pyarrow")
    width = width_of(store)
    vector = arrow.list_(arrow.float32() if dtype == "float32" else arrow.float16(), width)
    words = ["id", "source", *(["text"] if texts else [])]
    schema = arrow.schema([("row", arrow.int64()), *((name, arrow.string()) for name in words), ("vector", vector)])

    def batches() -> Iterator[Any]:
        for part in parts:
            columns = [arrow.array([example.get(name, "") for example in part.examples], arrow.string()) for name in words]
            numbers = arrow.array(np.arange(part.first, part.first + len(part.examples)))
            vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(part.vectors_ND.reshape(-1)), width)
            yield arrow.record_batch([numbers, *columns, vectors], schema=schema)

    path = begun / rows_file(to)
    if to == "parquet":
        with package("pyarrow.parquet").ParquetWriter(path, schema) as writer:
            for batch in batches():
                writer.write_batch(batch)
    else:
        package("lance").write_dataset(arrow.RecordBatchReader.from_batches(schema, batches()), str(path))


def _write_faiss(begun: Path, store: Store, parts: Iterator[_Part], factory: str, texts: bool) -> None:
    """An index of FAISS, whose numbers are those of the rows, and a file with what is known of them.

    Raises:
        BadInput: If FAISS cannot make such an index of these rows.
    """
    faiss = package("faiss")
    try:
        index = faiss.index_factory(width_of(store), factory, faiss.METRIC_INNER_PRODUCT)
        _train(faiss, index, store)
        with (begun / EXAMPLES).open("w", encoding="utf-8") as file:
            for part in parts:
                index.add(part.vectors_ND.astype(np.float32))
                for row, example in enumerate(part.examples, part.first):
                    names = ("id", "source", *(["text"] if texts else []))
                    line = {"row": row, **{name: example.get(name, "") for name in names}}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
        faiss.write_index(index, str(begun / rows_file("faiss")))
    except RuntimeError as error:
        why = " ".join(str(error).split()).split("Error: ")[-1][:160]
        raise BadInput(
            found=f"factory={factory!r} for {len(store):,} rows of {width_of(store):,} numbers ({why})",
            needed="what faiss.index_factory understands, with enough rows to train it",
            do="try such as 'Flat', 'IVF1024,Flat' or 'HNSW32'",
        ) from error


def _train(faiss: Any, index: Any, store: Store) -> None:
    """Train an index that has to be, and set how much of it a search looks at; both are kept in its file."""
    inverted = faiss.try_extract_index_ivf(index)
    num_lists = 0 if inverted is None else inverted.nlist
    if not index.is_trained:
        rows = spread_places(len(store), min(max(_FEWEST_SAMPLES, _SAMPLES_A_LIST * num_lists), _SAMPLES))
        index.train(torch.cat([vectors_in(store, tensors) for tensors in store.rows(rows)]).float().numpy())
    if inverted is not None:
        inverted.nprobe = max(1, num_lists // _PROBED)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = _EF_SEARCH
