"""Whether a redacted service tells that a text was in the training data: membership inference through its answers.

    python benchmarks/membership.py FOLDER

A small GPT-2 is trained on half of 300 passages of Python's own documentation; the other half is the control. Every passage is asked about,
as a completion, at a service of an aligned store of the first half, three times in a random order. The attacker has one number per passage,
and guesses "in the data" where it is high: by what answers say; by the least time that one took, measured by the attacker or told by the
service; and by an error, being told the passage's source: whether a filter by it is refused.
Printed: the area under the ROC curve (0.5 is chance) with a 95 % bootstrap interval over passages, for several settings.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from sklearn.metrics import roc_auc_score

import whence
from whence.demo.corpus import python_docs
from whence.demo.model import new_model, train_tokenizer
from whence.demo.train import train
from whence.serve import ServeConfig
from whence.serve.app import create_app
from whence.serve.hosted_store import HostedStore
from whence.tasks import CausalLM

PASSAGES, DRAWS, ROUNDS = 300, 1000, 3
SETTINGS: dict[str, dict[str, Any]] = {
    "open": {},
    "redacted": {"redacted": True},
    "redacted, 2 digits, groups of 20, no ids": {"redacted": True, "round_to": 2, "least_group": 20, "hide_ids": True},
    "redacted, 1 digit, groups of 20, no ids": {"redacted": True, "round_to": 1, "least_group": 20, "hide_ids": True},
}
ATTACKS: dict[str, Callable[[dict[str, Any]], float]] = {
    "highest score": lambda answer: max((hit["score"] for hit in answer["proponents"]), default=0.0),
    "highest score over the second": lambda answer: _ratio(answer["proponents"]),
    "log-probability per token": lambda answer: answer["measurement"] / max(1, len(answer["tokens"])),
    "time, measured": lambda answer: answer["measured"],
    "time, told": lambda answer: answer["seconds"],
    "source is known": lambda answer: answer["knows_source"],
}


def main(folder: Path) -> None:
    """Make the store if it is missing, ask, print."""
    documents = python_docs(max_documents=PASSAGES)
    random.Random(0).shuffle(documents)
    members = documents[: len(documents) // 2]
    tokenizer = train_tokenizer(document["text"] for document in documents)
    dataset = CausalLM(new_model(len(tokenizer), 0), tokenizer, long="truncate").prepare(members)
    task = CausalLM(train(dataset, len(tokenizer)).model, tokenizer, long="truncate")
    if not (folder / "manifest.json").exists():
        whence.build(task, members, folder, runtime=whence.Runtime(quiet=True))
    hosted = HostedStore.load("store", whence.open_store(folder), task)
    is_member = [number < len(members) for number in range(len(documents))]
    print("| service | " + " | ".join(ATTACKS) + " |\n|---|" + "---|" * len(ATTACKS))
    for name, options in SETTINGS.items():
        with TestClient(create_app([hosted], ServeConfig(log=":memory:", **options)), base_url="http://127.0.0.1") as client:
            answers = all_asked(client, documents)
        cells = [auc(is_member, [attack(answer) for answer in answers]) for attack in ATTACKS.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def all_asked(client: TestClient, documents: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The answer about each passage, with the least times of three rounds, and what errors say."""
    answers: dict[int, dict[str, Any]] = {}
    for seed in range(ROUNDS):
        for number in random.Random(seed).sample(range(len(documents)), len(documents)):
            started = time.perf_counter()
            answer = asked(client, documents[number]["text"]).json()
            times = {"measured": time.perf_counter() - started, "seconds": answer["seconds"]}
            before = answers.get(number, times)
            answers[number] = answer | {name: min(value, before[name]) for name, value in times.items()}
    for number, document in enumerate(documents):
        chosen = asked(client, document["text"], {"sources": [document["source"]]}).status_code == 200
        answers[number] |= {"knows_source": float(chosen)}
    return [answers[number] for number in range(len(documents))]


def asked(client: TestClient, text: str, chosen: dict[str, Any] | None = None) -> Any:
    """The response about a text, the first characters of it that the model reads."""
    body = {"prompt": "", "completion": text[:200], "k": 5} | ({} if chosen is None else {"filter": chosen})
    return client.post("/v1/stores/store/attribute", json=body)


def _ratio(hits: list[dict[str, Any]]) -> float:
    return hits[0]["score"] / hits[1]["score"] if len(hits) > 1 else 1.0


def auc(is_member: list[bool], values: list[float]) -> str:
    """Area under the ROC curve with its interval."""
    generator, drawn = random.Random(0), []
    for _ in range(DRAWS):
        chosen = [generator.randrange(len(values)) for _ in values]
        drawn.append(float(roc_auc_score([is_member[n] for n in chosen], [values[n] for n in chosen])))
    drawn.sort()
    low, high = drawn[DRAWS // 40], drawn[-DRAWS // 40]
    return f"{float(roc_auc_score(is_member, values)):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
