"""What a store says about itself: see docs/format.md."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from whence.compress import BLOW_UP, QuantizedCodec, RowCodec
from whence.errors import StoreCorrupt, StoreMismatch, UnknownOption
from whence.methods import Method, method_named
from whence.records import Recipe
from whence.store.files import damaged, read_json
from whence.strict_json import record_of
from whence.tasks import Structure

__all__ = [
    "DELETED_FORMAT_VERSION",
    "FORMAT_VERSION",
    "NOT_COMPARED",
    "QUANTIZED_FORMAT_VERSION",
    "Blueprint",
    "Seal",
    "StoredUnit",
    "bits_named",
    "dtype_named",
    "row_codec",
    "rows_type",
    "shard_stem",
    "curvature_numbers",
]

FORMAT_VERSION = 1
# Stores of whole numbers have a version of their own, so that readers that know only the first go on reading all others.
QUANTIZED_FORMAT_VERSION = 2
# And so have stores from which rows were deleted, which an earlier reader would show; the digest of a blueprint is that of before.
DELETED_FORMAT_VERSION = 3
# Where things were, what made the store and what only damping reads do not decide its rows; structure is compared by `check_model`, since
# another version of a library may describe the same model otherwise.
NOT_COMPARED = ("task", "libraries", "recipe", "structure")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_BITS = {"int8": 8, "int4": 4, "int2": 2, "int1": 1}


_PROJECTIONS, _AUTOCASTS = ("rademacher", "gaussian", "sparse", "pca"), (None, "bfloat16", "float16")
# A side of a weight, and numbers of a weight: a thousand times what the largest models have.
_LONGEST, _LARGEST = (1 << 31) - 1, 1 << 44


@dataclass(frozen=True)
class StoredUnit:
    """One unit of parameters and how wide its rows are.

    Args:
        name: Name of its first parameter.
        parameters: All of them.
        outputs: Rows of its gradient.
        inputs: Columns of its gradient.
        projected: Projected (outputs, inputs).
        gain: Factor on an absolute damping in the projected space.
    """

    name: str
    parameters: tuple[str, ...]
    outputs: int
    inputs: int
    projected: tuple[int, int]
    gain: float


@dataclass(frozen=True)
class Blueprint:
    """Everything that decides what a store's rows are. Written first; two builds with equal blueprints give equal bytes.

    Args:
        method: Name in the table of methods.
        method_version: Version of that entry.
        projection: Kind of projection.
        rank: Width of the projection on each side.
        factor_rank: Factors per row and unit; None for dense rows.
        curvature_rank: Directions of the curvature; None for all.
        seed: The run's seed.
        dtype: Stored type.
        rows_per_shard: Rows in a full shard.
        batch_positions: Positions per batch; part of the identity, since batch shapes move the last bits.
        autocast: Type of the model's arithmetic under autocast, or None.
        model: Digest of the weights.
        preprocessing: Digest of the tokenizer or of the loss's source.
        task: Kind of task and its options, enough for the command line to load it again.
        units: The units in order.
        recipe: What is known of the training run.
        libraries: Versions that made it.
        structure: What the model's modules and configuration say; None in stores of earlier versions.
    """

    method: str
    method_version: int
    projection: str
    rank: int
    factor_rank: int | None
    curvature_rank: int | None
    seed: int
    dtype: str
    rows_per_shard: int
    batch_positions: int
    autocast: str | None
    model: str
    preprocessing: str
    task: dict[str, Any]
    units: tuple[StoredUnit, ...]
    recipe: dict[str, Any] | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    structure: Structure | None = None

    @property
    def side_divisor(self) -> int:
        """What each side's length is divided by for the width of its projection; 0 where one rank is for all."""
        return self.task.get("build", {}).get("side_divisor", 0)

    @property
    def blow_up(self) -> int:
        """Entries of the gradient chosen for each number of a row, where they are chosen at random."""
        return self.task.get("build", {}).get("blow_up", BLOW_UP)

    def codec(self) -> RowCodec | QuantizedCodec:
        """How rows lie in shards."""
        names, shapes = [unit.name for unit in self.units], [unit.projected for unit in self.units]
        codec = row_codec(names, shapes, self.factor_rank, self.dtype, self.seed)
        if isinstance(codec, QuantizedCodec) and method_named(self.method).encoder == "aligned":
            # What the axes leave is kept as signs whatever the axes' numbers are.
            return replace(codec, bits=(*codec.bits[:1], *(1 for _ in codec.bits[1:])))
        return codec

    def columns(self) -> tuple[str, ...]:
        """Tensors of a shard with one number a row, besides those of the codec."""
        method = method_named(self.method)
        # Whitened rows hold their own metric: nothing is divided by the norm of a code.
        norms = () if method.encoder == "aligned" else ("norms",)
        return (*norms, "weights") if method.objective == "output" else norms

    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape per row and type of every tensor of a shard but `offsets`."""
        codec, norms = self.codec(), rows_type(self.dtype)
        types = codec.types()
        return {
            **{name: (shape, types[name]) for name, shape in codec.layout().items()},
            **dict.fromkeys(self.columns(), ((), norms)),
        }

    def curvature_bytes(self, rows: int | None = None) -> int:
        """Bytes of the curvature file, its small parts left out.

        Args:
            rows: Of the store, which have no more directions than there are of them; None for many.
        """
        shapes = [unit.projected for unit in self.units]
        return rows_type(self.dtype).itemsize * curvature_numbers(method_named(self.method), shapes, self.curvature_rank, rows)

    def to_json(self) -> dict[str, Any]:
        """As blueprint.json holds it."""
        content = {"format": _format_of(self.dtype), **json.loads(json.dumps(asdict(self)))}
        if self.structure is None:  # the digests of earlier stores are without it
            del content["structure"]
        return content

    def digest(self) -> str:
        """Digest of the whole record."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> "Blueprint":
        """The blueprint of a store.

        Raises:
            StoreMismatch: If it was made by another version of the format or of its method.
            StoreCorrupt: If it is incomplete.
        """
        content = read_json(folder / "blueprint.json")
        if not isinstance(content, dict):
            raise StoreCorrupt(**_incomplete(folder, "it is not an object"))
        version, needed = content.pop("format", None), _format_of(str(content.get("dtype")))
        if type(version) is not int or version not in (needed, DELETED_FORMAT_VERSION):
            raise StoreMismatch(
                found=f"a store of format {str(version)[:40]} in {folder}",
                needed=f"format {needed}",
                do="build it again with this version of whence, or read it with the version that wrote it",
            )
        try:
            structure = content.pop("structure", None)
            blueprint = record_of(cls, content)
            if structure is not None:
                blueprint = replace(blueprint, structure=Structure.from_json(structure))
            if blueprint.recipe is not None:
                record_of(Recipe, blueprint.recipe)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(**_incomplete(folder, str(error))) from error
        version = method_named(blueprint.method).version
        if blueprint.method_version != version:
            raise StoreMismatch(
                found=f"rows of {blueprint.method} version {blueprint.method_version} in {folder}",
                needed=f"version {version}",
                do="build the store again: the numbers of this method have changed",
            )
        why = _impossible(blueprint)
        if why:
            raise StoreCorrupt(**damaged(folder / "blueprint.json", why))
        return blueprint


