"""`python -m whence`, and the scripts `whence` and `whence-tda`."""

import sys

import whence
from whence._distribution import DISTRIBUTION, WAY_OUT, mixed_files


def run() -> None:
    """Run the command line, unless another package that is called whence was installed over this one."""
    folder = whence.__path__[0]
    # Before anything else is imported: modules that both packages have are that package's, too.
    if getattr(whence, "__distribution__", None) != DISTRIBUTION:
        print(
            f"whence: found another package's files over those of {DISTRIBUTION} in {folder}; do this: {WAY_OUT}",
            file=sys.stderr,
        )
        sys.exit(2)
    if text := mixed_files(folder):
        print(f"whence: {text}", file=sys.stderr)
    from whence.cli import run as run_command

    run_command()


if __name__ == "__main__":
    run()
