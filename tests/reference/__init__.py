"""Slow, obvious twins of every fast path: dense gradients one at a time, dense matrices, closed forms."""
