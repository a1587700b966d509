"""Mutates modules and counts which mutants the unit tests notice: `python scripts/mutation.py [MODULE ...]`.

A mutant is one small change of meaning in one place: another comparison or operator, a constant, a condition, `min` for
`max`, no `not`, None for what is returned, a call or a keyword of one left out. For each the tests that import the
module (of --tests, if given) run in a temporary copy of the tree, the fastest files first, until one fails or the time
is over. They run in a fork of this process, which has imported what they take from other packages, so that a mutant
costs its tests and no more. What was noticed stands in --out and is not done again, survivors are once the module or a
test of it has changed; a table by module and the survivors end the output.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.parts.program import run_program
from tasks.errors import require

COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
COMPUTED |= {ast.And: ast.Or, ast.Or: ast.And, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Pow: ast.Mult}
OWN = ("actors", "learners", "scripts", "tasks", "tests", "train", "conftest")
ASSERTED = ("frozen", "strict")  # of dataclass and zip: they say what holds, as an assert does
NOT_AHEAD = ("deepspeed", "oat", "vllm")  # actors/runtime.py says how these are imported
NAMED = {"min": "max", "max": "min", "sum": "mean", "mean": "sum", "any": "all", "all": "any", "ceil": "floor"}


def changes(node: ast.AST):
    """What can be done to a node: its kind, and the value that a field of it gets."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        yield "comparison", [COMPARED[type(node.ops[0])]()], "ops"
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in COMPUTED:
        yield "operator", COMPUTED[type(node.op)](), "op"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "no not", ast.UnaryOp(ast.Not(), node.operand), "operand"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "no minus", ast.UAdd(), "op"
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield "constant", not node.value if isinstance(node.value, bool) else node.value + 1, "value"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value and " " not in node.value:
        yield "constant", node.value + "x", "value"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "no call", ast.Constant(None), "value"
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield "return", ast.Constant(None), "value"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield "condition", ast.Constant(True), "test"
    elif isinstance(node, ast.Name) and node.id in NAMED:
        yield "name", NAMED[node.id], "id"
    elif isinstance(node, ast.Attribute) and node.attr in NAMED:
        yield "name", NAMED[node.attr], "attr"
    elif isinstance(node, ast.Call) and node.keywords and node.keywords[0].arg not in ASSERTED:
        yield "keyword", node.keywords[1:], "keywords"


def mutants(source: str):
    """(what, where, mutated source), in the order of the file."""
    tree = ast.parse(source)
    notes = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    left = {id(inner) for note in notes if note is not None for inner in ast.walk(note)}
    told = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in ASSERTED]
    told += [node for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    left |= {id(node.value) for node in told}  # docstrings too
    left |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    types = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    left |= {id(node) for node in types if ast.unparse(node.test) == "TYPE_CHECKING"}
    for node in list(ast.walk(tree)):
        for what, value, field in list(changes(node)) if id(node) not in left else ():
            before = getattr(node, field)
            setattr(node, field, value)
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            setattr(node, field, before)
            where = f"{node.lineno}:{node.col_offset}-{node.end_col_offset}"
            yield f"{what} {where}", source.splitlines()[node.lineno - 1].strip(), mutated


def tests_of(module: str) -> list[str]:
    """The unit tests that import a module, or one that imports it."""
    imports = {
        path: path.read_text() for room in ("tasks", "learners", "tests") for path in (ROOT / room).rglob("*.py")
    }
    rooms = module.split("/")[: 2 if module.count("/") > 1 else 1]
    wanted, found = {module.removesuffix(".py").replace("/", ".")}, set()
    for nearness in range(4):
        # a module that no test imports may be found by its package: the tests of that package are its tests
        package = ".".join(rooms) if nearness >= (1 if len(rooms) > 1 else 3) else "nothing"
        for path, text in imports.items():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            lines = [f"from {w} import" for w in wanted] + [f"from {package}.", f"from {package} import"]
            lines += [f"from {w.rpartition('.')[0]} import {w.rpartition('.')[2]}" for w in wanted]
            if any(line in text for line in lines):
                found.add(name)
        wanted |= {name for name in found if not name.startswith("tests.")}
        if nearness > 0 and any(name.startswith("tests.test_") for name in found):
            break
    return sorted(name.replace(".", "/") + ".py" for name in found if name.startswith("tests.test_"))


class Fastest:
    """A pytest plugin: notes the seconds of every test, and runs first what took least."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self.files = seconds, Counter()
        for test, took in seconds.items():
            self.files[test.split("::")[0]] += took

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def outcome(tree: Path, tests: list[str], limit: float, seconds: dict[str, float], told: Path | None = None) -> str:
    """ "green", "red" or "too slow", of the tests in a fork; there `told` gets each test's seconds, and what was
    imported."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.setsid()
            os.chdir(tree)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            if told is None:  # what the first look compiled serves all; a mutant is not to be taken for its module
                os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
            sys.path[:] = [
                str(tree),
                *(path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "scripts"))),
            ]
            for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
                del sys.modules[name]
            import pytest

            plugin = Fastest(seconds)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the others take longer to load than most tests
            options = ["-x", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutants"]
            # each file by itself: where it fails, the others need not be collected
            for file in sorted(tests, key=lambda file: plugin.files[file]):
                if code := pytest.main([*options, file], [plugin]):
                    break
            if told is not None:
                told.write_text(json.dumps([plugin.seconds, list(sys.modules)]))
        os._exit(code)
    ends, status = time.monotonic() + limit, (0, 0)
    while status[0] == 0 and time.monotonic() < ends:
        time.sleep(0.01)
        status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):  # what its tests started too
        os.killpg(child, signal.SIGKILL)
    if status[0] == 0:
        os.waitpid(child, 0)
        return "too slow"
    return "red" if status[1] else "green"


