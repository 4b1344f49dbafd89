"""What people do with scores: each ends in something to act on."""

from whence.apply.proxy import proxy_agreement, proxy_table
from whence.apply.proxy_distil import DistilConfig, Distilled, distil
from whence.apply.study_result import Study
from whence.apply.study_sets import study

__all__ = ["DistilConfig", "Distilled", "Study", "distil", "proxy_agreement", "proxy_table", "study"]
