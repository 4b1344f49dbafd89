"""The main job: build a store from training data, then ask it."""

from whence.pipeline.build import build, forecast_build
from whence.pipeline.query import query, score_table

__all__ = ["build", "forecast_build", "query", "score_table"]
