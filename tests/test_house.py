"""The house: who may import whom, and how large a file, a function and its nesting may get.

CONTRIBUTING.md says the same in words. Imports are read with `ast`, so those inside of functions
count too.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("images", "formats", "upscaling", "training")  # each one stands as a whole
ALLOWED = {  # room or file -> what it stands on
    "utils": set(),
    "config": set(),
    "layers": set(),
    "images": {"config", "utils"},
    "formats": set(),
    "loss": {"formats"},
    "model": {"layers"},
    "dataset": {"config", "images", "utils"},
    "upscaling": {"images", "utils"},
    "weights": {"model", "formats", "images", "upscaling", "utils"},
    "training": {"config", "dataset", "formats", "images", "upscaling", "weights", "utils"},
}
ALLOWED["train"] = ALLOWED["test"] = ALLOWED["app"] = {*ALLOWED}
# At most; of other files 480. config.py is a table, and is read like one.
LINES = {"train.py": 420, "test.py": 420, "weights.py": 450, "config.py": 700}
FUNCTION_LINES = 60
NESTING = 3

SOURCES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]
TREES = {path.relative_to(ROOT): ast.parse(path.read_text("utf-8")) for path in SOURCES}


def home(module: str) -> str:
    """Room or file of a module: training of training.runs."""
    return module.partition(".")[0]


def imports(tree: ast.AST) -> set[str]:
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole module"
            modules.add(node.module)
    return modules


def of_ours(modules: set[str]) -> set[str]:
    """All of our own, benchmarks and tests included."""
    return {m for m in modules if home(m) in {*ALLOWED, "benchmarks", "tests"}}


def test_every_file_stands_on_what_it_may_and_nothing_else():
    assert {home(path.with_suffix("").parts[0]) for path in TREES} == set(ALLOWED)
    for path, tree in TREES.items():
        own = home(path.with_suffix("").parts[0])
        above = {home(module) for module in of_ours(imports(tree))} - {own}
        assert above <= ALLOWED[own], f"{path} imports {above - ALLOWED[own]}"


def test_no_import_goes_round_in_a_circle():
    """Between files, those of one room included."""
    edges = {".".join(path.with_suffix("").parts): of_ours(imports(t)) for path, t in TREES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        for below in edges.get(module, set()) if module not in done else set():
            visit(below, (*trail, module))
        done.add(module)

    for module in edges:
        visit(module, ())
    assert len(edges) == len(TREES) > 20


def test_only_what_trains_sees_the_config():
    seeing = {path.parts[0] for path, tree in TREES.items() if "config" in imports(tree)}
    assert seeing == {"train.py", "training", "dataset.py", "images"}  # the last two: Degradation


def test_nothing_of_ours_is_imported_inside_a_function():
    for path, tree in TREES.items():
        for function in functions(tree):
            assert not of_ours(imports(function)), f"{path}: {function.name}"


def test_no_product_file_reads_the_benchmarks():
    """Docstrings, and a command that train.py prints, name them; no path leads there."""
    for path, tree in TREES.items():
        parts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not parts & {"benchmarks", "reference", "benchmarks/reference"}, path


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def depth(node: ast.AST) -> int:
    """How deep if, for, while, with, try and match are nested below; elif is no deeper than if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        opens = isinstance(child, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match)
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inner = isinstance(child, ast.FunctionDef | ast.Lambda)  # counted on its own
        deepest = max(deepest, 0 if inner else depth(child) + (opens and not is_elif))
    return deepest


@pytest.mark.parametrize("path", TREES, ids=str)
def test_files_and_functions_fit_a_sitting_and_a_screen(path):
    lines = len((ROOT / path).read_text("utf-8").splitlines())
    assert lines <= LINES.get(str(path), 480)
    for function in functions(TREES[path]):
        length = function.end_lineno - function.lineno + 1
        assert length <= FUNCTION_LINES, f"{path}: {function.name} has {length} lines"
        assert depth(function) <= NESTING, f"{path}: {function.name} nests {depth(function)} deep"


@pytest.mark.parametrize(
    "source, expected",
    [
        ("def f():\n  pass", 0),
        ("def f():\n  for x in y:\n    if x:\n      with z:\n        pass", 3),
        ("def f():\n  if x:\n    pass\n  elif y:\n    pass\n  elif z:\n    pass", 1),
        ("def f():\n  if x:\n    pass\n  else:\n    if y:\n      pass\n    z()", 2),
    ],
)
def test_nesting_is_counted_rightly(source, expected):
    assert depth(functions(ast.parse(source))[0]) == expected


def test_nobody_uses_a_name_with_an_underscore_of_another_file():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and home(node.module) in ALLOWED:
                private = [name.name for name in node.names if name.name.startswith("_")]
                assert not private, f"{path} imports {private} of {node.module}"


def test_the_version_is_the_same_wherever_it_stands():
    patterns = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CHANGELOG.md": r"^## ([\d.]+), \d{4}-\d\d-\d\d$",  # the first is the newest
        "CITATION.cff": r"^version: (.+)$",
    }
    found = {re.search(p, (ROOT / f).read_text(), re.MULTILINE)[1] for f, p in patterns.items()}
    assert len(found) == 1, found


def test_our_names_hide_no_module_of_python():
    assert not {home(path.with_suffix("").parts[0]) for path in TREES} & {
        *sys.stdlib_module_names
    } - {"test"}  # Python's own tests, which is why `import test` is not for us
