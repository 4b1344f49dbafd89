"""Print the lowest versions that pyproject.toml allows, as constraints for pip: `make test-lowest` installs them."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions():
    """`name==version` for every requirement of the package and of its extras that says `name>=version`."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    requirements = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    found = {name: version for line in requirements for name, version in re.findall(r"^([\w-]+)>=([\w.]+)", line)}
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
