"""The GPUs of this process's machine, as nvidia-smi shows them: torch need not be imported to know."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Gpu:
    """Example: ``Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "580.65.06")``."""

    name: str
    memory: int
    """bytes in all"""
    driver: str
    """the driver's version"""


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Those that this process may use, in the order of CUDA_VISIBLE_DEVICES.

    None where the installed torch is a build for CPUs or nvidia-smi does not answer. A device that CUDA_VISIBLE_DEVICES
    names in another way than by its number (a UUID, a MIG instance) is taken to be like the machine's first.
    """
    if not torch_is_for_cuda():
        return ()
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.splitlines()]
    present = [Gpu(row[0], int(row[1]) * 2**20, row[2]) for row in rows if len(row) == 3 and row[1].isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return tuple(present)
    chosen = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        number = int(name) if re.fullmatch(r"-?\d+", name) else 0
        if not 0 <= number < len(present):
            break  # as CUDA does: what stands behind an impossible number is not seen
        chosen.append(present[number])
    return tuple(chosen)


def torch_is_for_cuda() -> bool:
    """Whether the installed torch can use a GPU of NVIDIA's at all, by its version and what it was built for."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return False
    where = importlib.util.find_spec("torch").submodule_search_locations[0]  # found, not imported
    built_for = re.search(r"^cuda\b[^=]*=\s*(.*)$", (Path(where) / "version.py").read_text(), re.MULTILINE)
    return built_for is not None and built_for[1].strip() != "None"