@dataclass(frozen=True)
class Seal:
    """Proof that a shard is whole, written after it.

    Args:
        number: Its place.
        rows: How many rows it holds.
        data: Fingerprint of the dataset that the rows are from.
        data_rows: How many rows that dataset has in all.
        first: Number of the first row within that dataset.
        tensors_sha256: Of the .safetensors file.
        tensors_bytes: Its size.
        examples_sha256: Of the .jsonl file.
        examples_bytes: Its size.
    """

    number: int
    rows: int
    data: str
    data_rows: int
    first: int
    tensors_sha256: str
    tensors_bytes: int
    examples_sha256: str
    examples_bytes: int

    @property
    def tensors_file(self) -> str:
        """Path of the rows inside the store."""
        return f"{shard_stem(self.number)}.safetensors"

    @property
    def examples_file(self) -> str:
        """Path of the examples inside the store."""
        return f"{shard_stem(self.number)}.jsonl"


def curvature_numbers(method: Method, shapes: Sequence[tuple[int, int]], rank: int | None, rows: int | None = None) -> int:
    """Numbers of a curvature file, its small parts left out.

    Args:
        method: Of the store.
        shapes: (P, R) of each stored unit.
        rank: Directions kept of each unit's curvature; None for all.
        rows: Of the store, which have no more directions than there are of them; None for many.
    """
    if method.curvature != "fisher":
        return 0
    if method.structure != "full":
        return sum(p * p + r * r + p * r for p, r in shapes)
    sizes = [p * r for p, r in shapes]
    most = rank or max(sizes)
    return sum(size * (size if size <= most else min(most, rows or most)) for size in sizes)


