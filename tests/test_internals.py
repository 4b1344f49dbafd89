"""Private names of PyTorch and its neighbours: all behind one door, and none of them needed."""

import ast
import logging
import re
import subprocess
import sys
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import whence
from tests import zoo
from tests.pages import ROOT
from tests.settings import QUIET
from tests.test_quantize import scored
from whence import internals
from whence.compress.quantize import quantize
from whence.internals import int8_product, is_transforming, lightning_source, linear_product, map_tree, version_of, view_base
from whence.matmul import times_transposed

SOURCE = ROOT / "src" / "whence"
PUBLIC = {"os._exit"}


@pytest.fixture
def forgotten():
    """What was found out about private names is found out again, in the test and after it."""
    internals._working.cache_clear()
    yield
    internals._working.cache_clear()


@pytest.fixture
def gone(forgotten, monkeypatch, caplog):
    """Every private name is missing."""

    def nothing(name):
        raise AttributeError(name)

    monkeypatch.setattr(internals, "resolve_name", nothing)
    assert linear_product() is None and int8_product() is None and is_transforming()


@pytest.fixture
def odd(forgotten, monkeypatch):
    """Every private name takes what it took and gives something else."""
    monkeypatch.setattr(internals, "resolve_name", lambda name: lambda *args, **options: torch.zeros(1))


@pytest.fixture
def failing(forgotten, monkeypatch):
    """Every private name wants other arguments."""
    monkeypatch.setattr(internals, "resolve_name", lambda name: lambda self: self)


def own_names():
    """Private names that the package gives its own functions and attributes."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                found.add(node.attr)
            if isinstance(node, ast.AnnAssign):
                found.add(ast.unparse(node.target))
    return found


def private_names(path, own):
    """Names that begin with an underscore and are not this package's own: of modules, attributes, and attributes by name."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [module, *(alias.name for alias in node.names)]
            if not module.startswith("whence") and any(re.search(r"(^|\.)_[a-zA-Z]", name) for name in names):
                yield ast.unparse(node)
        is_own = isinstance(node, ast.Attribute) and (node.attr in own or ast.unparse(node.value) in {"self", "cls"})
        if isinstance(node, ast.Attribute) and re.match("_[a-zA-Z]", node.attr) and not is_own:
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr", "delattr"}:
            name = node.args[1]
            if isinstance(name, ast.Constant) and re.match("_[a-zA-Z]", str(name.value)):
                yield ast.unparse(node)


def test_no_other_module_has_private_names_of_others():
    own = own_names()
    found = {str(path.relative_to(SOURCE)): {*private_names(path, own)} - PUBLIC for path in SOURCE.rglob("*.py")}
    found = {path: names for path, names in found.items() if names}
    assert set(found) <= {"internals.py"}


@pytest.mark.parametrize("fixture", ["gone", "odd", "failing"])
def test_a_name_that_is_gone_or_does_something_else_is_told_of_once(fixture, request, caplog):
    request.getfixturevalue(fixture)
    with caplog.at_level(logging.WARNING, "whence.internals"):
        for _ in range(2):
            assert linear_product() is None and int8_product() is None
            assert map_tree(lambda leaf: leaf + 1, [1]) == [2]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(set(told)) and all(torch.__version__ in text for text in told)
    for name in ("torch.ops.mkldnn._linear_pointwise", "torch._int_mm", "torch.utils._pytree.tree_map"):
        assert fixture == "gone" or sum(text.startswith(name) for text in told) == 1


def test_products_without_private_operators(gone):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 7, generator=generator), torch.randn(3, 7, generator=generator)
    added = torch.randn(3, generator=generator)
    torch.testing.assert_close(times_transposed(left, right, added), left @ right.T + added)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_integer_scores_are_the_same_to_the_last_bit(forgotten, monkeypatch, bits):
    """Also where all products are as large as they can be, in a row of more numbers than float32 adds up exactly at once."""
    codes, _ = quantize(torch.randn(40, 2500, generator=torch.Generator().manual_seed(1)), bits)
    extreme = torch.full_like(codes, -128 if bits == 8 else 255)
    query = torch.randn(5, 2500, generator=torch.Generator().manual_seed(2))
    query[1] = 1.0
    fast = [scored(query, rows, bits) for rows in (codes, extreme)]
    internals._working.cache_clear()
    monkeypatch.setattr(internals, "resolve_name", lambda name: None)
    assert int8_product() is None
    for found, rows in zip(fast, (codes, extreme), strict=True):
        assert torch.equal(scored(query, rows, bits), found)


