"""Why did a small GPT-2 write this sentence? Train it on Python's own documentation, let it write, and ask.

    python examples/why/run.py FOLDER

Prints the documents behind the sentence, a table of what carries their scores, and, as one line of JSON, how far the parts are from adding
up. The model is kept in FOLDER and used again; the pages are FOLDER/greedy.html and FOLDER/token.html.
"""

import argparse
import json
from pathlib import Path

import whence
from whence.demo.corpus import python_docs
from whence.demo.trained import trained_on
from whence.report import print_table
from whence.settings import Writing

PROMPT = "json.dumps: If ``ensure_ascii``"


def farthest(found: whence.why.Why) -> float:
    """The largest distance between a document's score and the sum of its parts, by pairs of tokens and by layers, as a share of the score."""
    hits = (*found.hits.proponents[0], *found.hits.opponents[0])
    sums = [(hit.score, total) for hit in hits for total in _totals(found.parts[hit.id])]
    return max(abs(total - score) / abs(score) for score, total in sums)


def _totals(parts: whence.why.DocumentParts) -> tuple[float, float]:
    return float(parts.scores_AT.sum()), sum(parts.layers.values())


def rows_of(found: whence.why.Why) -> list[tuple[str, ...]]:
    """Of each document its score, the strongest pair of tokens and the strongest module and head, each with its part."""
    rows = []
    for hit in (*found.hits.proponents[0], *found.hits.opponents[0]):
        parts = found.parts[hit.id]
        ((row, column, pair),) = parts.strongest(1)
        strongest = [max(named.items(), key=lambda item: abs(item[1])) for named in (parts.modules, parts.heads)]
        cells = [f"{name} {value:+.3g}" for name, value in strongest]
        rows.append(
            (hit.id, f"{hit.score:+.3g}", f"{found.asked_tokens[row]!r} from {parts.tokens[column]!r} {pair:+.3g}", *cells)
        )
    return rows


def main() -> None:
    """Ask about the whole of what the model writes, and about its least likely token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    documents = python_docs()[:: max(1, 1000 // arguments.documents)]
    task = trained_on(documents, arguments.folder / "model")
    options = {"train": documents, "method": whence.EKFAC(factors=arguments.folder / "factors")}
    whole = whence.why.why(task, PROMPT, Writing(max_new_tokens=12), **options)
    whole.show()
    print_table(("document", "score", "strongest pair of tokens", "strongest module", "strongest head"), rows_of(whole))
    whole.page(arguments.folder / "greedy.html")
    least = min(range(len(whole.completion)), key=lambda place: whole.log_probabilities[place]) + 1
    one = whence.why.why(task, PROMPT, "".join(whole.completion), token=least, **options)
    one.page(arguments.folder / "token.html", title=f"Why {whole.completion[least - 1]!r}?")
    top = [hit.id for hit in whole.hits.proponents[0]]
    print(json.dumps({"wrote": "".join(whole.completion), "top": top, "token": least, "off": [farthest(whole), farthest(one)]}))


if __name__ == "__main__":
    main()
