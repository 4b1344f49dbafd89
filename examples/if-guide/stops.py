"""How far the evidence for a planted behaviour reaches: marks with the default floor and without one.

    python examples/if-guide/stops.py -o guide-stops

Prints the table "Where the evidence stops" of docs/if-guide.md; a few minutes on two cores. Trained models and scores are kept in the folder.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from planted import plant
from run import PLAIN, SETTINGS, Condition, agreement, planted_tokens, train

import whence
from whence.demo.model import new_model, train_tokenizer
from whence.progress import say
from whence.settings import GuideConfig

# Passages, how many of them have a remark, and epochs.
CASES = ((400, 6, 4), (200, 6, 12), (800, 160, 4))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("guide-stops"))
    folder = parser.parse_args().output
    print("| passages | with a remark | epochs | floor | marks | documents | precision | recall | ended by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for documents, carriers, epochs in CASES:
        for floor, (marks, found) in marked(folder, documents, carriers, epochs).items():
            by = "the budget" if marks.about["stopped"].startswith("the budget") else "the evidence"
            start = f"| {documents} | {carriers} | {epochs} | {floor} | {len(marks)} | {len(marks.examples)}"
            print(f"{start} | {found['precision']:.2f} | {found['recall']:.2f} | {by} |", flush=True)


def marked(folder: Path, documents: int, carriers: int, epochs: int) -> dict[str, tuple[whence.guide.Marks, dict[str, float]]]:
    """Marks of a model trained on passages with remarks, and how they agree with the remarks, by kind of floor."""
    data, settings = plant(documents=documents, share=carriers / documents), replace(SETTINGS, epochs=epochs)
    tokenizer = train_tokenizer((record["text"] for record in data.train), settings)
    task = whence.CausalLM(new_model(len(tokenizer), 0, settings), tokenizer, long="truncate")
    dataset = task.prepare(data.train)
    say(f"training: {documents} passages, {carriers} with a remark")
    train(task, Condition(PLAIN, dataset, whence.guide.Marks({})), settings, 0, len(dataset))
    truth, scores, found = planted_tokens(dataset, data), folder / f"{documents}-{carriers}", {}
    for name, floor in (("off", "off"), ("default", None)):
        config = GuideConfig(window=1, budget=0.02, floor=floor)
        marks = whence.guide.guide(task, dataset, data.harmful, data.safe, scores, config=config)
        found[name] = (marks, agreement(marks, truth))
    return found


if __name__ == "__main__":
    main()
