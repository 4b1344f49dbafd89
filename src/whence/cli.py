"""The command line: verbs, and one place where errors become one line and an exit status."""

import sys

from cyclopts import App, CycloptsError

from whence import __version__
from whence.errors import WhenceError

__all__ = ["app", "main"]

app = App(
    name="whence",
    help="Training data attribution: which training examples does this behaviour come from, by how much, and can we prove it?",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
)

_VERBS = {
    "demo": "The whole story on real text, in minutes, on a CPU: train, attribute, prove it by retraining.",
    "build": "Compress the gradient of every training example into a store.",
    "query": "Rank the training examples behind a behaviour.",
    "verify": "Check that a store is what was written.",
    "inspect": "Say what a store holds.",
    "forecast": "Say what a build would take in memory and on disk.",
    "methods": "List the attribution methods.",
}
# Commands as strings, so that `--help` does not wait for torch.
for _verb, _help in _VERBS.items():
    app.command(f"whence.commands:{_verb}", name=_verb, help=_help)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What was typed after `whence`; None takes the process's own.

    Returns:
        0 if it went well, 1 if `verify` found a fault, 2 for an error that whence understands, 130 if interrupted.
    """
    try:
        status = app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
    except WhenceError as error:
        print(f"whence: {error}", file=sys.stderr)
        return 2
    except CycloptsError as error:
        print(f"whence: {' '.join(str(error).split())}; do this: see `whence --help`", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("whence: stopped; what was finished is kept: run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `whence query ... | head`
        sys.stderr.close()
        return 0
    return status if isinstance(status, int) else 0


def run() -> None:
    """Entry point of the `whence` script."""
    sys.exit(main())


if __name__ == "__main__":
    run()
