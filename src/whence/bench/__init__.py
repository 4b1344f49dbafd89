"""Small real settings with their truth, and every method on them."""

from whence.bench.settings import SETTINGS, Setting, load_setting, prepare

__all__ = ["SETTINGS", "Setting", "load_setting", "prepare"]
