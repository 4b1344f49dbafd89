"""The main job: build a store from training data, then ask it; or ask the data itself."""

from whence.pipeline.attribute import attribute, self_influence
from whence.pipeline.exact.damping_sweep import DampingSweep, damping_sweep
from whence.pipeline.exact.fit import fit_curvature
from whence.pipeline.forecast.along import AlongForecast, forecast_along
from whence.pipeline.forecast.build import BuildForecast, forecast_build
from whence.pipeline.forecast.exact import ExactForecast, forecast_exact
from whence.pipeline.forecast.scale import ScaleForecast, forecast_scale
from whence.pipeline.sample_images import sample_images
from whence.pipeline.stored.build import build
from whence.pipeline.stored.export import export
from whence.pipeline.stored.gradient_log import GradientLog
from whence.pipeline.stored.log_trainers import log_lightning, log_trainer
from whence.pipeline.stored.query import ensemble_table, query, score_table
from whence.pipeline.stored.refit import refit
from whence.pipeline.stored.row_vectors import query_vectors
from whence.pipeline.stored.spool import spool
from whence.pipeline.through.exact_unroll import group_effects, smoothness
from whence.pipeline.through.run_store import build_along, query_along, score_along
from whence.pipeline.words import store_words, with_words

__all__ = [
    "AlongForecast",
    "BuildForecast",
    "DampingSweep",
    "ExactForecast",
    "GradientLog",
    "log_lightning",
    "log_trainer",
    "ScaleForecast",
    "attribute",
    "build",
    "build_along",
    "damping_sweep",
    "ensemble_table",
    "export",
    "fit_curvature",
    "forecast_along",
    "forecast_build",
    "forecast_exact",
    "group_effects",
    "forecast_scale",
    "query",
    "query_along",
    "query_vectors",
    "refit",
    "sample_images",
    "score_along",
    "score_table",
    "self_influence",
    "smoothness",
    "spool",
    "store_words",
    "with_words",
]
