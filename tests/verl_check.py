"""Checks an export against verl itself, in an environment that has it: `python tests/verl_check.py FOLDER...`.

For each folder that scripts/export_verl.py wrote: run.sh's own words are composed with verl's configuration, validated
and turned into its dataclasses; the parquet files pass through its dataset, the reward through its reward manager. Then
every objective's gradient, with rejections too, and every advantage is compared with what verl's functions give under
the exported configuration. No GPU and no vLLM is needed; nothing is trained. It is run by tests/test_export_verl.py.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from transformers import AutoTokenizer
from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
from verl.protocol import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.torch_dtypes import PrecisionType

from learners.command_line import parse
from learners.objectives import OBJECTIVES, REJECTIONS, PolicyBatch
from learners.objectives.advantages import ADVANTAGES
from learners.objectives.aggregation import UpdateCounts, aggregate
from learners.objectives.weights import importance_weight, limits_of
from scripts.parts.verl_overrides import EXPORTED, POLICY_GRADIENTS, SURROGATES, as_override, overrides

THOUGHT = "<think>\n so </think> hence "  # what some templates want before the answer
CONFIGS = Path(verl.__file__).parent / "trainer" / "config"


def words_of(run_sh: Path) -> list[str]:
    """What run.sh hands to python, after the shell's own quoting."""
    with tempfile.TemporaryDirectory() as folder:
        shim, heard = Path(folder) / "python", Path(folder) / "heard"
        shim.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{heard}'\n")
        shim.chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        subprocess.run(["bash", str(run_sh)], env=os.environ | {"PATH": path}, check=True)
        words = heard.read_text().split("\0")[:-1]
    assert words[:2] == ["-m", "verl.trainer.main_ppo"], words[:2]
    return words[2:]


