"""The main job: build a store from training data, then ask it; or ask the data itself."""

from whence.pipeline.build import build
from whence.pipeline.exact import attribute, self_influence
from whence.pipeline.fit import fit_curvature
from whence.pipeline.forecast import BuildForecast, forecast_build
from whence.pipeline.forecast_exact import ExactForecast, forecast_exact
from whence.pipeline.gradient_log import GradientLog
from whence.pipeline.judged import write_evaluation
from whence.pipeline.query import ensemble_table, query, score_table
from whence.pipeline.sampling import sample_images
from whence.pipeline.scale import ScaleForecast, forecast_scale
from whence.pipeline.sizes import Cluster
from whence.pipeline.solving import SolveConfig
from whence.pipeline.spool import spool
from whence.pipeline.sweep import DampingSweep, damping_sweep
from whence.pipeline.unrolled import group_effects, smoothness
from whence.pipeline.unrolling import UnrollConfig

__all__ = [
    "BuildForecast",
    "Cluster",
    "DampingSweep",
    "ExactForecast",
    "GradientLog",
    "ScaleForecast",
    "SolveConfig",
    "UnrollConfig",
    "attribute",
    "build",
    "damping_sweep",
    "ensemble_table",
    "fit_curvature",
    "forecast_build",
    "forecast_exact",
    "group_effects",
    "forecast_scale",
    "query",
    "sample_images",
    "score_table",
    "self_influence",
    "smoothness",
    "spool",
    "write_evaluation",
]
