"""Which process this is: alone, or one of several that torchrun or srun started. Read from the environment alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.errors import UsageError, require

TORCH_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_first() -> bool:
    """Whether this process speaks for all of them."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@dataclass(frozen=True)
class Launch:
    """A process's place among those of the run. Example: ``Launch.from_environment({})`` is a process alone."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """which of its machine's processes"""
    local_world_size: int = 1
    """processes on this machine"""
    master_addr: str = "127.0.0.1"
    """where the process of rank 0 listens"""
    master_port: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Launch:
        """Read torchrun's variables, or else those of srun's job step.

        Raises:
            UsageError: they are incomplete, impossible, or torch's and Slurm's contradict each other.
        """
        if "RANK" in environ or "WORLD_SIZE" in environ:
            launch = cls._from_torch(environ)
        elif _number(environ, "SLURM_STEP_NUM_TASKS", default=1) > 1:
            launch = cls._from_slurm(environ)
        else:
            launch = cls()
        require(
            0 <= launch.rank < launch.world_size and 0 <= launch.local_rank < launch.local_world_size,
            f"Rank {launch.rank} (local {launch.local_rank}) is not among {launch.world_size} processes "
            f"({launch.local_world_size} on this machine); check RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE.",
        )
        return launch

    @classmethod
    def _from_torch(cls, environ: Mapping[str, str]) -> Launch:
        missing = [name for name in TORCH_NAMES if name not in environ]
        require(
            not missing,
            f"{', '.join(missing)} is not set though RANK or WORLD_SIZE is; start several processes with torchrun or "
            "srun, or unset RANK and WORLD_SIZE for one.",
        )
        world_size = _number(environ, "WORLD_SIZE")
        launch = cls(
            rank=_number(environ, "RANK"),
            world_size=world_size,
            local_rank=_number(environ, "LOCAL_RANK"),
            local_world_size=_number(environ, "LOCAL_WORLD_SIZE", default=world_size),
            master_addr=environ["MASTER_ADDR"],
            master_port=_number(environ, "MASTER_PORT"),
        )
        tasks = _number(environ, "SLURM_STEP_NUM_TASKS", default=1)
        if tasks > 1 and "TORCHELASTIC_RUN_ID" not in environ:  # srun started this process, not a torchrun under it
            place = (_number(environ, "SLURM_PROCID"), tasks)
            require(
                place == (launch.rank, launch.world_size),
                f"RANK {launch.rank} of WORLD_SIZE {launch.world_size} contradicts Slurm's task {place[0]} of {tasks}; "
                "unset RANK and WORLD_SIZE, or start with torchrun.",
            )
        return launch

    @classmethod
    def _from_slurm(cls, environ: Mapping[str, str]) -> Launch:
        tasks_per_node = _tasks_of_each_node(environ["SLURM_STEP_TASKS_PER_NODE"])
        job = _number(environ, "SLURM_JOB_ID")
        port = 20000 + (job * 7 + _number(environ, "SLURM_STEP_ID", default=0)) % 20000
        return cls(
            rank=_number(environ, "SLURM_PROCID"),
            world_size=_number(environ, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environ, "SLURM_LOCALID"),
            local_world_size=tasks_per_node[_number(environ, "SLURM_NODEID", default=0)],
            master_addr=environ.get("MASTER_ADDR") or _first_host(environ["SLURM_STEP_NODELIST"]),
            master_port=_number(environ, "MASTER_PORT", default=port),
        )

    def device_index(self, visible: int) -> int:
        """Which of the ``visible`` GPUs is this process's own: number 0 where a launcher shows each process its own
        alone (srun with --gpus-per-task or --gpu-bind).

        Raises:
            UsageError: there are several, but fewer than processes.
        """
        require(
            visible == 1 or self.local_rank < visible,
            f"Process {self.local_rank} of {self.local_world_size} on this machine sees {visible} GPUs, and each needs "
            "its own; start one process a GPU, and let each see all of them or its own alone.",
        )
        return 0 if visible == 1 else self.local_rank

    def export(self, visible_gpus: int = 0) -> None:
        """Tell Oat, vLLM and DeepSpeed, which read torchrun's variables, and take LOCAL_RANK for the GPU's number.

        Raises:
            UsageError: see `device_index`.
        """
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.device_index(visible_gpus) if visible_gpus else self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"The environment's {name} is {text!r}, which is no whole number; set it right.") from error


def _tasks_of_each_node(text: str) -> list[int]:
    """Slurm's ``"8(x2),4"`` as ``[8, 8, 4]``."""
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def _first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: ``"gpu[07-09,12],cpu1"`` begins with ``"gpu07"``."""
    prefix, bracket, rest = nodes.partition("[")
    if not bracket or "," in prefix:
        return nodes.split(",")[0]
    return prefix + re.match(r"\d+", rest).group() + (rest.partition("]")[2].split(",")[0])
