"""Attribution through another model's gradients, for a model whose weights are out of reach."""

from whence.proxy.distil import Distilled, distil
from whence.proxy.table import proxy_agreement, proxy_table

__all__ = ["Distilled", "distil", "proxy_agreement", "proxy_table"]
