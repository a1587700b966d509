"""Packages that cost seconds to import, replaced by nothing: for code that only names them where a test does not go."""

import contextlib
import sys
from types import ModuleType

import pytest


class StandIn(ModuleType):
    """A module in which every name is a class of its own that does nothing."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return getattr(self, name)


@contextlib.contextmanager
def stand_ins(*names: str):
    """Modules by their dotted names, and the packages they lie in. What is imported of this project meanwhile is the
    test's own, and what names these packages is imported anew."""
    roots = {name.split(".")[0] for name in names}
    of = lambda value: str(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", ""))
    own = lambda: {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("actors", "learners")}
    before = own()
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                if not isinstance(sys.modules.get(".".join(parts[:end])), StandIn):
                    patch.setitem(sys.modules, ".".join(parts[:end]), StandIn(".".join(parts[:end])))
        for name, module in before.items():
            if any(of(value).split(".")[0] in roots for value in list(vars(module).values())):
                del sys.modules[name]
        try:
            yield
        finally:
            for name, module in own().items():
                if before.get(name) is not module:
                    package, _, attribute = name.rpartition(".")
                    vars(sys.modules.get(package, module)).pop(attribute, None)
                    del sys.modules[name]
            for name, module in before.items():
                sys.modules[name] = module
                if "." in name:  # "from package import module" looks at the package first
                    setattr(before[name.rpartition(".")[0]], name.rpartition(".")[2], module)