def look_at(tree: Path, module: str, tests: list[str], limit: float) -> dict[str, float]:
    """The seconds of each of a module's tests, as they are; imports ahead what they take from other packages.

    Raises:
        UsageError: one fails, or they take too long.
    """
    told = tree.with_name("told.json")
    is_green = outcome(tree, tests, limit, {}, told) == "green"
    require(is_green, f"the tests of {module} fail as they are, or take over --seconds; mend or raise it.")
    seconds, imported = json.loads(told.read_text())
    for name in imported:
        if name.split(".")[0] not in (*OWN, *NOT_AHEAD):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    return seconds


def digest(files: list[str]) -> str:
    """Of what the files hold."""
    return hashlib.sha256(b"\0".join((ROOT / file).read_bytes() for file in files)).hexdigest()[:12]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "modules", nargs="*", help="files such as tasks/boxed.py (default: all of learners/ and tasks/)"
    )
    parser.add_argument("--sample", type=int, default=0, help="so many of each module's, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="another draws mutants that no test was made for")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="for the tests of one mutant; over time is noticed"
    )
    parser.add_argument("--tests", nargs="+", help="of the files that import a module these alone")
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"), help="results, one a line")
    options = parser.parse_args()
    modules = options.modules or [
        str(p.relative_to(ROOT)) for r in ("learners", "tasks") for p in (ROOT / r).rglob("*.py")
    ]
    for module in modules:
        require((ROOT / module).is_file(), f"{module} is no file of this project; name one such as tasks/boxed.py.")
    tests = {module: tests_of(module) for module in modules}
    if options.tests:
        tests = {module: [test for test in found if test in options.tests] for module, found in tests.items()}
    untested = [module for module in modules if not tests[module] and (ROOT / module).stat().st_size]
    print("no unit test imports:", *untested) if untested else None
    modules = sorted(set(modules) - set(untested))
    todo = []
    for module in modules:
        found = [(module, *mutant) for mutant in mutants((ROOT / module).read_text())]
        todo += random.Random(options.seed).sample(found, min(options.sample or len(found), len(found)))
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    state = {module: digest([module, *tests[module]]) for module in modules}
    done = {
        (r["module"], r["what"], r["line"]): r["noticed"]
        for r in map(json.loads, lines)
        if r["module"] in state and (r["noticed"] or r["state"] == state[r["module"]])
    }
    seconds: dict[tuple[str, ...], dict[str, float]] = {}  # by the files that hold a module
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        copied = Path(folder) / "tree"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".hypothesis"))
        for number, (module, what, line, source) in enumerate(todo, start=1):
            if (module, what, line) in done:
                continue
            own = tuple(tests[module])
            if own not in seconds:
                seconds[own] = look_at(copied, module, tests[module], options.seconds)
            limit = min(options.seconds, 30 + 5 * sum(seconds[own].values()))
            (copied / module).write_text(source)
            tests_are = outcome(copied, tests[module], limit, seconds[own])
            shutil.copy(ROOT / module, copied / module)
            done[module, what, line] = noticed = tests_are != "green"
            record = {"module": module, "what": what, "line": line, "noticed": noticed, "tests": tests_are}
            record["state"] = state[module]
            print(json.dumps(record), file=out, flush=True)
            print(f"{number}/{len(todo)} {'noticed ' if noticed else 'SURVIVED'} {module} {what}: {line}", flush=True)
    asked = [(module, what, line) for module, what, line, _ in todo]
    total, noticed = Counter(key[0] for key in asked), Counter(key[0] for key in asked if done[key])
    for module in total:
        print(f"| {module} | {noticed[module]}/{total[module]} | {noticed[module] / total[module]:.0%} |")
    for key in asked:
        if not done[key]:
            print("survived:", *key)
    return 0


if __name__ == "__main__":
    run_program(main, goes_on=True)
