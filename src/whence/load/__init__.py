"""Models and data by name: folders, files, hub names, or a function in a Python file."""

from whence.load.arrays import load_arrays
from whence.load.data_files import load_records
from whence.load.harness import harness_records
from whence.load.placement import connected_for
from whence.load.tar_shards import Shards, stream_records
from whence.load.task import TASKS, load_task

__all__ = ["Shards", "TASKS", "connected_for", "harness_records", "load_arrays", "load_records", "load_task", "stream_records"]
