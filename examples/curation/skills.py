"""Are clusters of gradients topics? Holds those of a store against the sources of its texts, and against clusters of words.

    whence demo && python examples/curation/skills.py whence-demo/store

Prints the adjusted mutual information (0 for chance, 1 for the same) of three partitions with the top-level module or topic of each text:
clusters of whole rows, of the directions that rows share, and of TF-IDF vectors.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

import whence
from whence.clusters.spherical_kmeans import spherical_kmeans

SEEDS = range(3)
_LEAST = 10


def main(folder: Path, k: int) -> dict[str, list[float]]:
    """Cluster three ways, print; returns the figures by kind and seed."""
    store = whence.open_store(folder)
    examples = list(store.examples())
    sources = [example["source"].replace("/", ".").split(".")[0] for example in examples]
    sizes = Counter(sources)
    judged_N = torch.tensor([sizes[source] >= _LEAST for source in sources])
    truth = [source for source in sources if sizes[source] >= _LEAST]
    words_NW = torch.from_numpy(TfidfVectorizer().fit_transform([example["text"] for example in examples]).toarray()).float()

    def of_rows(shared: int, seed: int) -> Tensor:
        return torch.tensor(whence.clusters.clusters(store, k=k, shared=shared, seed=seed, quiet=True).labels)

    kinds = {
        "whole rows": lambda seed: of_rows(1 << 30, seed),
        "32 shared directions": lambda seed: of_rows(32, seed),
        "words (TF-IDF)": lambda seed: spherical_kmeans(words_NW, k, seed=seed, restarts=4).labels_N,
    }
    found = {}
    print(f"{len(truth)} texts of {len(set(truth))} sources, {k} clusters")
    for name, partition in kinds.items():
        found[name] = [adjusted_mutual_info_score(truth, partition(seed)[judged_N].tolist()) for seed in SEEDS]
        print(f"{name:<22}{', '.join(f'{value:.2f}' for value in found[name])}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("-k", type=int, default=24)
    given = parser.parse_args()
    main(given.store, given.k)
