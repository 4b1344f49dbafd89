"""What `--help` of a verb shows first; `--help-all` shows the rest, too."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpEntry

from whence.commands.shared import TYPED

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel

__all__ = ["FEW", "FIRST", "HelpPage", "shortened"]

FEW = 14
"""Options that a page shows whole; of more it shows those of `FIRST`."""

# Of verbs with many options, those that most people want. What a verb cannot do without is shown besides.
FIRST = {
    "build": "--append --task --long --max-length --track --skip-bad --method --bytes-per-example --factors --device --batch-size",
    "query": "--text --prompt --completion --file -k --tokens --model --trust --relative-damping --rerank --device --html",
    "why": "--store --completion --chat --token -k --model --train --method --long --device --html --json",
    "serve": "--model --trust --device --questions --metadata --open --host --port --token-file --redacted --log --workers",
    "forecast": "--model --data --exact --queries --memory-gib --model-shape --examples --task --long --device --method "
    "--bytes-per-example --json",
    "score": "--model --trust --relative-damping --absolute-damping --damping-rule --ensemble --workers --device --batch-size",
    "attribute": "--method --relative-damping --fit-on --factors --normalize --run --ensemble --task --long --max-length --device "
    "--batch-size",
    "curvature": "--fit-on --samples --seed --largest-side --task --long --max-length --track --device --batch-size",
    "smoothness": "--share --h --seed --task --long --max-length --device --batch-size --json",
    "shares": "--records --by --store --queries --rule --floor --payout --minimum --weights --device --json",
    "study": "--set -k --kinds --model --trust --method --relative-damping --fit-on --task --long --device --batch-size --json",
    "proxy": "--target --target-name --probe --distil --save-model --name --method --fit-on --task --long --device --json",
    "guide": "--quantile --window --budget --method --relative-damping --fit-on --task --long --device --batch-size --json",
    "behaviour": "--scorer --label --perplexity --samples --tokens --top-p --threshold --seed --task --max-length --device --json",
    "bank": "--train --command --data --queries --examples --subsets --fraction --leave-out --seeds --workers --masks --outcomes --json",
    "evaluate": "--html --calibrate --banzhaf --battery --data --queries --fit --model --method --trigger --foreign --planted-label --json",
    "select": "--by --keep --drop --model --table --validation --balance --duplicates --store --prove --task --device --json",
}


@dataclass(frozen=True)
class HelpPage:
    """Pages of help, laid out as cyclopts does, with the options that most people want before the others."""

    layout: DefaultFormatter = field(default_factory=DefaultFormatter)

    def __call__(self, console: Any, options: Any, panel: "HelpPanel") -> None:
        """Print a panel of a page."""
        self.layout(console, options, shortened(panel, TYPED.get()))

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print the line of usage."""
        self.layout.render_usage(console, options, usage)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what a verb does."""
        self.layout.render_description(console, options, description)


def shortened(panel: "HelpPanel", typed: tuple[str, ...]) -> "HelpPanel":
    """A panel without the options that few people want, and with a line that says how many these are.

    Args:
        panel: Of a page of help.
        typed: The command that asked for it.
    """
    verb = next((word for word in typed[1:] if word in FIRST), None)
    if verb is None or panel.format != "parameter" or "--help-all" in typed or len(panel.entries) <= FEW:
        return panel
    first = set(FIRST[verb].split())
    entries = [entry for entry in panel.entries if entry.required or first.intersection((*entry.names, *entry.shorts))]
    more = HelpEntry(positive_names=("--help-all",), description=f"Show {len(panel.entries) - len(entries)} more options.")
    return panel.copy(entries=[*entries, more])
