"""The answer to "why did it say this?": documents, tokens in them, tokens of the completion, layers, and how they add up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.report.hits import Hits
from whence.report.page import write_page
from whence.report.passages import question_title
from whence.why.heads import modules_of
from whence.why.html import TOKEN_DEFINITION, why_fragment
from whence.why.terminal import print_why

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DocumentParts", "Foil", "Why"]

_PAIRS = 5


@dataclass(frozen=True)
class DocumentParts:
    """How one document's score comes about.

    Args:
        scores_AT: Shape (asked tokens of the completion, tokens of the document), float64. Sums over the document give the document's score
            for one completion token, sums over the completion the parts of the document's tokens.
        tokens: Text of each token of the document.
        layers: Each unit of parameters' part of the score, by the name of its first parameter.
        heads: Each attention head's part: of its rows of the projections to queries, keys and values, and its columns of the one behind them;
            empty where the model's projections are of no form that is known.
    """

    scores_AT: "Tensor"
    tokens: tuple[str, ...]
    layers: Mapping[str, float]
    heads: Mapping[str, float] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, float]:
        """Parts of layers added up by the module that holds them, such as an attention or an MLP."""
        return modules_of(self.layers)

    def strongest(self, count: int = _PAIRS) -> list[tuple[int, int, float]]:
        """The pairs with the largest parts on either side: row, column and part, largest first."""
        flat = self.scores_AT.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:count].tolist()
        width = self.scores_AT.shape[1]
        return [(index // width, index % width, float(flat[index])) for index in order if float(flat[index])]


@dataclass(frozen=True)
class Foil:
    """What a completion is held against.

    Args:
        tokens: Text of each of its tokens.
        log_probabilities: Of each of them, in nats.
    """

    tokens: tuple[str, ...]
    log_probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Why:
    """Why a model completed a prompt as it did.

    Args:
        prompt: Text before the completion, as the model read it.
        completion: Text of each token of the completion that has a probability.
        log_probabilities: Of each of them, in nats.
        asked: Numbers of the completion tokens that the scores are about, counted from 1, those of a foil after them: all, or the chosen one.
        hits: The documents on both sides, with a score per token.
        parts: Of every document in `hits`, by id.
        foil: What the completion is held against; its tokens' parts are those of the measurement, so that what speaks against it is positive.
    """

    prompt: str
    completion: tuple[str, ...]
    log_probabilities: tuple[float, ...]
    asked: tuple[int, ...]
    hits: Hits
    parts: Mapping[str, DocumentParts]
    foil: Foil | None = None

    @property
    def asked_tokens(self) -> tuple[str, ...]:
        """Texts of the completion tokens, and those of its foil, that the scores are about."""
        against = () if self.foil is None else tuple(f"not {text}" for text in self.foil.tokens)
        return tuple((*self.completion, *against)[number - 1] for number in self.asked)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as `--json` prints them."""
        content = self.hits.to_dict()
        (query,) = content.pop("queries")
        tokens = zip(self.completion, self.log_probabilities, strict=True)
        head = {
            "prompt": self.prompt,
            "completion": [
                {"number": number, "text": text, "log_probability": value}
                for number, (text, value) in enumerate(tokens, start=1)
            ],
            **({} if self.foil is None else {"foil": self._foil()}),
            "asked": list(self.asked),
            "measurement": query["measurement"],
            "token_definition": TOKEN_DEFINITION,
        }
        sides = {side: [self._document(hit) for hit in query[side]] for side in ("proponents", "opponents")}
        return head | content | sides | ({"beside": query["beside"]} if "beside" in query else {})

    def show(self, *, layers: bool = False) -> None:
        """Print the answer in the terminal.

        Args:
            layers: Whether to print through which layers, modules and attention heads each score comes, too.
        """
        print_why(self, layers=layers)

    def page(self, path: str | Path, *, title: str = "Why did it say this?", intro: str = "") -> Path:
        """Write a page with the answer: one file that loads and runs nothing.

        Args:
            path: The file.
            title: Heading of the page.
            intro: A line under it.

        Returns:
            The path written.
        """
        tab = question_title([self.prompt + "".join(self.completion)])
        return write_page(path, title, [("The answer", why_fragment(self))], intro=intro, tab=tab)

    def _foil(self) -> list[dict[str, Any]]:
        assert self.foil is not None
        first = len(self.completion) + 1
        pairs = zip(self.foil.tokens, self.foil.log_probabilities, strict=True)
        return [{"number": n, "text": text, "log_probability": value} for n, (text, value) in enumerate(pairs, start=first)]

    def _document(self, hit: Mapping[str, Any]) -> dict[str, Any]:
        parts = self.parts[hit["id"]]
        return {
            **hit,
            "map": parts.scores_AT.tolist(),
            "layers": dict(parts.layers),
            "modules": parts.modules,
            "heads": dict(parts.heads),
        }

    def _repr_html_(self) -> str:
        return why_fragment(self)
