"""Time of EK-FAC on a small GPT-2: whence, kronfluence and bergson in one run, in turns.

    OMP_NUM_THREADS=1 python benchmarks/peers/speed.py --setting bench/text [--rounds 3]

The same weights everywhere (the linear layers of the blocks), one sampled label per position, the same documents and queries. whence
also runs as it comes, with biases, norms, embedding and LM head. Fit and scores together; a ratio is the peer's time over that of
whence on the same layers in the same round, and the table has the medians.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch
from bergson_scores import table as bergson
from exchange import Setting, load
from kronfluence_scores import Analysis

import whence
from whence.evaluate import spearman

_BLOCKS = ["*attn.c_attn.weight", "*attn.c_proj.weight", "*mlp.c_fc.weight", "*mlp.c_proj.weight"]


def ours(setting: Setting, track: list[str] | None):
    """Scores of whence's EK-FAC."""
    task = setting.task
    task = whence.CausalLM(task.model, task.tokenizer, long="truncate", track=track)
    return whence.attribute(task, setting.train, setting.queries, relative_damping=0.1, samples=1, quiet=True).scores


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    setting = load(arguments.setting)
    systems = {
        "whence, block weights": lambda: ours(setting, _BLOCKS),
        "whence, all parameters": lambda: ours(setting, None),
        "kronfluence": lambda: Analysis().table(setting, "ekfac", None).scores,
        "bergson": lambda: bergson(setting, "ekfac").scores,
    }
    seconds = {name: [] for name in systems}
    scores = {}
    for _ in range(arguments.rounds):
        for name, run in systems.items():
            started = time.perf_counter()
            scores[name] = run()
            seconds[name].append(time.perf_counter() - started)
    base = seconds["whence, block weights"]
    print("| system | seconds, fit and scores | times whence on the same layers | agreement with whence |")
    print("|---|---|---|---|")
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        both = (torch.as_tensor(scores[key]).double() for key in (name, "whence, block weights"))
        agreement = float(spearman(*both).mean())
        print(f"| {name} | {statistics.median(found):.1f} | {ratio:.2f} | {agreement:.3f} |")
    print(f"\npeak memory of the whole run {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
