"""What one process holds on its GPU, from sizes alone: a sum, each line of which has a formula and a source.

It is the fullest process that is planned. Nothing is measured here and no GPU is asked; tests/engines/test_memory.py
holds weights, masters, moments and gradients against DeepSpeed's real tensors, tests/test_memory_plan.py activations
against what autograd keeps. Numbers marked "estimate" are neither computed nor measured.

Sources: ``ds`` is deepspeed/runtime 0.19.8, with the configuration of learners/update/strategy.py; vllm/v1/worker 0.32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from learners.model.output_head import BLOCK_ELEMENTS, CHUNK_TOKENS
from learners.model.shape import ModelShape

GIB = 2**30
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}

# DeepSpeed's defaults (ds/zero/config.py), which Oat's "auto" stands for; in elements.
BUCKET = 500_000_000  # reduce_bucket_size
LIVE = 1_000_000_000 + 50_000_000  # stage3_max_live_parameters and stage3_prefetch_bucket_size
KEPT_WHOLE = 100_000  # stage3_param_persistence_threshold
SUB_GROUP = 1_000_000_000  # sub_group_size

# Estimates.
CONTEXT = 1 * GIB  # of CUDA, with what the driver keeps for itself
NCCL = 1 * GIB  # of its communicators, with several processes
FRAGMENTS = 2 * GIB  # that torch's allocator holds beside what is used
VLLM_WORKSPACE = 3 * GIB  # of vLLM's share: its activations, logits and CUDA graphs
HEADROOM = 0.98  # of the memory may be planned: estimates that leave nothing would promise too much
VLLM_ASLEEP = 2 * GIB  # what vLLM keeps while it sleeps: CUDA graphs and workspace

STARTS, SAMPLING, BACKWARD, UPDATE = "vLLM starts", "sampling", "backward", "update"


@dataclass(frozen=True)
class Setting:
    """What the sum depends on, beside the model."""

    gpu: int
    """bytes of memory in all"""
    processes: int
    stage: int
    """of ZeRO"""
    offload: str
    train: str
    """fp16, bf16 or fp32"""
    sample: str
    checkpointing: bool
    tokens: int
    """most in a micro-batch, padding included"""
    length: int
    """longest prompt and response together, tokens"""
    ratio: float
    """vLLM's share of the memory"""
    sleep_level: int
    tensor_parallel: int
    reference: bool = False
    """whether the initial model stays, for a KL divergence"""
    merges_adapters: bool = False
    sends_adapters: bool = False
    head_fp32: bool = False
    eager_attention: bool = False


@dataclass(frozen=True)
class Sampler:
    """vLLM's share, in bytes; `cache` may be below 0."""

    share: int
    weights: int
    cache: int
    token: int
    """of the cache, for one token"""

    def sequences(self, length: int) -> float:
        """So many sequences of full length the cache holds at once; vLLM does not start with less than one."""
        return self.cache / (self.token * length)


@dataclass(frozen=True)
class Plan:
    setting: Setting
    moments: dict[str, dict[str, int]]
    """moment -> line of the sum -> bytes"""
    sampler: Sampler

    def total(self, moment: str) -> int:
        return sum(self.moments[moment].values())

    @property
    def fullest(self) -> str:
        return max(self.moments, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.fullest)

    @property
    def sampler_has_room(self) -> bool:
        return self.sampler.sequences(self.setting.length) >= 1

    @property
    def fits(self) -> bool:
        return self.peak <= HEADROOM * self.setting.gpu and self.sampler_has_room


def make_plan(setting: Setting, shape: ModelShape) -> Plan:
    """The sum at four moments: when vLLM starts, while it samples, in a backward pass, and in the optimiser's step."""
    sampler = plan_sampler(setting, shape)
    always, learning = gradients(setting, shape)
    held = {
        "weights": weights(setting, shape),
        "FP32 master weights": masters(setting, shape),
        "AdamW's moments": 2 * masters(setting, shape),  # from the first update on
        "gradients": always,
        "initial model": BYTES[setting.train] * shape.whole if setting.reference else 0,
        "estimate: CUDA, NCCL, fragments": CONTEXT + NCCL * (setting.processes > 1) + FRAGMENTS,
    }
    bucket = 4 * BUCKET if setting.stage == 3 else 0
    awake = {"vLLM": sampler.share}
    meanwhile = {"vLLM": VLLM_ASLEEP if setting.sleep_level else sampler.share}
    learns = held | meanwhile | {"gradients": always + learning}
    return Plan(
        setting,
        {
            STARTS: held | awake | {"AdamW's moments": 0, "buckets, copies": bucket},
            SAMPLING: held | awake | {"buckets, copies": bucket + on_the_way(setting, shape)},
            BACKWARD: learns
            | {
                "buckets, copies": bucket + backward_buffers(setting, shape),
                "activations": activations(setting, shape),
                "logits": head(setting, shape),
            },
            UPDATE: learns | {"buckets, copies": bucket + update_buffers(setting, shape)},
        },
        sampler,
    )


