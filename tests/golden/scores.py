"""Every method of both roads on small models in float64: the numbers that a redesign must not move.

    python -m tests.golden.scores           compare with the kept numbers, to the last bit; says which differ and by how much
    python -m tests.golden.scores --write   keep today's numbers; only together with a commit that says why they changed

`tests/test_golden.py` compares to 1e-9 relative, since processors may round differently.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

import whence
from tests import zoo
from tests.settings import QUIET, keywords_of, settings_of, small_rank
from tests.test_source import queries_of, train
from whence.data import Dataset

KEPT = Path(__file__).parent / "scores.json"
MODELS = ("linear", "conv2d", "gpt2")
EXAMPLES, QUERIES = 12, 3
NORMALIZED = (("ekfac", "cosine"), ("ekfac", "relatif"), ("kfac", "theta-relatif"), ("grad-dot-exact", "cosine"))
THROUGH = ("source", "astra-source", "tracin", "less", "dvemb", "unroll")


def compute(folder):
    """All numbers by name: lists of scores, or digests of what a store holds."""
    results = {}
    for model in MODELS:
        task, examples = zoo.make(model, EXAMPLES)
        queries = Dataset(examples.examples[:QUERIES])
        for method in whence.methods.METHODS:
            path = folder / f"{model}-{method}"
            options = small_rank(method, joined=64)
            store = whence.build(task, examples, path, config=whence.BuildConfig(method=method, **options), runtime=QUIET)
            results[f"{model} store {method}"] = _flat(whence.score_table(store, task, queries, runtime=QUIET))
            results[f"{model} bytes {method}"] = _digest(path)
        for method, record in whence.methods.EXACT_METHODS.items():
            if not record.needs_run:
                results[f"{model} exact {method}"] = _flat(_exact(task, examples, queries, method=method))
        for method, normalize in NORMALIZED:
            table = _exact(task, examples, queries, method=method, normalize=normalize)
            results[f"{model} exact {method} {normalize}"] = _flat(table)
        own = whence.self_influence(task, examples, runtime=QUIET)
        results[f"{model} self-influence"] = _flat(own)
        low_rank = _exact(task, examples, queries, method="ekfac", query_rank=2, per_unit=True)
        results[f"{model} query rank 2"] = _flat(low_rank)
        for name, part in low_rank.parts.items():
            results[f"{model} query rank 2, part {name}"] = part.flatten().tolist()
    _, task, data, _ = train(folder / "run", "adamw")
    for method in THROUGH:
        table = whence.attribute(
            task, data, queries_of(task, QUERIES), method=settings_of(method=method, run=folder / "run"), runtime=QUIET
        )
        results[f"run {method}"] = _flat(table)
    return results


def differences(kept, now):
    """By name, the largest relative difference of scores; infinite where digests, lengths or names differ."""
    found = {}
    for name in sorted({*kept, *now}):
        old, new = kept.get(name), now.get(name)
        if old == new:
            continue
        if not isinstance(old, list) or not isinstance(new, list) or len(old) != len(new):
            found[name] = float("inf")
            continue
        old, new = torch.tensor(old, dtype=torch.float64), torch.tensor(new, dtype=torch.float64)
        found[name] = float((old - new).abs().max() / old.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
    return found


def _exact(task, examples, queries, **options):
    return whence.attribute(task, examples, queries, **keywords_of(**options))


def _flat(table):
    return table.scores.double().flatten().tolist()


def _digest(store):
    """Of the rows and everything that they are decoded and weighed with; not of the manifest's wording."""
    total = hashlib.sha256()
    for path in sorted(store.rglob("*.safetensors")):
        total.update(str(path.relative_to(store)).encode())
        total.update(path.read_bytes())
    return f"sha256 {total.hexdigest()[:16]}"


def main(words):
    """The command; its status says whether something differs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        now = compute(Path(folder))
    if "--write" in words:
        KEPT.write_text(json.dumps(now, indent=0, sort_keys=True) + "\n")
        print(f"{len(now)} entries written to {KEPT.name}")
        return 0
    found = differences(json.loads(KEPT.read_text()), now)
    for name, by in found.items():
        print(f"{by:9.1e}  {name}")
    print(f"{len(now)} entries, {len(found)} differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
