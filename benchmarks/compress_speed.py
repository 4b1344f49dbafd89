"""Seconds per batch from gradient pairs to rows: LoGra's two projections beside FactGraSS, GraSS and TRAK, on the same pairs.

    python benchmarks/compress_speed.py [--layers 4 --width 768 --length 512 --batch 4 --rank 32]

The pairs are those of the linear layers of a transformer of that width: 4 x width to width and back. All encoders take turns, so that a
busy machine slows all; figures are medians over rounds, and times LoGra's seconds. LoGra and FactGraSS store rank x rank numbers per
layer; the methods of the whole gradient store as many as all layers together, at most 4096.
"""

import argparse
import json
import statistics
import time

import torch

from whence.compress import ChannelMask, EntryMask, Kronecker, WholeProjection, projected_shape
from whence.records import Dense, Pair, Unit

CPU = torch.device("cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("layers", 4), ("width", 768), ("length", 512), ("batch", 4), ("rank", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dense", action="store_true", help="also time TRAK's dense projection, thousands of times slower")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = arguments.width
    shapes = [(4 * width, width) if layer % 2 == 0 else (width, 4 * width) for layer in range(arguments.layers)]
    units = tuple(Unit(f"layer{place}", *shape, (f"layer{place}",)) for place, shape in enumerate(shapes))
    pairs = [Pair(*(Dense(torch.randn(arguments.batch, arguments.length, size)) for size in shape)) for shape in shapes]
    projected = [projected_shape(unit, arguments.rank) for unit in units]
    numbers = min(4096, arguments.rank**2 * arguments.layers)
    options = {"seed": 0, "device": CPU}
    encoders = {
        "logra": Kronecker.random(units, projected, kind="rademacher", **options),
        "factgrass": ChannelMask.random(units, arguments.rank, **options),
        "grass (random or selective)": EntryMask.random(units, numbers, **options),
        "trak, sparse": WholeProjection(units, numbers, "sparse", 0, CPU),
    }
    if arguments.dense:
        encoders["trak, dense"] = WholeProjection(units, numbers, "rademacher", 0, CPU)
    seconds = {name: [] for name in encoders}
    for number in range(arguments.rounds + 1):
        for name, encoder in encoders.items():
            started = time.perf_counter()
            rows = encoder.rows(arguments.batch)
            for index, pair in enumerate(pairs):
                rows(index, pair)
            rows.finished()
            if number:  # the first round draws the random numbers
                seconds[name].append(time.perf_counter() - started)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in found.items():
        ratio = found["logra"] / value
        print(json.dumps({"encoder": name, "milliseconds": round(1e3 * value, 2), "times_as_fast_as_logra": round(ratio, 2)}))


if __name__ == "__main__":
    main()
