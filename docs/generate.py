"""Write the generated pages: docs/cli.md. `tests/test_docs.py` holds them against the code."""

from pathlib import Path

from whence.cli import app

FOLDER = Path(__file__).parent


def cli_page() -> str:
    """docs/cli.md as it should be."""
    body = app.generate_docs(output_format="markdown", recursive=True, heading_level=1)
    return f"<!-- written by `make docs`; do not edit -->\n\n{body.strip()}\n"


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
