"""Attribution through another model's gradients, for a model whose weights are out of reach."""

from whence.proxy.distil import Distilled, distil
from whence.proxy.recorded import RecordedTrust, distil_recorded, trust_recorded
from whence.proxy.table import proxy_agreement, proxy_table

__all__ = [
    "Distilled",
    "RecordedTrust",
    "distil",
    "distil_recorded",
    "proxy_agreement",
    "proxy_table",
    "trust_recorded",
]
