"""Small real settings with their truth, and every method on them."""

from whence.bench.entries import DIFFUSION_ENTRIES, ENTRIES, MEDIUM_ENTRIES, Entry
from whence.bench.leaderboard import write_leaderboard
from whence.bench.own import own_entry
from whence.bench.run import Bench, run_setting
from whence.bench.settings import ONLY_NAMED, SETTINGS, Setting, load_setting, prepare

__all__ = [
    "DIFFUSION_ENTRIES",
    "ENTRIES",
    "MEDIUM_ENTRIES",
    "ONLY_NAMED",
    "SETTINGS",
    "Bench",
    "Entry",
    "Setting",
    "load_setting",
    "own_entry",
    "prepare",
    "run_setting",
    "write_leaderboard",
]
