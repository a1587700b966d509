"""Which GPUs there are, without torch: a stand-in for nvidia-smi on PATH."""

import os
import subprocess
import sys

import pytest

from actors import devices
from actors.devices import Gpu, gpus
from tests.conftest import ROOT

H100, A100 = Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "580.65.06"), Gpu("A100", 40960 * 2**20, "580.65.06")
ANSWER = "NVIDIA H100 80GB HBM3, 81559, 580.65.06\nA100, 40960, 580.65.06\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with two GPUs and a torch for CUDA; called with another answer, nvidia-smi gives that."""

    def answers(text: str, code: int = 0) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
        program.chmod(0o755)
        gpus.cache_clear()

    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "torch_is_for_cuda", lambda: True)
    answers(ANSWER)
    yield answers
    gpus.cache_clear()


@pytest.mark.parametrize(("visible", "found"), [
    (None, (H100, A100)), ("", ()), ("-1", ()), ("0", (H100,)), ("1,0", (A100, H100)), ("1,-1,0", (A100,)),
    ("7", ()), ("GPU-8932f937,GPU-1", (H100, H100)),
])  # fmt: skip
def test_cuda_visible_devices_chooses(machine, monkeypatch, visible, found):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == found


def test_none_without_a_driver_or_without_a_torch_for_cuda(machine, monkeypatch):
    machine("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", code=9)
    assert gpus() == ()
    machine("[Unknown Error], [N/A], 580\n")
    assert gpus() == ()
    machine(ANSWER)
    monkeypatch.setattr(devices, "torch_is_for_cuda", lambda: False)
    assert gpus() == ()


@pytest.mark.parametrize(("version", "source", "for_cuda"), [
    ("2.13.0+cpu", "cuda: Optional[str] = None", False), ("2.13.0", "cuda: Optional[str] = None", False),
    ("2.13.0", "cuda: Optional[str] = '13.0'", True), ("2.11.0+cu130", "cuda = '13.0'", True),
])  # fmt: skip
def test_whether_torch_is_for_cuda(tmp_path, monkeypatch, version, source, for_cuda):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"{source}\nhip: Optional[str] = None\n")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "torch")]})
    monkeypatch.setattr(devices.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: spec)
    assert devices.torch_is_for_cuda() is for_cuda


def test_torch_is_not_imported():
    code = "import sys; from actors.devices import gpus; gpus(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
