"""Why did it say this? An answer split over its tokens and those of the documents behind it."""

from whence.why.answer import DocumentParts, Why
from whence.why.candidates import check_store
from whence.why.explain import why

__all__ = ["DocumentParts", "Why", "check_store", "why"]
