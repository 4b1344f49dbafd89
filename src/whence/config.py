"""The knobs of a build, checked at birth."""

from dataclasses import dataclass
from typing import Literal

from whence.errors import BadInput, UnknownOption
from whence.methods import method_named

__all__ = ["BuildConfig"]


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What a store holds and how it is made. 0 means: chosen for you.

    Args:
        method: Name in `whence methods`.
        rank: Width of the projection on each side of a layer, or numbers of a row for methods that shrink the whole gradient; 0 takes the
            method's.
        factor_rank: Factors per row and unit, for methods that factorize; 0 takes the method's.
        curvature_rank: Directions of the curvature kept, for methods that truncate; 0 takes the method's.
        projection: Kind of random projection; "method" takes the method's, "sparse" is for the whole gradient only.
        dtype: Stored type.
        seed: Of everything random.
        batch_positions: Positions (tokens) per batch; 0 takes a forecast from free memory.
        rows_per_shard: Rows in a file, the unit of resuming; 0 takes about 32 MiB.
        autocast: Type of the model's arithmetic; "none" takes the model's own.
        axes_examples: Sample size for methods that learn axes, second moments or a mask (which takes 128 at most).

    Raises:
        BadInput: If a number is negative or set for a method that does not use it.
        UnknownOption: If a name is unknown.
    """

    method: str = "lorif"
    rank: int = 0
    factor_rank: int = 0
    curvature_rank: int = 0
    projection: Literal["method", "rademacher", "gaussian", "sparse"] = "method"
    dtype: Literal["bfloat16", "float32", "float16", "float64"] = "bfloat16"
    seed: int = 0
    batch_positions: int = 0
    rows_per_shard: int = 0
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    axes_examples: int = 1024

    def __post_init__(self):
        method = method_named(self.method)
        for name in ("rank", "factor_rank", "curvature_rank", "batch_positions", "rows_per_shard", "seed", "axes_examples"):
            if getattr(self, name) < 0:
                raise BadInput(found=f"{name}={getattr(self, name)}", needed="0 or more", do=f"correct {name}")
        for name in ("factor_rank", "curvature_rank"):
            if getattr(self, name) and getattr(method, name) is None:
                raise BadInput(
                    found=f"{name}={getattr(self, name)} for the method {self.method}",
                    needed=f"a method that uses {name}",
                    do=f"leave {name} out, or take another method (`whence methods`)",
                )
        if self.projection != "method" and method.projection == "pca":
            raise BadInput(
                found=f"projection={self.projection} for {self.method}, which learns its axes",
                needed="a method with a random projection",
                do="leave projection out, or take logra",
            )
        if self.projection != "method" and (
            method.mask is not None or (self.projection == "sparse" and method.encoder != "whole")
        ):
            raise BadInput(
                found=f"projection={self.projection} for {self.method}",
                needed="rademacher or gaussian for layers, sparse for the whole gradient, and none where entries are chosen",
                do="leave projection out, or take trak with projection=sparse",
            )
        choices = {
            "projection": ("method", "rademacher", "gaussian", "sparse"),
            "dtype": ("bfloat16", "float32", "float16", "float64"),
            "autocast": ("none", "bfloat16", "float16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UnknownOption(
                    found=f"{name}={getattr(self, name)!r}", needed=f"one of: {', '.join(allowed)}", do="pick one"
                )
