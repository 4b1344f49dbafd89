"""The numbers of every method stay those that were kept; bytes are compared by `python -m tests.golden.scores`, on one machine."""

import json

from tests.golden.scores import KEPT, compute, differences


def test_scores_are_those_that_were_kept(tmp_path):
    kept = json.loads(KEPT.read_text())
    scores = {name: values for name, values in compute(tmp_path).items() if isinstance(values, list)}
    moved = differences({name: values for name, values in kept.items() if isinstance(values, list)}, scores)
    assert not {name: by for name, by in moved.items() if by > _allowed(name)}


def _allowed(name):
    """Relative: what another processor may change."""
    if name.endswith(("cg", "pcg")):
        return 1e-2  # the residual at which they stop; conjugate gradients grow what rounding adds
    if name.endswith("astra"):
        return 1e-6  # so do hundreds of steps
    # Rows of few bits may round the other way on another processor, and single precision is used on the way to them.
    return 1e-3 if " store " in name else 1e-9
