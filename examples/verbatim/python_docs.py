"""What is copied, what is related, what is only influential? A small GPT-2 on the documentation inside this Python, minutes on two cores.

    python examples/verbatim/python_docs.py verbatim

Trains on a thousand passages (the demo's model and data) and asks three sets of sentences: ends of passages as they stand in the training
data, the same with every third word left out, and ends of passages that it was not trained on. Prints, per set, how much stands in the corpus
word for word, and of the ten strongest documents behind each how many are copied, related, or only influential. Also writes one answer as
a page, FOLDER/why.html.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import whence
from whence.demo.corpus import python_docs
from whence.demo.trained import trained_on
from whence.report import print_table
from whence.study.copied import COPIED_HEADER

QUERIES = 15


def ends(records, *, leave_out=False):
    """Records as prompt and completion: the second half of each text, maybe without every third word."""
    found = []
    for record in records:
        words = record["text"].split()
        half = len(words) // 2
        end = [word for place, word in enumerate(words[half:]) if not leave_out or place % 3 < 2]
        found.append({"id": record["id"], "prompt": " ".join(words[:half]), "completion": " " + " ".join(end)})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    records = python_docs(max_documents=arguments.documents + QUERIES)
    unseen = records[:: len(records) // QUERIES][:QUERIES]
    documents = [record for record in records if record not in unseen]
    seen = documents[5 :: len(documents) // QUERIES][:QUERIES]
    folder = arguments.folder
    task = trained_on(documents, folder / "model")
    sets = {"trained on": ends(seen), "words left out": ends(seen, leave_out=True), "never seen": ends(unseen)}
    method = whence.EKFAC(factors=folder / "factors")
    config = whence.settings.StudyConfig(k=10, verbatim=True)
    found = whence.study.study(task, documents, sets, folder / "study", method=method, config=config)
    print_table(COPIED_HEADER, found.copied())
    query = sets["words left out"][0]
    why = whence.why.why(task, query["prompt"], query["completion"], train=documents, method=method)
    train, asked = task.prepare(documents), [(query["prompt"], query["completion"])]
    hits = whence.pipeline.with_words(why.hits, train, folder / "words", completions=asked)
    print(replace(why, hits=hits).page(folder / "why.html"))


if __name__ == "__main__":
    main()
