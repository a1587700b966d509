"""Which process this is, from torchrun's and Slurm's variables."""

import pytest

from actors.launch import Launch
from actors.processes import Processes
from tasks.errors import UsageError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "20", "SLURM_PROCID": "17",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "8(x2),4",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip


def test_alone():
    assert Launch.from_environment({}) == Launch()
    in_a_batch_script = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert Launch.from_environment(in_a_batch_script) == Launch(), "a script started without srun is one process"


def test_torchrun():
    assert Launch.from_environment(TORCHRUN) == Launch(3, 4, 1, 2, "10.0.0.1", 29500)


def test_srun():
    launch = Launch.from_environment(SRUN)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.local_world_size) == (17, 20, 1, 4)
    assert launch.master_addr == "gpu07"
    others = [Launch.from_environment(SRUN | {"SLURM_PROCID": str(i)}) for i in (0, 5)]
    assert {other.master_port for other in others} == {launch.master_port}, "all must meet at one port"
    assert Launch.from_environment(SRUN | {"MASTER_PORT": "1234"}).master_port == 1234


@pytest.mark.parametrize(
    ("nodes", "first"), [("a1,b2", "a1"), ("n[3,7-9],m1", "n3"), ("x,y[1-2]", "x"), ("solo", "solo")]
)
def test_the_first_host_of_a_list(nodes, first):
    assert Launch.from_environment(SRUN | {"SLURM_STEP_NODELIST": nodes}).master_addr == first


def test_torchrun_under_srun_is_torchruns():
    assert Launch.from_environment(SRUN | TORCHRUN).rank == 3


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        (TORCHRUN | {"RANK": "4"}, "Rank 4 .* is not among 4 processes"),
        (TORCHRUN | {"RANK": "three"}, "RANK is 'three', which is no whole number"),
        (
            {k: v for k, v in (SRUN | TORCHRUN).items() if k != "TORCHELASTIC_RUN_ID"},
            "contradicts Slurm's task 17 of 20",
        ),
    ],
)
def test_what_cannot_be_is_refused(environment, sentence):
    with pytest.raises(UsageError, match=sentence):
        Launch.from_environment(environment)


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"), [(0, 1, 0), (0, 8, 0), (7, 8, 7), (1, 1, 0), (7, 1, 0), (2, 4, 2)]
)
def test_each_process_has_a_gpu_of_its_own(local_rank, visible, index, monkeypatch):
    launch = Launch(rank=8 + local_rank, world_size=16, local_rank=local_rank, local_world_size=8)
    assert launch.device_index(visible) == index
    monkeypatch.setattr("os.environ", exported := {})
    launch.export(visible)
    assert (exported["LOCAL_RANK"], exported["RANK"], exported["LOCAL_WORLD_SIZE"]) == (
        str(index),
        str(launch.rank),
        "8",
    )
    monkeypatch.setattr("os.environ", exported := {})
    launch.export(visible_gpus=0)
    assert exported["LOCAL_RANK"] == str(local_rank), "on CPUs it is what it was"


def test_fewer_gpus_than_processes_are_refused():
    with pytest.raises(UsageError, match="Process 4 of 8 on this machine sees 4 GPUs"):
        Launch(rank=4, world_size=8, local_rank=4, local_world_size=8).export(visible_gpus=4)


def test_every_prompt_is_sampled_by_one_engine_and_every_response_kept_by_one_process():
    prompts = list(range(24))
    for world_size, tensor_parallel in ((1, 1), (4, 1), (4, 2), (6, 3), (8, 8)):
        kept = []
        for rank in range(world_size):
            processes = Processes(rank, world_size, tensor_parallel)
            own = processes.prompts_of_engine(prompts)
            assert own == Processes(processes.engine * tensor_parallel, world_size, tensor_parallel).prompts_of_engine(
                prompts
            ), "the processes of an engine must ask it for the same"
            kept += processes.share_of_engine(own)
        assert kept == prompts
