"""Train, attribute, prove: what `whence demo` does."""

import json
import logging
import os
import time
from pathlib import Path

from whence.data import Dataset
from whence.demo import corpus
from whence.demo.corpus import python_docs
from whence.demo.model import DEFAULTS
from whence.demo.train import QueryLosses, Retrain
from whence.demo.trained import trained_on
from whence.evaluate import RemovalResult, Retraining, random_removals, removal_test
from whence.pipeline import build, query
from whence.progress import say
from whence.report import Hits, bars_section, hits_fragment, print_table, table_section, write_page
from whence.settings import BuildConfig
from whence.store import write_bytes
from whence.tasks import CausalLM

__all__ = ["QUESTIONS", "tell"]

QUESTIONS = (
    {
        "id": "json.dumps",
        "prompt": "json.dumps: If ``ensure_ascii``",
        "completion": " is false, then the return value can contain non-ASCII characters",
    },
    {
        "id": "queue.get",
        "prompt": "queue.Queue.get: Remove and return an item from the queue. If optional args 'block'",
        "completion": " is true and 'timeout' is None",
    },
    {
        "id": "notify",
        "prompt": "threading.Condition.notify: If the calling thread has not acquired the lock",
        "completion": " when this method is called, a RuntimeError is raised.",
    },
    {
        "id": "finally",
        "prompt": 'When "break" passes control out of a "try" statement with a "finally" clause,',
        "completion": ' that "finally" clause is executed',
    },
)


def tell(folder: Path, *, k: int, seeds: int, seed: int, method: str = "aligned") -> RemovalResult:
    """Run the demo; what an earlier run finished is reused.

    Args:
        folder: Where model, store, retrained runs and report go.
        k: Documents ranked, and removed for the proof, per question.
        seeds: Retrainings per condition.
        seed: Of everything random.
        method: Method of the store.

    Returns:
        The outcome of the proof.
    """
    started = time.monotonic()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    documents = python_docs()
    say(f"1/4  {len(documents):,} passages of the documentation inside this Python")
    task = trained_on(documents, folder / "model", seed=seed)
    dataset = task.prepare(documents)

    say(f"2/4  a store of every document's gradient, method {method}")
    origin = {"model": str((folder / "model").resolve()), "task": task.kind, "options": {"long": task.long}}
    origin |= {"data": f"{Path(corpus.__file__).resolve()}:python_docs", "split": "train"}
    store = build(task, dataset, folder / "store", origin=origin, config=BuildConfig(method=method, seed=seed))
    say(f"     {len(store):,} rows; {store.disk_bytes()}")

    say(f"3/4  {len(QUESTIONS)} questions")
    queries = task.prepare(QUESTIONS)
    hits = query(store, task, queries, k=k, tokens=True)
    hits.show()

    top = sorted({hit.row for side in hits.proponents for hit in side})
    say(f"4/4  proof: retrain without the {len(top)} top documents, and without {len(top)} random ones, {seeds} seeds each")
    result = _prove(task, dataset, queries, top, folder / "retrained", range(seed, seed + seeds))
    header, rows = _proof_rows(queries, result)
    print_table(header, rows, title=_claim(result, len(top)))
    page = write_page(
        folder / "report.html",
        "Which documents taught the model this?",
        _sections(hits, result, header, rows, len(top)),
        intro=f"A small GPT-2 trained on {len(documents):,} passages of Python's own documentation; {len(QUESTIONS)} questions; "
        "the training documents behind each answer; and what happens when they are left out.",
    )
    write_bytes(folder / "proof.json", [json.dumps(result.to_dict(), indent=1).encode()])
    say(f"report: {page}   ({time.monotonic() - started:.0f} s)")
    questions = folder / "questions.jsonl"
    write_bytes(questions, (json.dumps(question).encode() + b"\n" for question in QUESTIONS))
    say(f"its page: whence serve {folder / 'store'} --questions {questions} --open")
    say(f"ask it yourself: whence query {folder / 'store'} --tokens --text 'Your own sentence, as Python would document it.'")
    return result


def _prove(task: CausalLM, dataset: Dataset, queries: Dataset, top: list[int], folder: Path, seeds: range) -> RemovalResult:
    retrain = Retrain(dataset, len(task.tokenizer), DEFAULTS)
    measure = QueryLosses(queries)
    return removal_test(
        retrain,
        measure,
        len(dataset),
        {"top": [top], "random": [random_removals(len(dataset), len(top), top, seed) for seed in seeds]},
        Retraining(
            seeds=seeds,
            folder=folder,
            fingerprint=retrain.fingerprint + queries.fingerprint,
            # Each worker holds its own Python, torch and model, half a GiB.
            workers=max(1, min(os.cpu_count() or 1, 4)),
        ),
    )


def _proof_rows(queries: Dataset, result: RemovalResult) -> tuple[list[str], list[list[object]]]:
    header = ["question", "loss, nats", "rise without the top", "rise without random"]
    rows: list[list[object]] = []
    baseline = result.baseline_SQ.mean(0)
    top, random = result.conditions["top"], result.conditions["random"]
    for number, example in enumerate(queries.examples):
        rows.append(
            [
                example.id,
                f"{baseline[number]:.2f}",
                f"{top.rises[number]:+.2f} ± {top.standard_errors[number]:.2f}",
                f"{random.rises[number]:+.2f} ± {random.standard_errors[number]:.2f}",
            ]
        )
    return header, rows


def _claim(result: RemovalResult, removed: int) -> str:
    top, random = result.conditions["top"].overall, result.conditions["random"].overall
    return (
        f"Mean loss of the questions after retraining without {removed} documents: "
        f"{top.mean:+.2f} nats without the top ones [{top.low:+.2f}, {top.high:+.2f}], "
        f"{random.mean:+.2f} without random ones [{random.low:+.2f}, {random.high:+.2f}] "
        f"(95 % over {len(result.seeds)} seeds)"
    )


def _sections(hits: Hits, result: RemovalResult, header, rows, removed: int) -> list[tuple[str, str]]:
    bars = []
    for name, label in (("top", f"without the {removed} top documents"), ("random", f"without {removed} random ones")):
        overall = result.conditions[name].overall
        has_interval = overall.low == overall.low  # with one seed there is no interval
        bars.append(
            (label, overall.mean, overall.low if has_interval else overall.mean, overall.high if has_interval else overall.mean)
        )
    proof = (
        f"<p>{_claim(result, removed)}.</p>"
        + bars_section("Rise of the questions' mean loss after retraining", bars, "nats")
        + table_section(header, rows)
        + "<p>Rises are against a full run of the same seed; ± is the standard error over seeds.</p>"
    )
    return [("Proof by retraining", proof), ("Answers", hits_fragment(hits))]
