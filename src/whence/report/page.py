"""The report page: one file that loads nothing and runs nothing."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from whence.durable import write_file
from whence.report.html import style

__all__ = ["page", "write_page"]

# Should a text ever slip through unescaped, the browser still refuses to run it or to fetch anything for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# From this many sections on, links to them stand on top.
_NAVIGATION = 3


def page(title: str, sections: Sequence[tuple[str, str]], *, intro: str = "", tab: str = "") -> str:
    """A whole HTML page with inline style, for light and dark, wide and narrow screens.

    Args:
        title: Heading of the page; escaped, as are `intro` and the headings.
        sections: Heading and HTML of each section, such as `hits_fragment(hits)`; the HTML is taken as it is.
        intro: A line or two under the title.
        tab: What the browser's tab and its history say, such as the question; the title if left out.

    Returns:
        The page.
    """
    # Every fragment carries the style for notebooks; here it stands once, in the head.
    bodies = [(heading, content.replace(style(), "")) for heading, content in sections]
    parts = "".join(
        f'<section id="section-{number}"><h2>{escape(heading)}</h2>{content}</section>'
        for number, (heading, content) in enumerate(bodies, start=1)
    )
    links = "".join(f'<a href="#section-{number}">{escape(heading)}</a>' for number, (heading, _) in enumerate(bodies, start=1))
    navigation = f'<nav aria-label="Sections">{links}</nav>' if len(bodies) >= _NAVIGATION else ""
    lead = f'<p class="intro">{escape(intro)}</p>' if intro else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(tab or title)}</title>\n{style()}\n</head>\n"
        f'<body class="whence-page"><div class="sheet"><header><h1>{escape(title)}</h1>{lead}{navigation}</header>'
        f"<main>{parts}</main><footer>Made with whence. Scores are predictions: positive means that more weight on the "
        "example in training raises the measurement.</footer></div></body>\n</html>\n"
    )


def write_page(path: str | Path, title: str, sections: Sequence[tuple[str, str]], *, intro: str = "", tab: str = "") -> Path:
    """Write the page, whole or not at all.

    Args:
        path: The file, such as "report.html"; an existing one is replaced.
        title: As in `page`.
        sections: As in `page`.
        intro: As in `page`.
        tab: As in `page`.

    Returns:
        The path written.

    Raises:
        BadInput: If the file cannot be written.
    """
    path = Path(path)
    # A lone surrogate, which broken text can hold, has no bytes.
    content = page(title, sections, intro=intro, tab=tab).encode("utf-8", "replace")
    write_file(path, [content])
    return path