# ---------------------------------------------------------------------------------------------- held all the time


def share_of(sizes: tuple[int, ...], setting: Setting) -> int:
    """Elements of the fullest process's part: stage 3 cuts each parameter (ds/zero/partition_parameters.py), stages 1
    and 2 the whole of them (ds/zero/stage_1_and_2.py: get_data_parallel_partitions)."""
    if setting.stage == 3:
        return sum(math.ceil(size / setting.processes) for size in sizes)
    return math.ceil(sum(sizes) / setting.processes)


def weights(setting: Setting, shape: ModelShape) -> int:
    """In the training dtype: all of them; at stage 3 a part, and with several processes the small ones whole beside it
    (ds/zero/config.py: stage3_param_persistence_threshold; from the first forward pass on). The base of adapters too.
    With --offload parameters the part is on the host."""
    everything = shape.trained + shape.frozen
    if setting.stage < 3:
        return BYTES[setting.train] * sum(everything)
    part = 0 if setting.offload == "parameters" else share_of(everything, setting)
    small = sum(size for size in everything if size < KEPT_WHOLE) if setting.processes > 1 else 0
    return BYTES[setting.train] * (part + small)


def masters(setting: Setting, shape: ModelShape) -> int:
    """4 bytes for each trained parameter, divided among the processes, in FP32 too; 0 if they are on the host.
    (stage_1_and_2.py: single_partition_of_fp32_groups; stage3.py: fp32_partitioned_groups_flat; bf16_optimizer.py:
    fp32_groups_flat_partition.)"""
    return 0 if setting.offload != "none" else 4 * share_of(shape.trained, setting)


def gradients(setting: Setting, shape: ModelShape) -> tuple[int, int]:
    """FP32, summed over the micro-batches: (what is always held, what is held beside it from the first backward pass
    to the end of the update).

    - Stage 1 sums whole gradients and reduces them at the end: 4 bytes a parameter in ``grad_accum`` (FP32: ``grad``).
      In BF16 another class holds them always (bf16_optimizer.py: fp32_groups_gradients_flat), and the BF16 gradients
      beside them until the update.
    - Stage 2 reduces at every backward pass and keeps its part (stage_1_and_2.py: _build_compact_grad_partition_buffer,
      in FP32 all_grad_tensors), on the GPU also with --offload, but not in FP32.
    - Stage 3 holds its part always (stage3.py: grad_partitions_flat_buffer), with --offload on the host.
    """
    trained, part = sum(shape.trained), share_of(shape.trained, setting)
    on_host = setting.offload != "none"
    if setting.stage == 3:
        return (0 if on_host else 4 * part), 0
    if setting.stage == 2:
        return 0, 0 if on_host and setting.train == "fp32" else 4 * part
    if setting.train == "bf16" and not on_host:
        return 4 * trained, 2 * trained
    return 0, 4 * trained


# ---------------------------------------------------------------------------------------------- while it learns


def activations(setting: Setting, shape: ModelShape) -> int:
    """What autograd keeps of a micro-batch, b bytes a number, h the hidden size, for each token:

    - a layer: two norms of (4 + 2b) h + 4 (input widened, normalised, output); queries and attention's output of
      b x heads x head_dim each, keys and values of b x kv_heads x head_dim each, attention's logsumexp, 4 x heads;
      normalised queries and keys another (4 + b) a number and 4 a head; an MLP of width i 4 b i (gate, its activation,
      up, their product), or, for each of k experts of width m, b (2h + 4m) and some 34 of indices, and 4 a router's
      logit. Eager attention: (4 + b) x heads x length.
    - without checkpointing: all layers; with it b h a layer, and one layer whole while it is computed anew;
    - the gradients within a layer: b (4h + 3i), an estimate;
    - the last norm, and the response's hidden states with two gradients of them.

    Source: transformers' Qwen2, Llama, Qwen3, Qwen3-MoE, their saved tensors counted on a CPU.
    """
    b, layer = BYTES[setting.train], token_in_a_layer(setting, shape)
    width = max(shape.mlp, shape.chosen_experts * shape.expert)
    kept = shape.layers * b * shape.hidden + layer if setting.checkpointing else shape.layers * layer
    within = b * (4 * shape.hidden + 3 * width)
    ends = (4 + 2 * b) * shape.hidden + 3 * b * shape.hidden
    return setting.tokens * (kept + within + ends)


