"""What scripts/install.sh asks of the machine, on machines that lack it; nothing is installed."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PYTHON = """#!/bin/bash
# The interpreter, but for its headers and for what torch is.
case "$2" in
    *sysconfig*) echo "$HEADERS/python3.11" ;;
    *torch*) exit "${CPU_TORCH:-0}" ;;
    *) exec {real} "$@" ;;
esac
"""
UV = """#!/bin/bash
echo "links=${UV_FIND_LINKS:-} $*" > "$CALLED"
"""


class Machine:
    """A clone of the repository whose .venv has no packages yet, and a PATH with hardly anything on it."""

    def __init__(self, folder):
        self.clone, self.path = folder / "clone", folder / "bin"
        for made in (self.clone / "scripts", self.clone / ".venv" / "bin", self.path, folder / "python3.11"):
            made.mkdir(parents=True)
        for name in ("scripts/install.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, self.clone / name)
        for name in ("bash", "cat", "cksum", "dirname"):
            (self.path / name).symlink_to(shutil.which(name))
        python = PYTHON.replace("{real}", sys.executable)
        for file, text in ((self.path / "python3.11", python), (self.clone / ".venv/bin/python", python)):
            self.add(file, text)
        self.add(self.clone / ".venv/bin/uv", UV)
        self.environment = {"PATH": str(self.path), "HEADERS": str(folder), "CALLED": str(folder / "called")}
        self.called = folder / "called"

    def add(self, file, text: str = "#!/bin/bash\n") -> None:
        file.write_text(text)
        file.chmod(0o755)

    def install(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        command = ["bash", str(self.clone / "scripts" / "install.sh"), *words]
        return subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def stamps(self) -> list[str]:
        return [name for name in os.listdir(self.clone / ".venv") if name.startswith("installed")]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_a_cpu_needs_no_compiler_and_a_folder_of_wheels_is_passed_on(machine):
    done = machine.install("cpu", "test", PIP_FIND_LINKS="/wheels")
    assert done.returncode == 0, done.stderr
    assert machine.called.read_text().startswith("links=/wheels pip install")
    assert "--extra cpu --extra test" in machine.called.read_text()
    assert machine.stamps == ["installed-cpu-test"]


@pytest.mark.parametrize("compiler", ["gcc", "clang", "CC"])
def test_cuda_needs_a_c_compiler_and_the_headers(machine, compiler):
    done = machine.install("cuda")
    assert done.returncode == 2
    assert "a C compiler is needed for cuda" in done.stderr and "apt-get install gcc" in done.stderr
    told = {"CC": "icx"} if compiler == "CC" else {}
    if not told:
        machine.add(machine.path / compiler)
    done = machine.install("cuda", **told)
    assert done.returncode == 2
    assert "Python.h is needed" in done.stderr and "apt-get install python3.11-dev" in done.stderr
    assert not machine.called.exists() and machine.stamps == []
    (machine.path.parent / "python3.11" / "Python.h").touch()
    assert machine.install("cuda", **told).returncode == 0
    assert machine.stamps == ["installed-cuda-"]


def test_a_torch_for_cpus_is_not_taken_for_cuda(machine):
    machine.add(machine.path / "gcc")
    (machine.path.parent / "python3.11" / "Python.h").touch()
    done = machine.install("cuda", PIP_FIND_LINKS="/wheels", CPU_TORCH="1")
    assert done.returncode == 2
    assert "the torch in .venv is a build for CPUs; remove the folder .venv" in done.stderr
    assert machine.called.read_text().startswith("links= pip install"), "a CPU build of torch may lie there"
    assert machine.stamps == [], "the next start would think that it is installed"
