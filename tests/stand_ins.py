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
    """Modules by their dotted names, and the packages they lie in. What is imported of this project meanwhile is
    imported anew, and forgotten afterwards."""
    own = lambda: [name for name in sys.modules if name.split(".")[0] in ("actors", "learners", "train")]
    before = {name: sys.modules[name] for name in own()}
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                package = ".".join(parts[:end])
                if not isinstance(sys.modules.get(package), StandIn):
                    patch.setitem(sys.modules, package, StandIn(package))
        for name in before:
            del sys.modules[name]
        try:
            yield
        finally:
            for name in own():
                del sys.modules[name]
            sys.modules.update(before)
