"""The exact road: curvature fitted, queries preconditioned, whole gradients scanned."""
