"""A vLLM engine in the sampling dtype, inside this process: build it, load weights into it, read them back.

What vLLM (0.32) does otherwise on one device or another is kept here.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, get_args

import psutil
import torch
import vllm
from vllm.config.lora import MaxLoRARanks
from vllm.distributed import parallel_state
from vllm.lora.request import LoRARequest
from vllm.model_executor.models import registry

from actors import cpu_sampler
from tasks.errors import NonFiniteError

T = TypeVar("T")
VLLM_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


class SamplingEngine:
    """vLLM's `LLM`, its weights within reach.

    Args:
        model_path: folder or hub id, in Hugging Face format.
        dtype: what it samples in. Never "auto": that follows the checkpoint, which is BF16 as a rule.
        max_model_len: longest prompt and response together, tokens.
        max_num_seqs: most sequences decoded at once.
        seed: of the engine, for requests that bring none.
        gpu_memory_utilization: share of a GPU's memory; without a GPU the cache is sized for the batch.
        enforce_eager: no compilation, no CUDA graphs. A CPU is always eager: compiled, it starts 10-40 s later and
            samples 5-10% faster.
        sleep_level: what `sleep` does: 1 moves the weights to host memory, 2 drops them, and a whole set must be
            loaded after waking; 0 for an engine that never sleeps.
        tensor_parallel: processes that share this engine; each builds it, and gives it the same prompts and seeds.
        lora_rank: of the adapters that `MathActor.load_adapter` will bring; 0 for none.
        enable_prefix_caching, trust_remote_code: as in vLLM.
    """

    def __init__(
        self,
        model_path: str,
        dtype: torch.dtype,
        *,
        max_model_len: int,
        max_num_seqs: int,
        seed: int = 0,
        gpu_memory_utilization: float = 0.35,
        enforce_eager: bool = False,
        sleep_level: int = 0,
        tensor_parallel: int = 1,
        lora_rank: int = 0,
        enable_prefix_caching: bool = False,
        trust_remote_code: bool = False,
    ):
        _leave_the_process_group_to_the_learner()
        _note_log_probs_simply()
        # The first time on a machine that vLLM meets a kind of model, it looks at it in another process, which loads
        # vLLM anew, lest CUDA be initialised in this one. Here the engine itself is in this one.
        registry._run_in_subprocess = lambda look: look()
        arguments = {}
        if torch.cuda.is_available():
            arguments |= {"gpu_memory_utilization": gpu_memory_utilization, "enforce_eager": enforce_eager}
            # Of vLLM's kernels for a mixture of experts, Triton's leaves the weights as they are loaded.
            arguments["moe_backend"] = "triton"
        else:
            cpu_sampler.install()
            keep_linear_weights_in_place()
            # vLLM binds the process's memory to one NUMA node; the learner is in this process and may need more.
            torch.ops._C.init_cpu_memory_env = lambda nodes: None
            cache = _cpu_cache_bytes(model_path, dtype, max_model_len, max_num_seqs, trust_remote_code)
            arguments |= {"kv_cache_memory_bytes": cache, "enforce_eager": True, "block_size": CPU_BLOCK_TOKENS}
            # After a prompt's first part vLLM takes back the draw of a request that has a seed, and a CPU's cannot be.
            arguments["enable_chunked_prefill"] = False
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            _name_shared_memory_after_the_run()
            arguments |= {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": tensor_parallel}
        if lora_rank > 0:
            has_kernels = next(rank for rank in get_args(MaxLoRARanks) if lora_rank <= rank)
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": has_kernels}
        self.llm = vllm.LLM(
            model=model_path,
            dtype=VLLM_DTYPES[dtype],
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            seed=seed,
            enable_sleep_mode=sleep_level > 0,
            enable_prefix_caching=enable_prefix_caching,
            trust_remote_code=trust_remote_code,
            # mu is the distribution that was sampled from: after temperature, top-p and top-k.
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **arguments,
        )
        self.dtype, self.sleep_level = dtype, sleep_level
        self._asleep: set[str] = set()

    @property
    def model(self) -> torch.nn.Module:
        """vLLM's own module, on the device, with vLLM's fused parameter names."""
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model

    def generate(
        self,
        prompts: list[list[int]],
        params: vllm.SamplingParams | list[vllm.SamplingParams],
        adapter: LoRARequest | None = None,
    ) -> list[vllm.RequestOutput]:
        """Sample every prompt (token ids), each with its own parameters or all with the same; outputs come in the order
        of the prompts.

        Raises:
            NonFiniteError: a logit is not a number.
        """
        tokens = [{"prompt_token_ids": ids} for ids in prompts]
        with self._within_range():
            return self.llm.generate(tokens, sampling_params=params, use_tqdm=False, lora_request=adapter)

    def step(self) -> list[vllm.RequestOutput]:
        """Decode one token of every running request (`llm.llm_engine.add_request`), and return what is new.

        Raises:
            NonFiniteError: a logit is not a number.
        """
        with self._within_range():
            return self.llm.llm_engine.step()

    @contextmanager
    def _within_range(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if NAN_LOGITS not in str(error):
                raise
            mend = "use --dtype bf16 or fp32 for this model, or" if self.dtype == torch.float16 else "choose"
            raise NonFiniteError(
                f"The sampler's logits are not numbers: activations or weights left the range of "
                f"{VLLM_DTYPES[self.dtype]} (docs/fp16-limits.md); {mend} a lower "
                "--learning-rate if all was well before."
            ) from error

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy weights in, under their Hugging Face names; whatever dtype they have, they are cast to the engine's.

        The prefix cache is emptied: it was computed with the old weights.
        """
        with torch.no_grad():
            self.model.load_weights(named_tensors)
            if not torch.cuda.is_available():
                _repack_experts(self.model)
        self.llm.reset_prefix_cache()

    def decided_by_first(self, decide: Callable[[], T]) -> T:
        """What the first of the processes that share this engine decides, on all of them; each calls this."""
        group = parallel_state.get_tp_group()
        decision = [decide() if group.rank_in_group == 0 else None]
        if group.world_size > 1:
            torch.distributed.broadcast_object_list(decision, src=group.ranks[0], group=group.cpu_group)
        return decision[0]

    def parameter_dtypes(self) -> set[torch.dtype]:
        """The dtypes that the engine's floating-point weights really have."""
        return {p.dtype for p in self.model.parameters() if p.is_floating_point()}

    def sleep(self) -> None:
        """Drop the cache, and move the weights to host memory or drop them too (vLLM's levels 1 and 2)."""
        self.llm.sleep(level=self.sleep_level)
        self._asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        """Bring back ``["weights"]`` (before loading new ones) or ``["kv_cache"]`` (after)."""
        due = [tag for tag in tags if tag in self._asleep]
        if due:  # what is awake must not be woken: its memory would be mapped twice
            self.llm.wake_up(tags=due)
            self._asleep -= set(due)

    def close(self) -> None:
        """Give back what the engine holds. Before another engine is built in this process, the last one is closed."""
        self.llm.llm_engine.engine_core.shutdown()