def token_in_a_layer(setting: Setting, shape: ModelShape) -> int:
    """Bytes that the fullest layer keeps for one token; see `activations`."""
    b, h = BYTES[setting.train], shape.hidden
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = b * (2 * queries + 2 * keys) + 4 * shape.heads
    if shape.norms_queries:
        attention += (4 + b) * (queries + keys) + 4 * (shape.heads + shape.kv_heads)
    if setting.eager_attention:
        attention += (4 + b) * shape.heads * setting.length
    dense = 4 * b * shape.mlp
    mixture = shape.chosen_experts * (b * (2 * h + 4 * shape.expert) + 34) + 4 * shape.experts if shape.experts else 0
    return 2 * ((4 + 2 * b) * h + 4) + attention + max(dense, mixture)


def head(setting: Setting, shape: ModelShape) -> int:
    """learners/model/output_head.py at work: the logits of one chunk, two FP32 blocks of some rows, and, if the head is
    trained, its weight's gradient as an FP32 sum and a chunk's part of it; with --lm-head-fp32 the weight in FP32."""
    width = 4 if setting.head_fp32 else BYTES[setting.train]
    logits = min(CHUNK_TOKENS, setting.tokens) * shape.vocabulary * width
    matrix = shape.vocabulary * shape.hidden
    gradient = matrix * (4 + width) if shape.trains_head else 0
    return logits + 2 * 4 * BLOCK_ELEMENTS + gradient + (4 * matrix if setting.head_fp32 else 0)


def backward_buffers(setting: Setting, shape: ModelShape) -> int:
    """What DeepSpeed adds in a backward pass: the largest gradient before it is taken in, and

    - stage 1: a bucket in FP32 (stage_1_and_2.py: setup_buckets), none in BF16;
    - stage 2: a bucket in the training dtype, a flat copy of what is in it, and that in FP32 (allreduce_bucket); in
      FP32 its part of the new gradient instead, before it is added (grads_in_partition);
    - stage 3, beside its bucket: the copy that is reduced (comm/coalesced_collectives.py) and the weights that are
      gathered, at most LIVE.

    A bucket is allocated whole, however small the model; a gradient larger than it goes alone.
    """
    b, trained, largest = BYTES[setting.train], sum(shape.trained), max(shape.trained)
    filled = min(trained, max(BUCKET, largest))
    if setting.stage == 1:
        return 0 if setting.train == "bf16" and setting.offload == "none" else 4 * BUCKET + b * largest
    if setting.stage == 2:
        added = 4 * share_of(shape.trained, setting) if b == 4 else 4 * filled
        return b * (BUCKET + filled + largest) + added
    return 4 * filled + b * min(sum(shape.trained + shape.frozen), LIVE) + b * largest


def update_buffers(setting: Setting, shape: ModelShape) -> int:
    """What DeepSpeed adds in the optimiser's step: one gradient at a time in FP64, for the norm (get_grad_norm_direct),
    and

    - stage 1: its part of the reduced gradient, the bucket and a flat copy of it; in BF16 a copy alone;
    - stage 2: in FP32 a flat copy of its part;
    - stage 3: a flat copy of a sub-group's gradients (stage3.py: _prepare_fp32_grad_for_sub_group).

    The fused AdamW needs nothing of its own.
    """
    trained, part = sum(shape.trained), share_of(shape.trained, setting)
    norm, copy = 8 * min(max(shape.trained), part), 4 * min(trained, BUCKET)
    if setting.stage == 1:
        if setting.train == "bf16" and setting.offload == "none":
            return copy
        return 4 * part + max(4 * BUCKET + copy, norm)
    if setting.stage == 2:
        return norm if setting.train != "fp32" else max(norm, 4 * part)
    return 4 * min(part, SUB_GROUP) + norm


# ---------------------------------------------------------------------------------------------- vLLM


def plan_sampler(setting: Setting, shape: ModelShape) -> Sampler:
    """vLLM's share, which it wants free when it starts, whatever it needs: ceil(memory x ratio) (utils.py:
    request_memory). In it are the weights, divided among tensor-parallel peers, a workspace (an estimate), and the
    cache: keys and values of each layer for every token, a head of them at least in each peer."""
    width, peers = BYTES[setting.sample], setting.tensor_parallel
    share = math.ceil(setting.gpu * setting.ratio)
    held = math.ceil(width * shape.whole / peers)
    held += width * sum(shape.trained) if setting.sends_adapters else 0
    token = 2 * shape.layers * math.ceil(shape.kv_heads / peers) * shape.head_dim * width
    return Sampler(share, held, share - held - VLLM_WORKSPACE, token)


def on_the_way(setting: Setting, shape: ModelShape) -> int:
    """Weights go to the sampler one at a time (learners/model/weights.py): the largest in FP32, gathered, and another
    FP32 matrix of its size where an adapter is added to it."""
    largest = max(shape.trained + shape.frozen)
    return 4 * largest * (2 if setting.merges_adapters else 1)
