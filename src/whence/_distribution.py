"""What pip calls this package, and what is wrong where another package's files lie in the same folder.

`whence` on PyPI is another package that installs a folder of the same name, so pip writes the files of both into one, and the last one wins.
"""

import os
import warnings
from functools import cache

__all__ = ["DISTRIBUTION", "WAY_OUT", "mixed_files", "warn_if_mixed"]

DISTRIBUTION = "whence-tda"

WAY_OUT = "pip uninstall -y whence whence-tda, then pip install whence-tda"


def mixed_files(package: str) -> str | None:
    """A line on another distribution that pip wrote into the folder of this package; None if there is none.

    Only names of files are read, which takes no time: `importlib.metadata` takes longer than all else at the start. A checkout, or an
    editable install, lies in no folder that pip writes into.

    Args:
        package: The folder of the package.
    """
    try:
        names = sorted(os.listdir(os.path.dirname(package)))
    except OSError:  # imported from an archive
        return None
    for name in names:
        if name.startswith("whence-") and name.endswith(".dist-info"):
            other = name.removesuffix(".dist-info").replace("-", " ")
            return f"found files of {other}, another package, among those of {DISTRIBUTION}; do this: {WAY_OUT}"
    return None


@cache
def warn_if_mixed(package: str) -> None:
    """Warn, once, that another distribution wrote into this one's folder: upgrading or removing either breaks the other."""
    if text := mixed_files(package):
        warnings.warn(text, stacklevel=3)
