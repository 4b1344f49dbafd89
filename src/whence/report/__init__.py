"""Rankings as people read them: in a terminal, in a notebook, on one page."""

from whence.report.beside import Beside, Shared, beside_hits, beside_of
from whence.report.charts import bars_section, table_section
from whence.report.heat import heat_section
from whence.report.hits import ClassLabel, Hit, Hits, QueryFacts
from whence.report.html import hits_fragment
from whence.report.images import images_section, png
from whence.report.page import page, write_page
from whence.report.passages import question_title
from whence.report.plots import Point, plot_section
from whence.report.terminal import print_hits, print_methods, print_table

__all__ = [
    "Beside",
    "ClassLabel",
    "Hit",
    "Hits",
    "Point",
    "Shared",
    "QueryFacts",
    "bars_section",
    "beside_hits",
    "beside_of",
    "heat_section",
    "hits_fragment",
    "images_section",
    "page",
    "plot_section",
    "png",
    "print_hits",
    "print_methods",
    "print_table",
    "question_title",
    "table_section",
    "write_page",
]
