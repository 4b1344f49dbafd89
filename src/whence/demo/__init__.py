"""The whole story on real text: `whence demo`."""

from whence.demo.story import tell

__all__ = ["tell"]
