"""An audit of a store, as a document that people can file: what is known of model and data, how well scores agree, what is not known."""

from whence.audit.audit import AuditFiles, audit
from whence.audit.facts import Fact, Section, sections_of

__all__ = ["AuditFiles", "Fact", "Section", "audit", "sections_of"]
