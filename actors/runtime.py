"""Oat in one process: what stands in for Launchpad, Plasma and, on a CPU, torch.cuda.

Oat 0.2.4 was written for a program of several processes on GPUs in 2025: learners and actors are Launchpad nodes that
exchange data through a Plasma store. Here actor and learner are two objects of one process, so none of that is used;
but Oat imports it. This is the one module that knows what Oat, vLLM and DeepSpeed expect of their environment.
`prepare` comes before any of them is imported.
"""

import logging
import os
import sys
import types
import warnings
from datetime import timedelta

import torch

from actors import cpu_half
from actors.devices import Gpu, gpus
from actors.launch import Launch
from tasks.errors import UsageError, first_line

COMPILER = "torch._inductor.lowering"  # the part of torch's compiler that vLLM loads, and that loads much of the rest


def prepare(dtypes: set[torch.dtype], cpu_half_mode: str = "auto") -> cpu_half.Fp32Accumulate | None:
    """Make Oat, vLLM and DeepSpeed importable and able to work in this process, on whatever device is there.

    Args:
        dtypes: what the two engines will compute in.
        cpu_half_mode: see `cpu_half.install`.

    Returns:
        The half-precision override of a CPU without native half products, or None.

    Raises:
        UsageError: there is a GPU, and this torch cannot use it.
    """
    refuse_a_gpu_out_of_reach(gpus())
    Launch.from_environment().export(visible_gpus=torch.cuda.device_count())
    _set_environment(dtypes)
    _sum_in_fp32()
    _name_callers_without_their_source()
    _stand_in_for_absent_modules()
    if not torch.cuda.is_available():
        _stand_in_for_cuda()
        _let_deepspeed_train_fp16_on_cpu()
    _quieten()
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        _load_no_compiler(for_vllm=bool(dtypes))
    return cpu_half.install(dtypes, cpu_half_mode)


def device() -> torch.device:
    """This process's device: its own GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def refuse_a_gpu_out_of_reach(present: tuple[Gpu, ...]) -> None:
    """A driver that is too old for this torch would turn the run into one on the CPU, without a word.

    Raises:
        UsageError: the driver shows GPUs to this process, ``present``, and torch sees none.
    """
    if not present or torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
        reason = "it sees none"
    except Exception as error:
        reason = first_line(error)
    raise UsageError(
        f"This machine has {len(present)} x {present[0].name} with driver {present[0].driver}, which torch "
        f"{torch.__version__} (CUDA {torch.version.cuda}) cannot use: {reason}. Install a newer driver; or set "
        "CUDA_VISIBLE_DEVICES to nothing, to run on the CPU."
    )


def init_process_group(timeout: timedelta = timedelta(minutes=60)) -> None:
    """Join the other processes that the launcher started; a process alone meets itself, and opens no port for it."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not torch.distributed.is_initialized() and int(os.environ["WORLD_SIZE"]) == 1:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        alone = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
        torch.distributed.init_process_group(backend, timeout=timeout, **alone)
    import deepspeed

    deepspeed.init_distributed(timeout=timeout)


def leave_process_group() -> None:
    """Part from the other processes, at the end of the program: DeepSpeed cannot join a second time."""
    torch.distributed.destroy_process_group()


def _sum_in_fp32() -> None:
    """By default cuBLAS may add up the parts of a sum of half products in half: an error of the very kind that is
    studied here, and a way to overflow."""
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _set_environment(dtypes: set[torch.dtype]) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine stays in this process, where its weights are
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # its threads are the learner's too
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # On a CPU nothing is worth compiling here, and vLLM would compile a helper of its sampler for 13 s.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if torch.float32 in dtypes:  # for which vLLM has Triton's attention alone, whose products are TF32 by default
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    # vLLM samples from logits that are not numbers without a word, and what comes out looks like a poor model.
    os.environ["VLLM_RAISE_ON_LOGIT_NANS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _quieten() -> None:
    import deepspeed.runtime.bf16_optimizer
    import deepspeed.utils
    import transformers.utils.logging

    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it prints, whatever the level
    transformers.utils.logging.disable_progress_bar()
    # When a step fails, vLLM prints its whole configuration and batch, pages of it, before the error.
    logging.getLogger("vllm.logging_utils.dump_input").disabled = True  # vLLM's set-up undoes a level
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)  # no Triton on a CPU: expected
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _load_no_compiler(for_vllm: bool) -> None:
    """torch.compile loads the compiler even where TORCH_COMPILE_DISABLE has it do nothing; so does vLLM, to tell it of
    operators of its own, and goes on without where it cannot be imported. ``for_vllm``: it will be used, and is loaded
    here."""
    torch.compile = lambda model=None, **_: model if model is not None else lambda function: function
    if for_vllm and COMPILER not in sys.modules:
        sys.modules[COMPILER] = None  # Python's way to say that there is no such module
        try:
            import vllm  # noqa: F401
        finally:
            del sys.modules[COMPILER]


def _name_callers_without_their_source() -> None:
    """For each of the operators that vLLM defines, torch notes file and line, and reads the whole file to find them."""
    from torch._library import utils

    def get_source(stacklevel: int) -> str:
        frame = sys._getframe(stacklevel)
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"

    utils.get_source = get_source


def _stand_in_for_absent_modules() -> None:
    """Oat imports launchpad and pyarrow.plasma at the top of its modules; nothing of them is called here."""
    import pyarrow

    for name in ("launchpad", "pyarrow.plasma"):
        sys.modules.setdefault(name, types.ModuleType(name))
    pyarrow.plasma = sys.modules["pyarrow.plasma"]


def _stand_in_for_cuda() -> None:
    """The calls to torch.cuda that Oat makes on its way, where there is no GPU: wait for nothing, be the CPU."""
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.set_device = lambda device: None
    torch.cuda.current_device = lambda: torch.device("cpu")


def _let_deepspeed_train_fp16_on_cpu() -> None:
    """DeepSpeed asks its accelerator whether FP16 is supported, and its CPU says no where products are not native. They
    are correct all the same, and practical with `cpu_half`."""
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class CPU(CPU_Accelerator):
        is_fp16_supported = is_bf16_supported = lambda self: True

        def create_op_builder(self, class_name):
            # Its shared-memory all-reduce serves inference alone, and takes 20 s to compile.
            return None if class_name == "ShareMemCommBuilder" else super().create_op_builder(class_name)

    real_accelerator.set_accelerator(CPU())
