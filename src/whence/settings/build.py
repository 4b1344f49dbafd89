"""The knobs of a build and of loading a model, checked at birth."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from whence.errors import BadInput, UnknownOption
from whence.methods import method_named
from whence.settings.checks import typed
from whence.settings.runtime import check_batch

__all__ = ["BuildConfig", "Placement"]


_Projection = Literal["method", "rademacher", "gaussian", "sparse"]
_Stored = Literal["method", "bfloat16", "float32", "float16", "float64", "int8", "int4", "int2", "int1"]
_Autocast = Literal["none", "bfloat16", "float16"]


# Of a width or a count, as a store's description may have it; bytes and seeds may be larger.
_MOST, _BEYOND = (1 << 31) - 1, ("seed", "bytes_per_example", "shared_bytes")


@dataclass(frozen=True, kw_only=True)
@typed
class BuildConfig:
    """What a store holds and how it is made. 0 means: chosen for you.

    Args:
        method: Name in `whence methods`.
        rank: Width of the projection on each side of a layer, or numbers of a row for methods that shrink the whole gradient; 0 takes the
            method's.
        side_divisor: For methods that project both sides of a layer at random, the width of a side's projection as its length over this, so
            that wide layers get more (LoRIF's f); 0 takes one rank for all.
        blow_up: For methods that choose entries or channels at random, how many entries of the gradient are chosen for each number of a row
            (GraSS's blow-up factor); 0 takes 4.
        factor_rank: Factors per row and unit, for methods that factorize; 0 takes the method's.
        curvature_rank: Directions of the curvature kept, for methods that truncate; 0 takes the method's.
        projection: Kind of random projection; "method" takes the method's, "sparse" is for the whole gradient only.
        dtype: Stored type, "method" takes the method's; int8, int4, int2 and int1 (signs) keep a scale per row and unit, or per
            factor vector.
        seed: Of everything random.
        batch_positions: Positions (tokens) per batch; 0 takes a forecast from free memory.
        batch_size: Examples per batch if all were as long as the longest; of shorter ones a batch holds more, up to as many positions. A
            build that goes on keeps its batches.
        rows_per_shard: Rows in a file, the unit of resuming; 0 takes about 32 MiB.
        autocast: Type of the model's arithmetic; "none" takes the model's own.
        axes_examples: Sample size for methods that learn axes, second moments or a mask (which takes 128 at most); 0 takes the method's, and
            for method aligned 8,192 of a store of 32,768 and more, which then go by twice.
        relative_damping: For methods that whiten rows, the share of each unit's mean eigenvalue; 0 takes the method's.
        factors: For method aligned, folder of an EK-FAC fit of the same model and data, as attribute keeps it: used if there, kept if not.
            Without one it lies in the store's folder until that is finished.
        bytes_per_example: For methods that whiten rows, bytes of a code, a number or one like 2k: chooses rank and dtype; 0
            leaves them alone.
        anchors: For method aligned, queries that are known beforehand, as `whence.query` takes them, or a file of them: rows then have one
            number for each and are exact for any document on these queries and what they span, and on others for their part in that span.
        shared_bytes: For methods that whiten rows, bytes of everything that rows share (bases, axes and what goes with them), a number or one
            like 8m; 0 takes as many as the rows take and a quarter of the parameters', 320 MiB at least, 256 MiB of them for axes. What does
            not fit is cut: directions of bases, coordinates to a sixteenth, then axes. Bases of a fit that is there already are kept, and 0
            grows by what they take.

    Raises:
        BadInput: If a number is negative or set for a method that does not use it.
        UnknownOption: If a name is unknown.
    """

    method: str = "aligned"
    rank: int = 0
    side_divisor: int = 0
    blow_up: int = 0
    factor_rank: int = 0
    curvature_rank: int = 0
    projection: _Projection = "method"
    dtype: _Stored = "method"
    seed: int = 0
    batch_positions: int = 0
    batch_size: int = 0
    rows_per_shard: int = 0
    autocast: _Autocast = "none"
    axes_examples: int = 0
    relative_damping: float = 0.0
    bytes_per_example: int | str = 0
    shared_bytes: int | str = 0
    anchors: Any = None
    factors: str | Path | None = None

    def __post_init__(self):
        for name in ("bytes_per_example", "shared_bytes"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, _bytes_named(getattr(self, name), name))
        self._check_numbers()
        self._check_method()
        for name, choices in (("projection", _Projection), ("dtype", _Stored), ("autocast", _Autocast)):
            if getattr(self, name) not in get_args(choices):
                raise UnknownOption(
                    found=f"{name}={getattr(self, name)!r}", needed=f"one of: {', '.join(get_args(choices))}", do="pick one"
                )

    def positions(self, lengths: Iterable[int]) -> int:
        """Positions per batch of examples of these lengths; 0 where they are forecast from free memory."""
        return self.batch_positions or self.batch_size * max(lengths, default=1)

    def _check_numbers(self) -> None:
        """What numbers may be, of any method.

        Raises:
            BadInput: If one is none of that.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise BadInput(found=f"{field.name}={value}", needed="0 or more", do=f"correct {field.name}")
            if isinstance(value, int) and value > _MOST and field.name not in _BEYOND:
                raise BadInput(found=f"{field.name}={value:,}", needed=f"{_MOST:,} or less", do=f"lower {field.name}")
        check_batch(self.batch_size or None, self.batch_positions or None)
        if self.bytes_per_example and (self.rank or self.dtype != "method"):
            raise BadInput(
                found=f"bytes_per_example={self.bytes_per_example} with a rank or a dtype",
                needed="one of them: the bytes decide both",
                do="leave rank and dtype out",
            )
        if 0 < int(self.bytes_per_example) < 16:
            raise BadInput(found=f"bytes_per_example={self.bytes_per_example}", needed="16 or more", do="raise it")

    def _check_method(self) -> None:
        """Refuse what the method has no use for.

        Raises:
            BadInput: If there is such an option.
        """
        method = method_named(self.method)
        for name in ("factor_rank", "curvature_rank"):
            if getattr(self, name) and getattr(method, name) is None:
                raise BadInput(
                    found=f"{name}={getattr(self, name)} for the method {self.method}",
                    needed=f"a method that uses {name}",
                    do=f"leave {name} out, or take another method (`whence methods`)",
                )
        if self.side_divisor and (self.rank or not (method.encoder == "sides" and method.is_projected)):
            raise BadInput(
                found=f"side_divisor={self.side_divisor} "
                + (f"with rank={self.rank}" if self.rank else f"for the method {self.method}"),
                needed="a random projection of both sides of each layer, whose width it says in place of a rank",
                do="leave one of them out, or take another method, such as lorif or logra",
            )
        if self.blow_up and method.mask != "random":
            raise BadInput(
                found=f"blow_up={self.blow_up} for the method {self.method}",
                needed="a method that chooses entries or channels at random",
                do="leave it out, or take grass or factgrass",
            )
        for name in ("relative_damping", "bytes_per_example", "shared_bytes"):
            if getattr(self, name) and method.encoder != "aligned":
                raise BadInput(
                    found=f"{name}={getattr(self, name)} for the method {self.method}",
                    needed="a method that whitens its rows",
                    do="take method aligned, or leave it out: other methods are damped when they are asked, and have a rank",
                )
        if self.anchors is not None:
            self._check_anchored(method.encoder == "aligned")
        if self.factors is not None and method.encoder != "aligned":
            raise BadInput(found=f"factors for the method {method.name}", needed="method aligned", do="leave factors out")
        is_sparse_layer = self.projection == "sparse" and not method.is_joined
        if self.projection != "method" and (not method.is_projected or is_sparse_layer):
            raise BadInput(
                found=f"projection={self.projection} for {self.method}",
                needed="rademacher or gaussian for layers, sparse for the whole gradient, and none where axes are learned or entries chosen",
                do="leave projection out, or take logra, or trak with projection=sparse",
            )

    def _check_anchored(self, is_aligned: bool) -> None:
        """Refuse what rows of anchors have no use for.

        Raises:
            BadInput: If there is such an option.
        """
        if not is_aligned:
            raise BadInput(
                found=f"anchors for the method {self.method}",
                needed="method aligned, whose axes may be chosen",
                do="leave method out, or anchors",
            )
        for name in ("rank", "bytes_per_example", "axes_examples"):
            if getattr(self, name):
                raise BadInput(
                    found=f"{name}={getattr(self, name)} with anchors",
                    needed="neither: rows have a number for each anchor, and nothing is learned from a sample",
                    do=f"leave {name} out",
                )
        if self.dtype.startswith("int"):
            raise BadInput(
                found=f"dtype={self.dtype} with anchors",
                needed="float32 (the default) or another floating type, since rows of anchors are exact",
                do="leave dtype out",
            )


@dataclass(frozen=True, kw_only=True)
@typed
class Placement:
    """How a model is loaded that may be larger than a device.

    Args:
        device: Where the model runs, such as cuda, cuda:1, mps or cpu, which is the default.
        model_dtype: Type of the weights; "auto" is the checkpoint's. Rows are of the weights in this type, so a store's queries take it too.
        device_map: Layers on devices, as transformers takes it: "auto", "balanced", "sequential", one device, or a .json file with a
            device, "cpu" or "disk" for each module.
        offload_folder: Where weights are written that device_map leaves to a disk.
        shard_model: Split the weights over the processes that torchrun started, block by block, with fully_shard (FSDP2).
        gradient_checkpointing: Keep the inputs of blocks only and run each block again on the way back: less memory, more time.

    Raises:
        BadInput: If two of them contradict each other.
    """

    device: str | None = None
    model_dtype: Literal["auto", "bfloat16", "float16", "float32", "float64"] = "auto"
    device_map: str | None = None
    offload_folder: Path | None = None
    shard_model: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self):
        if self.device is not None and (self.shard_model or self.device_map is not None):
            raise BadInput(
                found=f"device={self.device} with {'shard_model' if self.shard_model else 'a device_map'}",
                needed="one of the two: both say where weights go",
                do="leave one out",
            )
        if self.shard_model and self.device_map is not None:
            raise BadInput(
                found="a device_map for a model that is split over processes",
                needed="one of the two: every process has one device then",
                do="leave out device_map or shard_model",
            )
        if self.offload_folder is not None and self.device_map is None:
            raise BadInput(
                found="an offload_folder without a device_map",
                needed="a device_map, which says what is left to a disk",
                do="pass device_map='auto' (--device-map auto), or leave offload_folder out",
            )


def _bytes_named(text: str, name: str) -> int:
    """Bytes as people write them, k, m and g for 1,024, its square and its cube.

    Raises:
        BadInput: If that is no number.
    """
    digits, factor = text.strip().lower(), 1
    if digits[-1:] in ("k", "m", "g"):
        digits, factor = digits[:-1], {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[digits[-1]]
    try:
        # Rounded up: half a byte is no 0, which would ask for the default.
        return math.ceil(float(digits) * factor)
    except (ValueError, OverflowError):
        raise BadInput(
            found=f"{name}={text!r}", needed="a number of bytes, such as 512, 2k, 64m or 2g", do="correct it"
        ) from None
