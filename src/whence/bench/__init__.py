"""Small real settings with their truth, and every method on them."""

from whence.bench.run import Bench, run_setting
from whence.bench.settings import SETTINGS, Setting, load_setting, prepare

__all__ = ["SETTINGS", "Bench", "Setting", "load_setting", "prepare", "run_setting"]
