"""From scores to shares of one query: the three rules, and the noise floor.

Axes: M models, N training examples, L lines of the report.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from whence.errors import BadInput, UnknownOption
from whence.score import spread_floor
from whence.settings import RuleName
from whence.shares.noise_floor import errors_floor, mean_scores
from whence.shares.sources import Lines

__all__ = ["RULES", "Rule"]

RULES: dict[str, str] = {
    "positive": "each example counts with its score if that is positive; a negative score counts as nothing, for no one and against no one",
    "softmax": "each example counts with exp(score / (temperature x the standard deviation of the query's scores)); "
    "a negative score counts little, but never against its source, and a query that nothing speaks for is split all the same",
    "signed": "scores are added up within a source, negative ones against positive ones; a source whose sum is negative counts as nothing "
    "for that query, and what it is below zero is charged to nobody",
}
"""What each rule does with scores, negative ones included, in words for the report."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the scores of a query become shares.

    Args:
        name: One of `RULES`.
        temperature: For "softmax", in standard deviations of the query's scores: a small one gives all to the highest scores.
        floor: Scores nearer to zero than this count on the line of noise, in the table's unit; None for `spread_floor` of the query's
            scores, unless there is a number of standard errors; "off" for none.
        floor_errors: The same, as a number of standard errors over the models.

    Raises:
        UnknownOption: If there is no such rule.
        BadInput: If the numbers do not fit the rule.
    """

    name: RuleName = "positive"
    temperature: float | None = None
    floor: float | Literal["off"] | None = None
    floor_errors: float | None = None

    def __post_init__(self):
        if self.name not in RULES:
            raise UnknownOption(found=f"the rule {self.name!r}", needed=f"one of: {', '.join(RULES)}", do="pick one")
        if (self.name == "softmax") != (self.temperature is not None):
            raise BadInput(
                found=f"the rule {self.name} {'without' if self.temperature is None else 'with'} a temperature",
                needed="a temperature for softmax, where it decides who gets how much, and for no other rule",
                do="set it, such as 0.5, or leave it out",
            )
        if self.floor is not None and self.floor_errors is not None:
            raise BadInput(
                found="two noise floors", needed="one, in the unit of the scores or in standard errors", do="leave one out"
            )
        for name in ("temperature", "floor", "floor_errors"):
            value = getattr(self, name)
            if name == "floor" and isinstance(value, str):
                if value != "off":
                    raise BadInput(
                        found=f"floor={value!r}", needed="a number above zero, or off", do="correct it, or leave it out"
                    )
            elif value is not None and not 0 < value < math.inf:
                more = ", or off" if name == "floor" else ""
                raise BadInput(found=f"{name}={value}", needed=f"a number above zero{more}", do="correct it, or leave it out")

    def shares(self, scores_N: np.ndarray, of_examples: np.ndarray, lines: Lines) -> np.ndarray:
        """Shares of one query.

        Sums run in the order of the examples, one after another, so that they come out the same everywhere.

        Args:
            scores_N: Scores of the query, float64; those that add nothing may be left out, and some may be sums of others of their line.
            of_examples: The line that each counts on, shape (N,), from `placed`.
            lines: All lines.

        Returns:
            Shape (L,), not negative, adding up to 1 but for rounding.
        """
        values_L = self._values(scores_N, of_examples, len(lines.names))
        total = math.fsum(values_L.tolist())
        if total <= 0:
            values_L = np.zeros(len(lines.names))
            values_L[lines.none] = total = 1.0
        return values_L / total

    def placed(self, scores_MN: np.ndarray, lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
        """Where the scores of one query count once the noise floor is drawn.

        Args:
            scores_MN: Scores by each model, float64.
            lines: All lines.

        Returns:
            The mean scores over models and the line that each example counts on, both (N,), and the floor; 0 for none, and where it differs
            by example.
        """
        scores_N = mean_scores(scores_MN)
        if self.floor_errors is not None:
            floor, least_N = 0.0, errors_floor(scores_MN, self.floor_errors)
        else:
            floor = least_N = self._floor_of(scores_N)
        return scores_N, np.where(np.abs(scores_N) < least_N, lines.noise, lines.of_examples), floor

    def _floor_of(self, scores_N: np.ndarray) -> float:
        if self.floor is None:
            return spread_floor(scores_N)
        return 0.0 if isinstance(self.floor, str) else self.floor

    def _values(self, scores_N: np.ndarray, of_examples: np.ndarray, num_lines: int) -> np.ndarray:
        if self.name == "signed":
            return np.maximum(np.bincount(of_examples, weights=scores_N, minlength=num_lines), 0.0)
        if self.name == "positive":
            return np.bincount(of_examples, weights=np.maximum(scores_N, 0.0), minlength=num_lines)
        assert self.temperature is not None
        if scores_N.min() == scores_N.max():
            return np.zeros(num_lines)  # nothing tells one example from another
        powers_N = np.exp((scores_N - scores_N.max()) / (self.temperature * float(np.std(scores_N))))
        return np.bincount(of_examples, weights=powers_N, minlength=num_lines)
