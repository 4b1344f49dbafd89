"""Attribution through another model's gradients, for a model whose weights are out of reach."""

from whence.apply.proxy.distil import Distilled, distil
from whence.apply.proxy.table import proxy_agreement, proxy_table

__all__ = ["Distilled", "distil", "proxy_agreement", "proxy_table"]
