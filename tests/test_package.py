"""The package as it is named, installed and handed on."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import whence
from tests.pages import ROOT
from whence._distribution import DISTRIBUTION, mixed_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = ["src", "docs", "examples", "benchmarks", "tests", ".ci"]
# Names of the file that the other package installs under the same name.
OTHERS = ["__init__.py", "cli.py", "config.py", "errors.py"]


def texts():
    """Every file that people or programs read, with its text."""
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".html", ".js", ".css", ""}
    ]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    return [(path, path.read_text("utf-8")) for path in files if path.is_file() and path != Path(__file__)]


def test_no_text_installs_the_other_package():
    """`pip install whence` and `whence[extra]` name another package on PyPI."""
    wrong = re.compile(
        r"""(?:\b(?:pip3?|uv|conda|poetry|pipx)\ (?:install|add|run)|\buvx)\b[^\n`;|]*?(?<![\w./:-])whence(?![\w./:-])  # a command
        |(?<![\w.-])whence\\?\[[a-z]  # a requirement""",
        re.VERBOSE,
    )
    for text in (
        "pip install whence",
        "pip install -U 'whence[lora]'",
        "uv add whence\n",
        'needs = ["whence[hf]"]',
        "uvx whence demo",
    ):
        assert wrong.search(text), text
    for text in (
        "pip install whence-tda",
        "pip install '.[lora]'",
        "`pip install x`; whence why",
        "pip uninstall -y whence",
        "pip install .",
    ):
        assert not wrong.search(text), text
    assert [f"{path.relative_to(ROOT)}: {match[0]}" for path, text in texts() for match in wrong.finditer(text)] == []


def test_extras_that_texts_name_exist():
    extras = set(PROJECT["project"]["optional-dependencies"])
    for path, text in texts():
        for names in re.findall(r"""(?:whence-tda\\?|['"]\.)\[([a-z,]+)\\?\]""", text):
            assert set(names.split(",")) <= extras, f"{path.relative_to(ROOT)}: {names}"


def test_the_version_is_in_one_place():
    version = whence.__version__
    assert whence.__version__ in (ROOT / PROJECT["tool"]["hatch"]["version"]["path"]).read_text("utf-8")
    places = [path.name for path in (ROOT / "src").rglob("*.py") if f'"{version}"' in path.read_text("utf-8")]
    assert places == ["_version.py"] and PROJECT["project"]["dynamic"] == ["version"]
    for path in (ROOT / "src" / "whence").rglob("*.py"):
        imports = [
            node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {node.module for node in imports if isinstance(node, ast.ImportFrom)} | {
            alias.name for node in imports for alias in node.names
        }
        assert "whence" not in names or path.name == "__main__.py", f"{path} imports the face of the package"


def test_the_changelog_has_an_entry_a_line():
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    assert all(re.match(r"#+ |- \S", line) for line in lines if line)


def test_importing_the_package_imports_nothing_else():
    code = "import whence, sys; print([name for name in sys.modules if name.startswith('whence.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_programs_make_no_folders_where_they_are_started():
    """A temporary folder in the working directory stays there if the program is killed, and one was committed that way."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            calls = re.findall(
                r"(?:mkdtemp|TemporaryDirectory|NamedTemporaryFile|mkstemp)\([^)]*dir=([^,)]+)", path.read_text("utf-8")
            )
            assert not set(calls) & {'"."', "'.'", "Path()", "os.getcwd()", "Path.cwd()"}, path


def test_the_source_distribution_is_the_project_and_nothing_beside_it(tmp_path):
    """Whatever lies in the checkout: folders of runs, of editors, of killed programs."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    files = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"src/whence/__init__.py", "tests/zoo.py", "README.md", "LICENSE", "CHANGELOG.md", "docs/format.md"} <= files
    tops = {file.split("/")[0] for file in files}
    assert tops <= {*PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"], "pyproject.toml", ".gitignore"}
    assert not [file for file in files if re.search(r"__pycache__|\.py[co]$|\.safetensors$|/\.", file)]
    wheel = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {file.split("/")[0] for file in wheel} == {"whence"} and "whence/py.typed" in wheel


# Another package of the same name


@pytest.fixture
def site(tmp_path):
    """A folder that pip wrote this package into."""
    shutil.copytree(ROOT / "src" / "whence", tmp_path / "whence", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / f"{DISTRIBUTION.replace('-', '_')}-{whence.__version__}.dist-info").mkdir()
    return tmp_path


def python(site, *words):
    """Run Python with a folder in place of where whence is now."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=site)


def test_alone_it_says_nothing(site):
    assert mixed_files(str(site / "whence")) is None
    done = python(site, "-W", "error", "-c", "import whence; print(whence.__file__, whence.methods.METHODS['lorif'].name)")
    assert done.returncode == 0 and done.stdout == f"{site}/whence/__init__.py lorif\n" and done.stderr == ""


def test_another_package_beneath_this_one_is_warned_of(site):
    (site / "whence-1.0.0.dist-info").mkdir()
    text = f"found files of whence 1.0.0, another package, among those of {DISTRIBUTION}; do this: pip uninstall -y whence whence-tda"
    done = python(site, "-c", "import whence; whence.methods.METHODS; whence.methods.METHODS")
    assert done.returncode == 0 and done.stderr.count(text) == 1
    done = python(site, "-m", "whence", "methods", "--json")
    assert done.returncode == 0 and done.stdout.startswith("[") and done.stderr.startswith(f"whence: {text}")


def test_another_package_over_this_one_is_an_error(site):
    (site / "whence-1.0.0.dist-info").mkdir()
    for name in OTHERS:
        (site / "whence" / name).write_text('"""Typed configuration."""\n')
    done = python(site, "-m", "whence", "methods")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        f"whence: found another package's files over those of {DISTRIBUTION} in {site}/whence; do this: pip uninstall"
    )
