"""The road through a recorded training run."""
