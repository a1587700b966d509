"""Mutates modules and counts which mutants the unit tests notice: `python scripts/mutation.py [MODULE ...]`.

A mutant is one small change of meaning in one place: another comparison or operator, a constant, a condition, `min` for
`max`, no `not`, None for what is returned, a keyword left out of a call. For each the tests that import the module run
in a temporary copy of the tree, until one fails or the time is over. What was noticed stands in --out and is not
done again, survivors are; a table by module and the survivors end the output.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
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
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield "return", ast.Constant(None), "value"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield "condition", ast.Constant(True), "test"
    elif isinstance(node, ast.Name) and node.id in NAMED:
        yield "name", NAMED[node.id], "id"
    elif isinstance(node, ast.Attribute) and node.attr in NAMED:
        yield "name", NAMED[node.attr], "attr"
    elif isinstance(node, ast.Call) and node.keywords:
        yield "keyword", node.keywords[1:], "keywords"


def mutants(source: str):
    """(what, where, mutated source), in the order of the file."""
    tree = ast.parse(source)
    notes = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    of_types = {id(inner) for note in notes if note is not None for inner in ast.walk(note)}
    for index, node in enumerate(ast.walk(tree)):
        for what, value, field in changes(node) if id(node) not in of_types else ():
            mutated = copy.deepcopy(tree)
            place = next(other for i, other in enumerate(ast.walk(mutated)) if i == index)
            setattr(place, field, value)
            line = source.splitlines()[node.lineno - 1].strip()
            yield f"{what} {node.lineno}:{node.col_offset}", line, ast.unparse(ast.fix_missing_locations(mutated))


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
        if any(name.startswith("tests.test_") for name in found):
            break
    return sorted(name.replace(".", "/") + ".py" for name in found if name.startswith("tests.test_"))


def is_noticed(copy_of: Path, tests: list[str], seconds: float) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"HYPOTHESIS_MAX_EXAMPLES": "25", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return (
            subprocess.run(command, cwd=copy_of, env=environment, capture_output=True, timeout=seconds).returncode != 0
        )
    except subprocess.TimeoutExpired:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "modules", nargs="*", help="files such as tasks/boxed.py (default: all of learners/ and tasks/)"
    )
    parser.add_argument("--sample", type=int, default=0, help="so many of them, drawn from a fixed seed")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="for the tests of one mutant; over time is noticed"
    )
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"), help="results, one a line")
    options = parser.parse_args()
    modules = options.modules or [
        str(p.relative_to(ROOT)) for r in ("learners", "tasks") for p in (ROOT / r).rglob("*.py")
    ]
    for module in modules:
        require((ROOT / module).is_file(), f"{module} is no file of this project; name one such as tasks/boxed.py.")
    untested = [module for module in modules if not tests_of(module) and (ROOT / module).stat().st_size]
    print("no unit test imports:", *untested) if untested else None
    modules = sorted(set(modules) - set(untested))
    todo = [(module, *mutant) for module in modules for mutant in mutants((ROOT / module).read_text())]
    if options.sample:
        todo = random.Random(0).sample(todo, min(options.sample, len(todo)))
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["module"], r["what"], r["line"]): True for r in map(json.loads, lines) if r["noticed"]}
    with tempfile.TemporaryDirectory() as folder, options.out.open("a") as out:
        copied = Path(folder) / "tree"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.safetensors"))
        for module in sorted({module for module, *_ in todo}):
            is_red = is_noticed(copied, tests_of(module), options.seconds)
            require(not is_red, f"the tests of {module} fail as they are, or take over --seconds; mend or raise it.")
        for number, (module, what, line, source) in enumerate(todo, start=1):
            if (module, what, line) in done:
                continue
            (copied / module).write_text(source)
            noticed = is_noticed(copied, tests_of(module), options.seconds)
            shutil.copy(ROOT / module, copied / module)
            done[module, what, line] = noticed
            record = {"module": module, "what": what, "line": line, "noticed": noticed}
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