def half_precise(name):
    """A zoo model in float32, which is what the fast products are for."""
    task, dataset = zoo.make(name)
    task.model.float()
    return task, dataset


def scores_of(name, folder):
    """What both roads say, of a language model, or of one whose parameters go through torch.func."""
    task, dataset = half_precise(name)
    if name != "gpt2":
        inputs = [example.fields for example in dataset.examples]
        dataset = type(dataset)(
            [
                type(example)(example.id, as_float(fields), example.length)
                for example, fields in zip(dataset.examples, inputs, strict=True)
            ]
        )
    store = whence.build(task, dataset, folder, config=whence.BuildConfig(method="logra", rank=4, dtype="int8"), runtime=QUIET)
    tables = [
        whence.score_table(store, task, dataset, runtime=QUIET),
        whence.attribute(task, dataset, dataset, method="grad-dot-exact", runtime=QUIET),
    ]
    return [table.scores for table in tables]


def as_float(value):
    """Records of float64 as records of float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: as_float(part) for key, part in value.items()}
    return type(value)(map(as_float, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", ["gpt2", "attention"])
def test_scores_do_not_need_private_names(forgotten, monkeypatch, tmp_path, name):
    expected = scores_of(name, tmp_path / "with")
    internals._working.cache_clear()
    monkeypatch.setattr(internals, "resolve_name", lambda name: None)
    for found, wanted in zip(scores_of(name, tmp_path / "without"), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


def test_transformations_are_seen(forgotten):
    seen = []

    def total(values):
        seen.append(is_transforming())
        return values.sum()

    torch.func.grad(total)(torch.ones(2))
    total(torch.ones(2))
    assert seen == [True, False]


def test_trees_are_mapped_alike(forgotten, monkeypatch):
    pair = namedtuple("pair", "left right")
    tree = {"a": [1, (2, 3)], "b": OrderedDict(c=pair(4, None)), "d": SimpleNamespace(e=5)}
    fast = map_tree(str, tree), map_tree(lambda one, other: (one, other), tree, tree)
    internals._working.cache_clear()
    monkeypatch.setattr(internals, "resolve_name", lambda name: None)
    assert map_tree(str, tree)["b"] == fast[0]["b"] and map_tree(str, tree) == fast[0]
    assert map_tree(lambda one, other: (one, other), tree, tree) == fast[1]


class WithoutCounts:
    """A tensor of a PyTorch that does not count writes."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self.values


@pytest.mark.parametrize("wrap", [lambda values: values, WithoutCounts])
def test_writes_are_noticed(wrap):
    values = torch.ones(3)
    before = version_of(wrap(values))
    assert version_of(wrap(values)) == before
    values[1] = 2
    assert version_of(wrap(values)) != before


def test_attributes_that_are_not_there():
    tensor = torch.ones(2, 3)
    assert view_base(tensor[0]) is tensor and view_base(tensor) is None and view_base(SimpleNamespace()) is None
    assert lightning_source(SimpleNamespace(fit_loop=SimpleNamespace())) is None
    assert lightning_source(SimpleNamespace(fit_loop=SimpleNamespace(_data_source=3))) is None


def test_families_of_layers_are_those_of_pytorch():
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and "Lazy" not in kind.__name__]
    for tuples, base in (
        (internals.BATCH_NORMS, nn.modules.batchnorm._BatchNorm),
        (internals.DROPOUTS, nn.modules.dropout._DropoutNd),
    ):
        assert set(tuples) == {kind for kind in kinds if issubclass(kind, base)}


WITHOUT = """
import pkgutil, importlib, types
import torch
from transformers import GPT2LMHeadModel  # which is nothing without them
del torch._int_mm, torch._C._functorch.peek_interpreter_stack
torch.ops.mkldnn = types.SimpleNamespace()
import whence
for module in pkgutil.walk_packages(whence.__path__, "whence."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            assert error.name.split(".")[0] not in ("torch", "transformers", "whence"), error
from whence import internals
assert internals.linear_product() is None and internals.int8_product() is None and internals.is_transforming()
print(whence.Classification(torch.nn.Linear(2, 3)).unit)
"""


def test_every_module_imports_with_a_torch_without_them():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "torch._int_mm of PyTorch" in done.stderr
