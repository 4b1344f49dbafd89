"""Where do sets of queries come from? A corpus study on the documentation inside this Python, minutes on two cores.

    python examples/corpus-study/python_docs.py corpus-study

Trains a small GPT-2 on a thousand passages (the demo's model and data) and asks passages that it was not trained on, in three sets: the
language reference, docstrings of `asyncio`, and docstrings of `os` and `pathlib`. The kind of a document is its module, or
"language reference". Whoever wrote the sets knows what should come out: every set draws on its own kind of document.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import whence
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS
from whence.demo.trained import trained_on
from whence.report import print_table

SETS = {"language reference": ("language reference",), "asyncio": ("asyncio",), "files": ("os", "pathlib")}
QUERIES = 10


def kind_of(record):
    """The module that a passage documents."""
    source = record["source"]
    return "language reference" if source.startswith("topics/") else source.split(".")[0]


def split(records):
    """What to train on, and the queries of each set: every third passage of its kinds, until there are enough."""
    sets = {name: [one for one in records if kind_of(one) in kinds][::3][:QUERIES] for name, kinds in SETS.items()}
    asked = {one["id"] for some in sets.values() for one in some}
    return [one for one in records if one["id"] not in asked], sets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=DEFAULTS.epochs)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    documents, sets = split(python_docs(max_documents=arguments.documents))
    folder = arguments.folder
    task = trained_on(documents, folder / "model", settings=dataclasses.replace(DEFAULTS, epochs=arguments.epochs))
    kinds = {one["id"]: kind_of(one) for one in documents}
    found = whence.study.study(task, documents, sets, folder / "study", config=whence.settings.StudyConfig(k=20, kinds=kinds))
    print_table(found.header, found.cells())
    rows = []
    for reading in found.readings.values():
        for name in sets:
            shares = [one for one in reading.kinds if (one.set, one.side) == (name, "top")]
            for one in [one for one in shares if one.kind in SETS[name]]:
                low, high = one.chance
                rows.append(
                    (
                        reading.name,
                        name,
                        one.kind,
                        f"{one.documents}",
                        f"{one.found}",
                        str(one.ratio),
                        f"{low:.2f} to {high:.2f}",
                    )
                )
    header = ("reading", "set", "kind", "in corpus", "in top tails", "times the corpus share", "by chance")
    print_table(header, rows, title="Own kind of document in the top tails")
    print(json.dumps({"page": str(folder / "study" / "study.html"), "numbers": str(folder / "study" / "study.json")}))


if __name__ == "__main__":
    main()
