"""Time and memory of EK-FAC on a small GPT-2: whence, kronfluence and bergson in one run, in turns.

    OMP_NUM_THREADS=1 python benchmarks/peers/speed.py --setting bench/text [--rounds 3]
    OMP_NUM_THREADS=1 python benchmarks/peers/speed.py --width 768 [--documents 128 --queries 8 --systems kronfluence]

The same weights everywhere (the linear layers of the blocks), one sampled label per position, a tenth of the mean eigenvalue as damping, the
same documents and queries. whence also runs as it comes, with biases, norms, embedding and LM head. With a width the setting is that of
`benchmarks/widths.py`: two layers, texts of 32 tokens, a vocabulary of 512.

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
    parser.add_argument("--setting", type=Path)
    parser.add_argument("--width", type=int, help="of a model that is made here, in place of a setting")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--systems", nargs="*", choices=_SYSTEMS, default=_SYSTEMS, help="besides whence on the same layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("SYSTEM", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        run(arguments.setting, *arguments.run)
        return
    systems = [name for name in _SYSTEMS if name == _SYSTEMS[0] or name in arguments.systems]
    found = {name: [] for name in systems}
    scores = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch:
        folder = arguments.setting or made(Path(scratch), arguments)
        for name in (*systems * arguments.rounds, _REFERENCE):
            file = Path(scratch) / "scores.npy"
            command = [sys.executable, __file__, "--setting", folder, "--run", name, file]
            done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            scores[name] = torch.from_numpy(np.load(file)).double()
            if name in found:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, found[name][-1], file=sys.stderr, flush=True)
    show(found, scores)


def made(folder, arguments):
    """A folder with the setting of a width."""
    from exchange import Setting

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from widths import make

    task, train, queries = make(arguments.width, 512, arguments.documents, arguments.queries)
    torch.save(Setting(task, train, queries), folder / "setting.pt")
    return folder


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

    task, draws = setting.task, 4 if name == _REFERENCE else 1
    track = None if name == "whence, all parameters" else _BLOCKS
    task = whence.CausalLM(task.model, task.tokenizer, long="truncate", track=track)
    fit = FitConfig(samples=draws, seed=1 if name == _REFERENCE else 0)
    with tempfile.TemporaryDirectory(prefix="whence-") as factors:
        settings = EKFAC(damping=Damping(relative=0.1), factors=factors, fit=fit)
        started = time.process_time()
        whence.pipeline.fit_curvature(task, setting.train, factors, fit=fit, runtime=Runtime(quiet=True))
        fitted = time.process_time()
        scores = whence.attribute(task, setting.train, setting.queries, method=settings, runtime=Runtime(quiet=True)).scores
    return (fitted - started) / (time.process_time() - started), scores


def peak():
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