def composed(words: list[str]) -> DictConfig:
    """verl's whole configuration with those overrides, validated by verl."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = migrate_legacy_reward_impl(compose("ppo_trainer", overrides=words))
    validate_config(config, need_reference_policy(config), need_critic(config))
    return config


# ------------------------------------------------------------------------------------------------ one export


def check_folder(folder: Path) -> None:
    config = composed(words_of(folder / "run.sh"))
    fsdp = omega_conf_to_dataclass(config.actor_rollout_ref.actor).fsdp_config
    trained, sampled = (
        PrecisionType.to_dtype(fsdp.mixed_precision["param_dtype"]),
        config.actor_rollout_ref.rollout.dtype,
    )
    assert fsdp.model_dtype == "fp32"
    check_data(config)
    print(f"{folder.name}: composed and validated; trains in {trained}, samples in {sampled}; data and reward load")


def check_data(config: DictConfig) -> None:
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    template = config.actor_rollout_ref.model.custom_chat_template
    reward = get_custom_reward_fn(config)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    manager = resolve_reward_manager_cls(config)(config, tokenizer, reward)
    for files in (config.data.train_files, config.data.val_files):
        data = RLHFDataset(files, tokenizer, config.data)
        assert len(data) > 0
        for i in (0, len(data) - 1):
            row = data[i]
            assert set(row) >= {"data_source", "raw_prompt", "ability", "reward_model", "extra_info", "index"}
            ids = tokenizer.apply_chat_template(row["raw_prompt"], chat_template=template, add_generation_prompt=True)
            assert row["extra_info"]["question"] in tokenizer.decode(ids["input_ids"] if hasattr(ids, "keys") else ids)
            answer = row["reward_model"]["ground_truth"]
            for text, expected in (
                (f"{THOUGHT}\\boxed{{{answer}}}", 1.0),
                (f"{THOUGHT}\\boxed{{no}}", 0.0),
                (answer, 0.0),
            ):
                graded = loop.run_until_complete(manager.run_single(one_response(row, text, tokenizer)))
                told = graded["reward_extra_info"]
                assert graded["reward_score"] - told.get("overlong_reward", 0) == expected, (text, graded)
                assert told["acc"] == expected
    loop.close()


def one_response(row: dict, text: str, tokenizer) -> DataProto:
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    tensors = {"responses": ids, "attention_mask": torch.ones_like(ids)}
    others = {key: np.array([row[key]], dtype=object) for key in ("data_source", "reward_model", "extra_info")}
    return DataProto.from_dict(tensors=tensors, non_tensors=others)


# ------------------------------------------------------------------------------------------------ objectives

GROUP, RESPONSES, TOKENS = 4, 8, 6


def random_batch(seed: int, apart: float) -> dict[str, torch.Tensor]:
    """Log-probabilities of three policies that are ``apart`` from each other, right-padded."""
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(RESPONSES, TOKENS, generator=generator) * 2 - 0.05
    noise = lambda: torch.randn(RESPONSES, TOKENS, generator=generator) * apart
    lengths = torch.randint(1, TOKENS + 1, (RESPONSES, 1), generator=generator)
    return {
        "logp": logp,
        "old": (logp + noise()).clamp(max=-1e-3),
        "mu": (logp + noise()).clamp(max=-1e-3),
        "mask": torch.arange(TOKENS) < lengths,
        "rewards": torch.randint(0, 2, (RESPONSES,), generator=generator).float(),
    }


def our_gradient(config, batch) -> tuple[torch.Tensor, torch.Tensor, float]:
    """And the share of the tokens that is rejected. As learners/update/updater.py does it."""
    logp = batch["logp"].clone().requires_grad_()
    made = OBJECTIVES[config.objective.objective]
    advantages = ADVANTAGES[config.objective.advantage](batch["rewards"], GROUP)
    old = batch["old"] if made.needs_pi_old else None
    thresholds = {name: getattr(config.objective, name) for name in made.thresholds}
    policy = PolicyBatch(logp, batch["mu"], advantages, batch["mask"], old)
    loss, _ = made(policy, **thresholds)
    if config.objective.is_batch_normalize:
        log_weight = policy.log_ratio(old, batch["mu"], made.weighs)
        weight, _ = importance_weight(made.weighs, log_weight, **limits_of(thresholds))
        loss = loss / (weight[batch["mask"]] if made.weighs == "token" else weight).mean()
    keep = batch["mask"]
    compared = PolicyBatch(logp.detach() if old is None else old, batch["mu"], advantages, batch["mask"])
    for rejection in (REJECTIONS[name] for name in config.objective.reject):
        keep = keep & rejection(compared, **{name: getattr(config.objective, name) for name in rejection.thresholds})
    loss = loss.where(keep, loss.new_zeros(()))
    counts = UpdateCounts(RESPONSES, RESPONSES, batch["mask"].sum().item(), config.sampling.generate_max_length)
    aggregate(
        loss, batch["mask"], torch.ones(RESPONSES, dtype=torch.bool), config.objective.aggregation, counts
    ).backward()
    return logp.grad, advantages, 1 - (keep.sum() / batch["mask"].sum()).item()


def verls_gradient(config: DictConfig, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """As verl's V1 trainer and its worker (verl/workers/utils/losses.py) do it, one update, one process."""
    actor, correction = omega_conf_to_dataclass(config.actor_rollout_ref.actor), config.algorithm.rollout_correction
    mask, mu = batch["mask"].float(), batch["mu"]
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=mask.sum(), global_batch_size=RESPONSES,
                                   loss_scale_factor=actor.loss_scale_factor)  # fmt: skip
    index = np.repeat(np.arange(RESPONSES // GROUP), GROUP)
    scores = torch.zeros_like(mask)
    scores[:, 0] = batch["rewards"]
    keywords = {"config": config.algorithm}
    if config.algorithm.adv_estimator == "grpo":
        keywords["norm_adv_by_std_in_grpo"] = config.algorithm.norm_adv_by_std_in_grpo
    advantages, _ = core_algos.get_adv_estimator_fn(config.algorithm.adv_estimator)(
        scores, mask, index=index, **keywords
    )
    old, weights = mu, None
    if not correction.bypass_mode:
        old = batch["old"]
        chosen = {key: correction[key] for key in ("rollout_is", "rollout_is_threshold", "rollout_rs",
                                                   "rollout_rs_threshold", "rollout_is_batch_normalize")}  # fmt: skip
        made, mask, _ = compute_rollout_correction_and_rejection_mask(old, mu, mask, **chosen)
        weights = made.batch["rollout_is_weights"] if made is not None else None
    logp = batch["logp"].clone().requires_grad_()
    loss, _ = core_algos.get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=old, log_prob=logp, advantages=advantages, response_mask=mask,
        loss_agg_mode=actor.loss_agg_mode, config=actor, rollout_is_weights=weights,
    )  # fmt: skip
    loss.backward()
    return logp.grad, advantages


def mean_of(objective: str) -> list[str]:
    """The aggregation that VeRL has for it alone."""
    return ["--aggregation=token-mean-sequence"] * (objective in ("gmpo", "sapo"))


def check_objective(*options: str) -> None:
    config = parse(["--task=math", "--data=x", "--prompt-template=qwen_math", "--prompt-max-length=32",
                    "--lr-scheduler=constant", "--num-samples=4", f"--model={MODEL}", "--generate-max-length=24",
                    "--train-batch-size=128", "--micro-batch-size=128", *options])  # fmt: skip
    words = [as_override(key, value) for key, value in overrides(config, 1, 1).items()]
    theirs = composed(words)
    largest, rejected = 0.0, []
    for apart in (0.01, 0.3, 1.5):
        for seed in range(4):
            batch = random_batch(seed, apart)
            expected, advantages, share = our_gradient(config, batch)
            gradient, their_advantages = verls_gradient(theirs, batch)
            inside = batch["mask"]
            torch.testing.assert_close(their_advantages[inside], advantages[:, None].expand_as(inside)[inside],
                                       atol=1e-5, rtol=1e-5)  # fmt: skip
            torch.testing.assert_close(gradient[inside], expected[inside], atol=1e-8, rtol=2e-5)
            largest = max(largest, expected[inside].abs().max().item())
            rejected.append(share)
    assert largest > 1e-4, "the gradients are all next to nothing, so their equality shows nothing"
    assert not config.objective.reject or any(0 < share < 1 for share in rejected), "all or nothing was rejected"
    print(f"{' '.join(options)}: the same advantages and gradients")


MODEL = ROOT / "tasks" / "arithmetic" / "checkpoint"

if __name__ == "__main__":
    for name in sys.argv[1:]:
        check_folder(Path(name))
    for objective in EXPORTED:
        for recipe in ("oat", "verl"):
            check_objective(f"--objective={objective}", f"--recipe={recipe}", *mean_of(objective))
    for aggregation in ("token-mean-batch", "token-mean-sequence", "token-sum-constant"):
        for advantage in ADVANTAGES:
            check_objective(f"--aggregation={aggregation}", f"--advantage={advantage}", "--objective=grpo-seq-mis")
    check_objective("--objective=grpo", "--dual-clip=3", "--clip-high=0.28")
    by_response = "--reject geo k3 max-token --geo-low 0.7 --geo-high 1.9 --k3-cap 0.5".split()
    both = ["--reject", "max-token", "icepop", "--icepop-low", "0.6", "--icepop-high", "3"]
    for name in (*POLICY_GRADIENTS, *SURROGATES, "gspo", "gmpo", "sapo", "cispo"):
        check_objective(f"--objective={name}", *mean_of(name), *by_response)
        if name not in ("gspo", "gmpo", "sapo"):
            check_objective(f"--objective={name}", "--aggregation=token-mean-batch", *both)
        if OBJECTIVES[name].weighs and OBJECTIVES[name].needs_pi_old:
            check_objective(f"--objective={name}", "--is-batch-normalize=True", "--reject=k3", "--k3-cap=0.5")
    print("verl agrees")