CPU_BLOCK_TOKENS = 32
NAN_LOGITS = "NaNs detected in logits"  # how vLLM puts it


def _cpu_cache_bytes(model_path, dtype, max_model_len, max_num_seqs, trust_remote_code) -> int:
    """Room for the whole batch's keys and values, within a quarter of the machine's memory."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    blocks_per_sequence = -(-max_model_len // CPU_BLOCK_TOKENS) + 1
    tokens = (max_num_seqs * blocks_per_sequence + 16) * CPU_BLOCK_TOKENS
    needed = 2 * config.num_hidden_layers * heads * head_size * dtype.itemsize * tokens
    return int(min(needed, psutil.virtual_memory().total // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def keep_linear_weights_in_place() -> None:
    """On a CPU with the kernels for it, vLLM packs each linear layer's weight into a copy of its own and drops the
    original, so that weights loaded later would change nothing. Leave them where they are, and multiply with torch."""
    from vllm.model_executor.layers import utils

    linear = torch.nn.functional.linear
    utils.dispatch_cpu_unquantized_gemm = lambda layer, remove_weight: setattr(layer, "cpu_linear", linear)


def _repack_experts(model: torch.nn.Module) -> None:
    """On a CPU, vLLM packs the weights of a mixture's experts when it starts, in place; what was loaded over them
    since is not packed."""
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None:
            kernel.fused_experts.process_weights_after_loading(module)


def _leave_the_process_group_to_the_learner() -> None:
    """vLLM's shutdown, which may come as late as a garbage collection, ends torch.distributed for the whole process;
    the learner is in the same group. Let it end its own groups only."""

    def end_own_groups() -> None:
        if parallel_state._WORLD:
            parallel_state._WORLD.destroy()
        parallel_state._WORLD = parallel_state._NODE_COUNT = None

    parallel_state.destroy_distributed_environment = end_own_groups


def _note_log_probs_simply() -> None:
    """vLLM makes lists of the one number of a token, and, where it decodes, a string of each: a tenth of the sampling
    time of a small model. Nothing reads the strings."""
    from vllm.logprobs import Logprob
    from vllm.v1.engine.logprobs import LogprobsProcessor

    if hasattr(LogprobsProcessor, "update_of_vllm"):
        return
    LogprobsProcessor.update_of_vllm = LogprobsProcessor._update_sample_logprobs

    def note(self, new) -> None:
        if new.logprobs.size != 1 or not isinstance(self.logprobs, list):
            return self.update_of_vllm(new)
        log_prob = new.logprobs.item()
        self.cumulative_logprob += log_prob
        self.logprobs.append({new.logprob_token_ids.item(): Logprob(log_prob, new.sampled_token_ranks.item())})

    LogprobsProcessor._update_sample_logprobs = note


def _name_shared_memory_after_the_run() -> None:
    """On a CPU, the processes of a vLLM engine meet in shared memory, whose name is the same for every run that a
    launcher started; two runs on one machine would take each other's. The port where a run meets tells them apart."""
    from vllm.distributed.device_communicators import cpu_communicator

    meeting = cpu_communicator._CPUSHMDistributed
    if not hasattr(meeting, "name_without_port"):
        meeting.name_without_port = staticmethod(meeting.make_group_name)
        meeting.make_group_name = staticmethod(
            lambda communicator: f"{meeting.name_without_port(communicator)}-{os.environ['MASTER_PORT']}"
        )
