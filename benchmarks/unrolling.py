"""Methods that go through a run, held against the exact derivative of the run: small models, every step differentiated forwards.

    python benchmarks/unrolling.py

Prints the mean over queries of the Spearman correlation over training examples. A minute of one core.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.test_source import agreement, queries_of, train, truth

import whence

METHODS = {
    "`ekfac`": ("ekfac", {}),
    "`tracin`": ("tracin", {}),
    "`source`, full": ("source", {"form": "full"}),
    "`source`, diagonal": ("source", {"form": "diagonal"}),
    "FAST-SOURCE": ("source", {"average_weights": True}),
    "`astra-source`": ("astra-source", {}),
}


def found(optimizer, kind, epochs):
    """Of one run, by method; None where the method has nothing to say of the optimizer."""
    with tempfile.TemporaryDirectory() as folder:
        model, task, data, rest = train(folder, optimizer, kind=kind, epochs=epochs, every=epochs)
        queries = queries_of(task)
        wanted = truth(optimizer, kind, task, queries, *rest, model)
        scores = {}
        for name, (method, options) in METHODS.items():
            if optimizer == "momentum" and "form" in options:
                options = {}
            given = {} if method == "ekfac" else {"run": folder, **options}
            scores[name] = agreement(
                whence.attribute(
                    task,
                    data,
                    queries,
                    method=whence.settings.exact_settings(method, given),
                    runtime=whence.Runtime(quiet=True),
                ).scores,
                wanted,
            )
        return scores


def main():
    print(f"| optimizer | model | epochs | {' | '.join(METHODS)} |\n|{'---|' * (3 + len(METHODS))}")
    for optimizer in ("momentum", "adamw"):
        for kind in ("softmax", "mlp"):
            for epochs in (3, 10, 30):
                scores = found(optimizer, kind, epochs)
                print(
                    f"| {optimizer} | {kind} | {epochs} | {' | '.join(f'{value:.2f}' for value in scores.values())} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
