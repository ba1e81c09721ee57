"""The shape of the package, read from its source: imports only fall, and a few things stand in one place or nowhere.

Imports inside functions count like the others. Each rule is also shown a source that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_async"

# A folder or file imports from lower floors, or from its own folder. Folders on one floor never import each other;
# the files beside them are one folder, so they may.
FLOORS = {
    "errors": 1, "arguments": 1, "spec": 1, "telemetry": 1, "version": 1,
    "layout": 2, "config": 2, "wire": 2, "links": 2, "staleness": 2, "outer": 2, "scheduling": 2, "privacy": 2,
    "sparse": 2, "restarts": 2, "keeping": 2, "files": 2, "machine": 2,
    "codecs": 3, "aggregation": 3, "attacks": 3, "transport": 3, "persistence": 3,
    "server": 4, "worker": 4,
    "strategy": 5, "simulation": 5,
    "cli": 6,
    "__init__": 7, "__main__": 7,
}  # fmt: skip

# module -> the only place that may import it ("" for none)
HOMES = {
    "zmq": f"{PACKAGE}/transport/zeromq",  # the file of that name and those that begin with it
    "lightning": f"{PACKAGE}/strategy/",
    "pytorch_lightning": f"{PACKAGE}/strategy/",
    "lightning_fabric": f"{PACKAGE}/strategy/",
    **dict.fromkeys(("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"), ""),
    **dict.fromkeys(("xmlrpc", "defusedxml"), f"{PACKAGE}/transport/xmlrpc_"),
}
BAD_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base_utils"}
LONGEST_FILE = 300


def files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py"))


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(), file)


def module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(file): file for file in files()}
EVERY_FILE = pytest.mark.parametrize("file", files())


def imports(source: ast.AST, file: str) -> Iterator[str]:
    """The modules that `source`, standing in `file`, imports anywhere, submodules by their own name."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = _relative(node, file) if node.level else str(node.module)
            yield from (name if (name := f"{start}.{alias.name}") in MODULES else start for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _relative(node: ast.ImportFrom, file: str) -> str:
    folder = list(Path(file).parent.parts)
    return ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


def place(module: str) -> str:
    """The folder or top-level file of one of our modules."""
    return module.split(".")[1] if "." in module else "__init__"


def climbing(source: ast.AST, file: str) -> list[str]:
    here = place(module_name(file))
    ours = {module for module in imports(source, file) if module.split(".")[0] == PACKAGE}
    return sorted(module for module in ours if place(module) != here and not _falls(here, place(module)))


def _falls(here: str, there: str) -> bool:
    beside = all((ROOT / PACKAGE / f"{name}.py").exists() for name in (here, there))
    return FLOORS[there] < FLOORS[here] or (beside and FLOORS[there] == FLOORS[here])


def strays(source: ast.AST, file: str) -> list[str]:
    """Imports of modules whose home is elsewhere."""
    roots = {module.split(".")[0] for module in imports(source, file)} & HOMES.keys()
    return sorted(root for root in roots if not HOMES[root] or not file.startswith(HOMES[root]))


def dangers(source: ast.AST) -> list[str]:
    return [found for node in ast.walk(source) if isinstance(node, ast.Call) and (found := _danger(node))]


def _danger(node: ast.Call) -> str:
    text = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if text in {"eval", "exec", "compile", "builtins.eval", "builtins.exec"}:
        return f"{text}, line {node.lineno}"
    if text == "torch.load" and given.get("weights_only") != "True":
        return f"torch.load without weights_only=True, line {node.lineno}"
    if text in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}:
        return f"{text}, line {node.lineno}"
    if given.get("allow_pickle", "False") != "False":
        return f"allow_pickle, line {node.lineno}"
    return ""


def test_every_place_has_a_floor():
    assert {place(module) for module in MODULES} <= FLOORS.keys()


@EVERY_FILE
def test_imports_only_fall(file):
    assert climbing(tree(file), file) == []


@EVERY_FILE
def test_modules_stay_at_home(file):
    assert strays(tree(file), file) == []


@EVERY_FILE
def test_nothing_is_evaluated_or_unpickled(file):
    assert dangers(tree(file)) == []


@EVERY_FILE
def test_files_are_short_have_a_telling_name_and_say_what_they_are(file):
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    assert not BAD_NAMES & set(Path(file).with_suffix("").parts)
    assert ast.get_docstring(tree(file)), "open it with what it is"


def test_no_two_test_files_have_one_name():
    """pytest imports them all by their last name, and a whole run stops where two are alike."""
    names = Counter(file.name for file in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []


def test_no_import_circles():
    graph = {module: set(imports(tree(file), file)) & MODULES.keys() - {module} for module, file in MODULES.items()}
    assert len(graph) > 20
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_wire_and_transport_work_without_torch_lightning_or_zmq():
    """A monitor or a client that only speaks the protocol starts fast."""
    code = (
        "import sys, lightning_async.transport, lightning_async.wire.frames, lightning_async.wire.session;"
        "print([name for name in ('torch', 'lightning', 'zmq') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("lightning_async/wire/x.py", "from lightning_async.server import y", ["lightning_async.server"]),
        ("lightning_async/layout.py", "from lightning_async import config, wire", ["lightning_async.wire"]),
        ("lightning_async/errors.py", "from lightning_async import spec, layout", ["lightning_async.layout"]),
        ("lightning_async/wire/x.py", "def f():\n    import lightning_async.codecs", ["lightning_async.codecs"]),
        ("lightning_async/wire/x.py", "from lightning_async import layout", ["lightning_async.layout"]),
        ("lightning_async/wire/x.py", "from ..transport import base", ["lightning_async.transport.base"]),
        ("lightning_async/wire/x.py", "from . import frames\nfrom .messages import Push", []),
        ("lightning_async/wire/x.py", "import lightning_async", ["lightning_async"]),
        ("lightning_async/wire/x.py", "import_module('lightning_async.worker')", ["lightning_async.worker"]),
        ("lightning_async/worker/x.py", "from lightning_async.server import y", ["lightning_async.server"]),
        ("lightning_async/worker/x.py", "from lightning_async import errors, spec\nimport lightning_async.wire", []),
    ],
)
def test_the_floors_are_seen(file, text, found):
    assert climbing(ast.parse(text), file) == found


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("lightning_async/server/x.py", "import zmq.asyncio", ["zmq"]),
        ("lightning_async/transport/zeromq.py", "import zmq", []),
        ("lightning_async/transport/zeromq_curve.py", "import zmq", []),
        ("lightning_async/transport/base.py", "import zmq", ["zmq"]),
        ("lightning_async/server/x.py", "def f():\n    from lightning.pytorch import Trainer", ["lightning"]),
        ("lightning_async/strategy/x.py", "import pytorch_lightning", []),
        ("lightning_async/strategy/x.py", "import pickle", ["pickle"]),
        ("lightning_async/server/x.py", "import lightning_async.wire", []),
    ],
)
def test_strays_are_seen(file, text, found):
    assert strays(ast.parse(text), file) == found


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("eval('1')", True),
        ("exec(code)", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("yaml.load(text, Loader=x)", True),
        ("yaml.safe_load(text)", False),
        ("model.eval()", False),
        ("re.compile('x')", False),
    ],
)
def test_dangers_are_seen(text, seen):
    assert bool(dangers(ast.parse(text))) is seen