def shard_stem(number: int) -> str:
    """Path of a shard inside the store, without ending.

    >>> shard_stem(7)
    'shards/00007'
    """
    return f"shards/{number:05d}"


def row_codec(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], factor_rank: int | None, dtype: str, seed: int
) -> RowCodec | QuantizedCodec:
    """How rows of units of such names and shapes lie in shards.

    Raises:
        UnknownOption: If there is no stored type of that name.
    """
    if dtype in _BITS:
        return QuantizedCodec(tuple(names), tuple(shapes), factor_rank, (_BITS[dtype],) * len(names), seed)
    if dtype not in _DTYPES:
        dtypes = ", ".join((*_DTYPES, *_BITS))
        raise UnknownOption(found=f"dtype {dtype!r}", needed=f"one of: {dtypes}", do="pick one")
    return RowCodec(tuple(names), tuple(shapes), factor_rank, _DTYPES[dtype], seed)


def rows_type(name: str) -> torch.dtype:
    """The type that rows stored as `name` are computed in, and that their norms and curvature have."""
    return torch.float64 if name == "float64" else torch.float32


def bits_named(name: str) -> int:
    """Bits that one number of that stored type takes, its scale left out.

    Raises:
        UnknownOption: If there is none.

    >>> bits_named("int4"), bits_named("bfloat16")
    (4, 16)
    """
    return _BITS[name] if name in _BITS else 8 * dtype_named(name).itemsize


def dtype_named(name: str) -> torch.dtype:
    """The floating-point type of that name.

    Raises:
        UnknownOption: If there is none.
    """
    if name not in _DTYPES:
        raise UnknownOption(found=f"dtype {name!r}", needed=f"one of: {', '.join(_DTYPES)}", do="pick one")
    return _DTYPES[name]


def _incomplete(folder: Path, why: str) -> dict[str, str]:
    return {
        "found": f"an incomplete blueprint.json in {folder} ({why})",
        "needed": f"the fields {', '.join(item.name for item in fields(Blueprint))}",
        "do": "build the store again",
    }


def _impossible(blueprint: Blueprint) -> str:
    """What no build writes into a blueprint, such as sizes that no model has; empty if there is nothing."""
    row_codec([], [], None, blueprint.dtype, 0)  # an error that names the types there are
    at_least = {
        "rank": blueprint.rank, "factor_rank": blueprint.factor_rank, "curvature_rank": blueprint.curvature_rank,
        "rows_per_shard": blueprint.rows_per_shard, "batch_positions": blueprint.batch_positions,
    }  # fmt: skip
    for name, value in at_least.items():
        if value is not None and not 1 <= value <= _LONGEST:
            return f"{name} is {value:,}"
    if blueprint.seed < 0 or blueprint.projection not in _PROJECTIONS or blueprint.autocast not in _AUTOCASTS:
        return f"seed {blueprint.seed}, projection {blueprint.projection[:40]!r} and autocast {str(blueprint.autocast)[:40]!r}"
    if not all(isinstance(blueprint.task.get(name, ""), str) for name in ("logged", "kind", "bases", "code")):
        return "task is not what a build writes"
    given = blueprint.task.get("build", {})
    widths = [given.get(name, 1) for name in ("side_divisor", "blow_up")] if isinstance(given, dict) else [None]
    if not all(type(width) is int and 1 <= width <= _LONGEST for width in widths):
        return "task is not what a build writes"
    if not blueprint.units or len({unit.name for unit in blueprint.units}) < len(blueprint.units):
        return f"{len(blueprint.units):,} units, not all with a name of their own" if blueprint.units else "no units"
    for unit in blueprint.units:
        for sides in ((unit.outputs, unit.inputs), unit.projected):
            if min(sides) < 1 or max(sides) > _LONGEST or math.prod(sides) > _LARGEST:
                return f"the unit {unit.name[:80]!r} of {sides[0]:,} x {sides[1]:,} numbers"
        if not unit.parameters or unit.gain < 0:
            return f"the unit {unit.name[:80]!r} without parameters, or of negative gain"
    return ""


def _format_of(dtype: str | None) -> int:
    return QUANTIZED_FORMAT_VERSION if dtype in _BITS else FORMAT_VERSION
