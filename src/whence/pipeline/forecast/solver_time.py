"""How long a solver takes: one product of the matrix timed on a few examples, times as many as its settings come to.

Axes: Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from whence.curvature import Curvature, Kind, ResolvedDamping
from whence.pipeline.exact.prepare import Prepared
from whence.pipeline.forecast.timing import Timing, positions_of, timed
from whence.settings import ASTRA, CG, PCG, Arnoldi, DataInf, ExactSettings, LiSSA, Nystroem
from whence.solve import PROBE_PRODUCTS, PROBES

__all__ = ["ProductSeconds", "Products", "product_seconds", "products_of"]

# Right sides that a product is timed with, besides one alone.
_FEW_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Products:
    """What a solver does, at most, in products of the matrix over all examples.

    Args:
        queries: Products with all queries that are asked at once.
        single: Products with one vector.
        directions: Vectors of one product that is made together, besides.
        inverses: Times that EK-FAC's inverse is applied to all queries.
        may_stop: Whether it may do less, where it converges.
    """

    queries: float
    single: float = 0.0
    directions: int = 0
    inverses: int = 0
    may_stop: bool = False


def products_of(settings: ExactSettings, examples: int) -> Products:
    """What a solver comes to on so many examples.

    Args:
        settings: Of a method with a solver.
        examples: That its matrix is the mean of.

    Raises:
        NotImplementedError: If it has none.
    """
    match settings:
        case PCG() | CG():
            inverses = settings.iterations + 1 if isinstance(settings, PCG) else 0
            return Products(queries=settings.iterations + 1, inverses=inverses, may_stop=True)
        case Nystroem():
            return Products(queries=1, directions=settings.rank)
        case Arnoldi():
            return Products(queries=1, single=settings.iterations)
        case DataInf():
            return Products(queries=2)
        case ASTRA() | LiSSA():
            share = min(1.0, settings.batch_examples / examples)
            probes = (1 if share == 1.0 else PROBES) * PROBE_PRODUCTS * share
            walks, inverses = settings.iterations, settings.iterations + 1
            if isinstance(settings, LiSSA):
                walks, inverses = settings.iterations * settings.repeats, 0
            return Products(queries=walks * share + 1, single=probes, inverses=inverses, may_stop=True)
    raise NotImplementedError(settings.name)


@dataclass(frozen=True, kw_only=True)
class ProductSeconds:
    """What a product takes.

    Args:
        first: Of one vector, over the examples that it was timed on.
        each: Of every further vector.
        inverse: Of EK-FAC's inverse of one query; 0 where it is not asked for.
        positions: Of the examples that it was timed on.
    """

    first: float
    each: float
    inverse: float
    positions: int

    def total(self, products: Products, queries: int, positions: int) -> float:
        """Of all products for so many queries at once, over examples of so many positions."""
        with_queries = self.first + self.each * (queries - 1)
        together = self.first + self.each * (products.directions - 1) if products.directions else 0.0
        passes = products.queries * with_queries + products.single * self.first + together
        return passes * positions / self.positions + products.inverses * self.inverse * queries


def product_seconds(
    prepared: Prepared, rows: Sequence[Tensor], damping: ResolvedDamping, most: int, timing: Timing
) -> ProductSeconds:
    """A product of the matrix, timed with one right side and with a few.

    Args:
        prepared: The method, with a few examples to time on as its training data.
        rows: One query's gradient, per unit of shape (1, O, I).
        damping: Of the inverse.
        most: Vectors that the run multiplies at once, for which there is room.
        timing: How much time it may take.
    """
    settings, curvature, few = prepared.settings, prepared.curvature, prepared.train.examples
    assert curvature is not None
    kind: Kind = "empirical_fisher" if isinstance(settings, DataInf) else getattr(settings, "matrix", "gauss_newton")
    matrix = Curvature(prepared.task, prepared.plan, few, kind, max_positions=prepared.max_positions)

    def product(count: int) -> float:
        vectors = [row.to(prepared.task.device).expand(count, *row.shape[1:]).contiguous() for row in rows]
        return timed(lambda: matrix.times(vectors), timing)[1]

    first, inverse, few_rows = product(1), 0.0, min(most, _FEW_ROWS)
    each = max(product(few_rows) - first, 0.0) / (few_rows - 1) if few_rows > 1 else 0.0
    if isinstance(settings, PCG | ASTRA):
        own = [row.to(prepared.task.device) for row in rows]
        inverse = timed(lambda: curvature.solve(own, damping), timing)[1]
    return ProductSeconds(first=first, each=each, inverse=inverse, positions=positions_of(few))
