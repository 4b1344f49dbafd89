"""The command line: verbs, and one place where errors become one line and an exit status."""

import os
import sys

from cyclopts import App, CycloptsError, Group, Parameter

from whence._version import __version__
from whence.commands.help_pages import HelpPage
from whence.commands.mistyped import explained
from whence.commands.shared import TYPED
from whence.digests import digested_once
from whence.errors import WhenceError
from whence.terminal import say, tell_all_through_here

__all__ = ["app", "main"]

app = App(
    name="whence",
    help="Training data attribution: which training examples does this behaviour come from, by how much, and can we prove it?",
    version=__version__,
    help_format="plaintext",
    help_flags=("--help", "-h", "--help-all"),
    help_formatter=HelpPage(),
    default_parameter=Parameter(negative_iterable=()),  # no --empty-text beside --text
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

_VERBS = {
    "demo": ("bench", "The whole story on real text, in minutes, on a CPU: train, attribute, prove it by retraining."),
    "forecast": ("forecast", "Say what a build, or an exact run, would take in memory, disk and time."),
    "methods": ("inspection", "List the attribution methods."),
    "build": ("build", "Compress the gradient of every training example into a store."),
    "query": ("query", "Rank the training examples behind a behaviour."),
    "why": ("why", "Why did it say this? Documents and tokens behind a completion, or behind one token of it."),
    "serve": ("service", "Answer questions over HTTP, with a page for people."),
    "inspect": ("inspection", "Say what a store holds."),
    "verify": ("inspection", "Check that a store, a report of shares, receipts or a proof is what was written."),
    "prove": ("proofs", "Prove that a document is in a store, or that it is not, showing no other one."),
    "keys": ("receipts", "Make a key to sign receipts with."),
    "seal": ("receipts", "Give a receipt to a table of scores or a report of shares."),
    "delete": ("upkeep", "Delete training examples from a store by their ids."),
    "refit": ("upkeep", "Learn a store's code again from all documents that are left in it, and write its rows anew."),
    "export": ("upkeep", "Write a store's rows as vectors for Parquet, Lance or FAISS."),
    "attribute": ("tables", "Score every training example for every query from whole gradients, without a store."),
    "score": ("tables", "Score every training example of a store for every query, into a table."),
    "curvature": (
        "fit",
        "Fit EK-FAC curvature and keep it, for attribute and build; over several processes if started by torchrun.",
    ),
    "smoothness": ("tables", "Say whether a recorded run is smooth enough for its exact derivative."),
    "proxy": ("proxy", "Score training examples for a target model by another model's gradients."),
    "select": ("curate", "Keep, drop or re-weight training examples by what they are worth, and prove it."),
    "clusters": ("clusters", "Cluster training examples by what they teach, and name the clusters."),
    "study": ("study", "Compare named sets of queries by where in a corpus they come from."),
    "shares": ("credit", "Turn scores into shares per source, and a payout into amounts, with a record that can be audited."),
    "audit": ("audit", "Write down what a store knows of the training data and of its own scores, as a document to file."),
    "guide": ("guide", "Find the training tokens that an unwanted behaviour comes from, for training to suppress."),
    "behaviour": ("behaviour", "Measure how often models show a behaviour, in sampled continuations, and their perplexity."),
    "bank": ("truth", "Retrain on many subsets and keep what the queries measured."),
    "evaluate": ("truth", "Hold score tables against a bank of retrained models."),
    "bench": ("bench", "Every method on small real settings, held against retraining."),
}
# What people do, each with an example and the verbs for it, in the order of `whence --help`.
_USES = {
    "Begin": ("whence demo", ("demo", "forecast", "methods")),
    "Why did it say this?": (
        'whence build MODEL train.jsonl -o store\nwhence query store --text "The capital of France is Paris"',
        ("build", "query", "why", "serve", "inspect", "verify"),
    ),
    "Change a store": (
        "whence delete store --ids doc-17 doc-203\nwhence refit store\nwhence export store index --to faiss",
        ("delete", "refit", "export"),
    ),
    "Score all of the data": (
        "whence attribute MODEL train.jsonl questions.jsonl -o table",
        ("attribute", "score", "curvature", "smoothness", "proxy"),
    ),
    "Which data to keep, and what is in it?": (
        "whence select train.jsonl --model MODEL --validation good.jsonl --keep 50% -o chosen",
        ("select", "clusters", "study"),
    ),
    "Whose data made this?": (
        "whence shares table --records train.jsonl --by author -o report",
        ("shares", "audit", "prove", "seal", "keys"),
    ),
    "Can it be trained without a behaviour?": (
        "whence guide MODEL train.jsonl --harmful harmful.jsonl --safe safe.jsonl -o guide",
        ("guide", "behaviour"),
    ),
    "Is it true?": (
        "whence bank --train train.py:retrain --data train.jsonl --queries questions.jsonl -o bank\nwhence evaluate bank table",
        ("bank", "evaluate", "bench"),
    ),
}
# Commands as strings, so that `--help` does not wait for torch.
for _number, (_title, (_example, _verbs)) in enumerate(_USES.items()):
    _group = Group(_title, help=_example, sort_key=_number)
    for _order, _verb in enumerate(_verbs):
        _module, _help = _VERBS[_verb]
        app.command(f"whence.commands.{_module}:{_verb}", name=_verb, help=_help, group=_group, sort_key=_order)
_group = Group("About", sort_key=len(_USES))
for _flag in ("--help", "--version"):
    app[_flag].group = (_group,)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What was typed after `whence`; None takes the process's own.

    Returns:
        0 if it went well, 1 if `verify` found a fault, 2 for an error that whence understands, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else arguments
    TYPED.set(("whence", *words))
    try:
        with digested_once():
            status = app(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here, where a closed pipe is an exception, and not when Python exits
    except WhenceError as error:
        say(f"whence: {error}")
        return 2
    except CycloptsError as error:
        say(f"whence: {explained(error, app, _VERBS, words)}")
        return 2
    except KeyboardInterrupt:
        say("whence: stopped; what was finished is kept: run the same command again to go on")
        return 130
    except BrokenPipeError:  # `whence query ... | head`
        # What is still in the buffer would raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status if isinstance(status, int) else 0


def run() -> None:
    """Run the command of this process, and end it with that command's status."""
    tell_all_through_here()
    sys.exit(main())


if __name__ == "__main__":
    run()
