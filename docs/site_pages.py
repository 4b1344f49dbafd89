"""What `make site` adds to docs/: the pages at the root of the repository, and links between the two.

README and its kin are read on their own, too, so their links stay as they are in the files and are turned here.
"""

import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def on_files(files, config):
    """Adds the pages at the root of the repository."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown, page, **_):
    """Links of a page as they are on the site; what lies outside the documentation is named instead of linked to."""
    source = {written: name for name, written in PAGES.items()}.get(page.file.src_uri)
    folder = PurePosixPath(".") if source else PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent

    def turned(match):
        path = _inside(folder / match[0])
        target = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if target is None:
            return path
        return "/".join([".."] * page.file.src_uri.count("/") + [target])

    markdown = _LINK.sub(turned, markdown)
    # Examples and tests have no page here.
    return re.sub(r"\[([^\]]+)\]\(((?:examples|tests|benchmarks|src)[^)]*|LICENSE|CITATION\.cff)\)", r"\1 (`\2`)", markdown)


def on_post_page(output, **_):
    """The page without what its theme would load from a network."""
    search = (Path(__file__).parent / "site_search.js").read_text()
    return re.sub(
        r'<script src="https://unpkg.com/iframe-worker/shim"></script>', lambda _: f"<script>{search}</script>", output
    )


def _inside(path):
    parts = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
