"""Import time of whence against torch, and what the installed environment weighs.

    python benchmarks/install_size.py

Import times are CPU seconds of fresh interpreters, the least of five. Sizes are those of the files that each distribution lists.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


def cpu_seconds(code):
    probe = f"{code}\nimport resource\nprint(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"
    return min(float(subprocess.check_output([sys.executable, "-c", probe], text=True)) for _ in range(5))


def needed(name, seen):
    """The distributions that one needs, itself included; extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return
    seen[key] = distribution
    for requirement in distribution.requires or ():
        if "extra ==" not in requirement:
            needed(re.match(r"[\w.-]+", requirement).group(), seen)


def size(distribution):
    files = (Path(str(file.locate())) for file in distribution.files or ())
    return sum(path.stat().st_size for path in files if path.is_file()) / 2**20


def main():
    base = cpu_seconds("pass")
    print("| import | CPU seconds above a bare interpreter |")
    print("|---|---|")
    for code in (
        "import whence",
        "import whence.cli",
        "import torch",
        "import whence; whence.build, whence.query, whence.CausalLM",
    ):
        print(f"| `{code}` | {cpu_seconds(code) - base:.2f} |")
    seen = {}
    needed("whence", seen)
    rows = sorted(((size(distribution), name) for name, distribution in seen.items()), reverse=True)
    print("\n| package of the core | MiB |")
    print("|---|---|")
    for weight, name in rows[:12]:
        print(f"| {name} | {weight:.1f} |")
    print(f"| {len(rows[12:])} more | {sum(weight for weight, _ in rows[12:]):.1f} |")
    print(f"| **{len(rows)} packages** | **{sum(weight for weight, _ in rows):.0f}** |")


if __name__ == "__main__":
    main()
