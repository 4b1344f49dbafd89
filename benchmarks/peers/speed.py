"""Time and memory of EK-FAC on a small GPT-2: whence, kronfluence and bergson in one run, in turns.

    OMP_NUM_THREADS=1 python benchmarks/peers/speed.py --setting bench/text [--rounds 3]

The same weights everywhere (the linear layers of the blocks), one sampled label per position, a tenth of the mean eigenvalue as damping, the
same documents and queries. whence also runs as it comes, with biases, norms, embedding and LM head.

Every run is a process of its own, so that its peak memory is its own: what it has at most above what it had before, with model, data and
libraries loaded. Seconds are of the processor, which a busy machine stretches less than those on the wall; of whence, scoring includes
reading the fitted curvature from the disk, as it does for the peers. A ratio is a peer's time over that of whence on the same layers in
the same round. Everything in the table is a median over rounds. Agreement is the mean over queries of the rank correlation with whence's
EK-FAC from four other draws of labels.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from whence.settings import EKFAC, Damping, FitConfig, Runtime

_BLOCKS = ["*attn.c_attn.weight", "*attn.c_proj.weight", "*mlp.c_fc.weight", "*mlp.c_proj.weight"]
_SYSTEMS = ("whence, block weights", "whence, all parameters", "kronfluence", "bergson")
_REFERENCE = "four draws"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("SYSTEM", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments.setting, *arguments.run)
        return
    found = {name: [] for name in _SYSTEMS}
    scores = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        for name in (*_SYSTEMS * arguments.rounds, _REFERENCE):
            file = Path(scratch) / "scores.npy"
            command = [sys.executable, __file__, "--setting", arguments.setting, "--run", name, file]
            done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            scores[name] = torch.from_numpy(np.load(file)).double()
            if name in found:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    show(found, scores)


def show(found, scores):
    """The table."""
    from whence.evaluate import spearman

    base = [one["fit"] + one["score"] for one in found[_SYSTEMS[0]]]
    print("| system | fit, s | scores, s | both, s | times whence | on the wall, s | peak memory, MiB | agreement |")
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        fit, score, wall, mebibytes = (
            statistics.median(one[key] for one in runs) for key in ("fit", "score", "wall", "mebibytes")
        )
        both = statistics.median(one["fit"] + one["score"] for one in runs)
        ratio = statistics.median((one["fit"] + one["score"]) / ours for one, ours in zip(runs, base, strict=True))
        agreement = float(spearman(scores[name], scores[_REFERENCE]).mean())
        print(
            f"| {name} | {fit:.1f} | {score:.1f} | {both:.1f} | {ratio:.2f} | {wall:.1f} | {mebibytes:.0f} | {agreement:.3f} |"
        )


def run(folder: Path, name: str, file: str):
    """One system in this process: scores to the file, figures to stdout."""
    from exchange import load

    setting = load(folder)
    if name == "kronfluence":
        from kronfluence_scores import Analysis

        analysis = Analysis()
    elif name == "bergson":
        from bergson_scores import table
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    if name == "kronfluence":
        found = analysis.table(setting, "ekfac", None)
    elif name == "bergson":
        found = table(setting, "ekfac")
    else:
        share, scores = ours(setting, name)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if name in ("kronfluence", "bergson"):  # peers tell their stages on the wall
        share, scores = found.fit_seconds / (found.fit_seconds + found.score_seconds), found.scores
    np.save(file, np.asarray(scores, dtype=np.float32))
    print(json.dumps({"fit": share * cpu, "score": (1 - share) * cpu, "wall": wall, "mebibytes": peak() - before}))


def ours(setting, name):
    """Which share of the time is the fit's, and the scores."""
    import whence
    from whence.pipeline.exact.footprint import Demand
    from whence.pipeline.exact.prepare import prepare

    task, draws = setting.task, 4 if name == _REFERENCE else 1
    track = None if name == "whence, all parameters" else _BLOCKS
    task = whence.CausalLM(task.model, task.tokenizer, long="truncate", track=track)
    seed = 1 if name == _REFERENCE else 0
    with tempfile.TemporaryDirectory(prefix="whence-") as factors:
        started = time.process_time()
        prepare(
            task, setting.train, method="ekfac", config=FitConfig(samples=draws, seed=seed), factors=factors, fit_on=None,
            batch_positions=None, quiet=True, demand=Demand(rows=len(setting.queries), queries=len(setting.queries)), memory_gib=None,
        )  # fmt: skip
        fitted = time.process_time()
        scores = whence.attribute(
            task,
            setting.train,
            setting.queries,
            method=EKFAC(damping=Damping(relative=0.1), factors=factors, fit=FitConfig(samples=draws, seed=seed)),
            runtime=Runtime(quiet=True),
        ).scores
    return (fitted - started) / (time.process_time() - started), scores


def peak():
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
