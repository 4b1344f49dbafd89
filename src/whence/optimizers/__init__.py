"""What optimizers do in a step, and which of them a step was made by."""

from whence.optimizers.averaging import Averaging, averaging_of, mix_of, weights_averaged, weights_stepped
from whence.optimizers.muon import muon_gain
from whence.optimizers.observed import Watch, counted, fitting_rules, flat_state
from whence.optimizers.rule import SETTINGS, Rule
from whence.optimizers.rules import NAMES, RULES, candidates, rule_named, what_it_lacks

__all__ = [
    "NAMES",
    "RULES",
    "SETTINGS",
    "Averaging",
    "Rule",
    "Watch",
    "averaging_of",
    "candidates",
    "counted",
    "fitting_rules",
    "flat_state",
    "mix_of",
    "muon_gain",
    "rule_named",
    "weights_averaged",
    "weights_stepped",
    "what_it_lacks",
]
