"""x"""
from whence.report.hits import Hit, Hits
