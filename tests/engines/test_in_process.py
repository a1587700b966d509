"""Both real engines in this process, on the embedded model in FP16."""

import json

import pytest
import torch

from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines

STEPS_APART = 3  # updates between two looks, enough for the weights to have moved


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    arguments = ["--dtype=fp16", "--learning-rate=1e-4", "--max-eval=32", "--lr-scheduler=constant"]
    with built_learner(tmp_path_factory.mktemp("run") / "out", *arguments) as learner:
        learner.tests_step = 0
        yield learner


def one_step(learner, sync: bool = True) -> dict[str, float]:
    learner.tests_step += 1
    metrics = learner.learn(learner.collect(learner.tests_step))
    if sync:
        learner.sync_params_to_actors()
    return metrics


def test_sampler_weights_are_bitwise_the_learners_after_every_update(learner):
    from scripts.parts.sampler_weights import unequal_weights

    assert unequal_weights(learner) == []
    for _ in range(2):
        one_step(learner, sync=False)
        assert len(unequal_weights(learner)) > 25, "the update changed nothing, so this test shows nothing"
        learner.sync_params_to_actors()
        assert unequal_weights(learner) == []


def test_a_dropped_synchronisation_shows_in_the_mismatch(learner):
    fresh = one_step(learner, sync=False)["mismatch/kl_k3"]
    stale = one_step(learner)["mismatch/kl_k3"]  # sampled with the weights of a step ago
    mended = one_step(learner)["mismatch/kl_k3"]
    assert stale > 30 * max(fresh, mended), (fresh, stale, mended)


def test_sampling_is_a_function_of_the_seed(learner):
    prompts = learner.rollouts.stream.batch(1)[:8]
    texts = [[t.response for t in learner.actor.sample(prompts, seed, range(8))] for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_text_and_log_probabilities_are_those_that_vllm_makes_token_by_token(learner, monkeypatch):
    from vllm.v1.engine.logprobs import LogprobsProcessor

    actor, prompts = learner.actor, learner.rollouts.stream.batch(1)
    lengths = sorted(len(t.response_ids) for t in actor.sample(prompts, 7, range(64)))
    assert lengths[0] < lengths[-1]
    monkeypatch.setattr(actor.sampling_params, "max_tokens", lengths[-1] - 1)  # so that some end there and some before
    ours = actor.sample(prompts, 7, range(64))
    assert not actor.sampling_params.detokenize
    monkeypatch.setattr(actor.sampling_params, "detokenize", True)
    monkeypatch.setattr(LogprobsProcessor, "_update_sample_logprobs", LogprobsProcessor.update_of_vllm)
    theirs = actor.sample(prompts, 7, range(64))
    for name in ("response", "response_ids", "response_logprobs", "rewards"):
        assert [getattr(t, name) for t in ours] == [getattr(t, name) for t in theirs], name


def test_what_a_prompt_is_answered_does_not_depend_on_what_else_its_engine_samples(learner):
    """As with another number of engines. But for near ties, which another batch may round the other way."""
    prompts, places = learner.rollouts.stream.batch(1), range(64)
    whole = learner.actor.sample(prompts, 7, places)
    torch.manual_seed(1)  # nothing is drawn from torch's own stream
    parts = learner.actor.sample(prompts[32:], 7, places[32:])
    parts = learner.actor.sample(prompts[:32], 7, places[:32]) + parts
    same = [one.response == other.response for one, other in zip(whole, parts, strict=True)]
    assert sum(same) > 0.97 * len(same) > 400
    groups = [{t.response for t in whole[i : i + 8]} for i in range(0, len(whole), 8)]
    assert sum(len(group) > 1 for group in groups) > 8, "the responses to a prompt are one and the same"


def test_seeded_draws_follow_the_distribution(learner):
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    sampler, rows, turns = TopKTopPSampler("processed_logprobs"), 500, 40
    generators = {row: torch.Generator().manual_seed(10**6 + row) for row in range(rows)}  # as vLLM's children: + 1
    logits = probabilities.log().repeat(rows, 1)
    drawn = torch.stack([sampler.forward_cpu(logits, generators, None, None)[0] for _ in range(turns)])
    counts = drawn.flatten().bincount(minlength=5).double()
    expected = probabilities.double() * rows * turns
    assert ((counts - expected) ** 2 / expected).sum() < 18.5, "chi-squared with 4 degrees of freedom, p = 0.001"
    again = (drawn[1:] == drawn[:-1]).double().mean()  # by row, one after another
    beside = (drawn[:, 1:] == drawn[:, :-1]).double().mean()
    assert torch.stack([again, beside]).sub((probabilities**2).sum()).abs().max() < 0.015


def test_evaluations_at_the_same_weights_are_the_same(learner):
    learner.args.eval_n, learner.config.evaluation.eval_k = 4, 2
    greedy, learner.actor.eval_sampling_params.temperature = learner.actor.eval_sampling_params.temperature, 1.0
    try:
        first, second = ({k: v for k, v in learner.evaluate().items() if k != "time/evaluate"} for _ in range(2))
        rewards, lengths = learner.actor.evaluate(learner.eval_prompts, learner.args.seed)
        other, _ = learner.actor.evaluate(learner.eval_prompts, learner.args.seed + 1)
    finally:
        learner.args.eval_n, learner.config.evaluation.eval_k = 1, 1
        learner.actor.eval_sampling_params.temperature = greedy
    assert first == second
    assert rewards.shape == lengths.shape == (32, 4)
    assert (rewards != other).any(), "another seed, other responses"
    differ = (rewards != rewards[:, :1]) | (lengths != lengths[:, :1])
    assert differ.any(), "the responses to a problem are one and the same"
    assert first["eval/accuracy"] == (rewards == 1).mean() > 0.5
    assert first["eval/accuracy"] <= first["eval/pass_at_k"] <= (rewards == 1).any(axis=1).mean()
    assert 0 < first["eval/accuracy_stderr"] < 0.1


def test_prompts_that_exceed_one_engine_step_together_are_sampled_all_the_same(learner):
    """vLLM would cut one of them in two, and cannot take back a seeded draw on a CPU."""
    from actors.responses import Request, sample_stream

    prompt = learner.eval_prompts[0]
    long = (prompt.token_ids * 30)[:30]
    requests = [Request(seed, long, prompt.reference, seed) for seed in range(250)]  # 7,500 tokens; a step takes 4,096
    params = learner.actor.eval_sampling_params
    greedy, params.temperature = params.temperature, 1.0
    try:
        made = [r for finished in sample_stream(learner.actor.engine, requests, params, 250) for r in finished]
    finally:
        params.temperature = greedy
    assert sorted(response.request.key for response in made) == list(range(250))


def test_a_truncated_response_earns_nothing(learner):
    prompts = learner.rollouts.stream.batch(1)[:8]
    limit = learner.actor.sampling_params.max_tokens
    learner.actor.sampling_params.max_tokens = 3
    try:
        transitions = learner.actor.sample(prompts, 0, range(8))
    finally:
        learner.actor.sampling_params.max_tokens = limit
    assert transitions[0].info["actor/no_eos_count"] == 64
    assert {sum(t.rewards) for t in transitions} == {0.0}


def test_forward_passes_are_as_many_as_the_objective_needs(learner):
    from learners.objectives import OBJECTIVES

    counted = []
    hook = learner.causal_lm.get_decoder().register_forward_hook(lambda *_: counted.append(1))
    training = learner.config.training
    micro_batches, training.train_on_all = learner.config.sequences_per_step // training.micro_batch_size, True
    try:
        for name, made in OBJECTIVES.items():
            learner.updater.objective, learner.updater.thresholds = made, {}
            counted.clear()
            one_step(learner)
            assert len(counted) == (2 if made.needs_pi_old else 1) * micro_batches, name
    finally:
        hook.remove()
        training.train_on_all = False
        learner.updater.objective = OBJECTIVES["pg-seq-is"]


def zero_share(learner, scale: float, factor: float) -> float:
    """Share of the MLP's gradient entries that are exactly 0, for a loss made small by ``factor``."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    batch = learner.collect(1).batch.select(torch.arange(16))
    before, learner.optimizer.loss_scaler = learner.optimizer.loss_scaler, LossScaler(scale)
    try:
        learner.engine.train()
        learner.strategy.backward(-learner.updater.log_probs(batch).sum() * factor, learner.model, learner.optimizer)
        gradients = [p.grad_accum for n, p in learner.causal_lm.named_parameters() if "mlp" in n and p.requires_grad]
        assert all(gradient is not None for gradient in gradients)
        share = sum(int((g == 0).sum()) for g in gradients) / sum(g.numel() for g in gradients)
        for group in learner.optimizer.param_groups:  # an update that changes nothing, to be rid of the gradient
            group["lr"] = 0.0
        learner.strategy.optimizer_step(learner.optimizer, learner.model, learner.scheduler)
    finally:
        learner.optimizer.loss_scaler = before
    return share


def test_small_gradients_underflow_in_fp16_and_scaling_brings_them_back(learner):
    """The same loss, 2^20 times smaller: most of its gradient is 0 then, and comes back with a scale."""
    large = zero_share(learner, 1.0, 1.0)
    small = zero_share(learner, 1.0, 2.0**-20)
    scaled = zero_share(learner, 2.0**20, 2.0**-20)
    assert small > large + 0.4, (large, small)
    assert scaled == large, "a power of two scales exactly, so nothing is lost"


def test_a_weight_that_is_not_finite_stops_the_run_and_names_the_prompt(learner):
    from tasks.errors import NonFiniteError

    step = learner.collect(1)
    weight = next(iter(learner.causal_lm.parameters()))
    kept = weight.data.clone()
    weight.data[:] = float("inf")
    try:
        with pytest.raises(NonFiniteError, match=r"--dtype fp16, prompt '\d+\+\d+='"):
            learner.learn(step)
    finally:
        weight.data.copy_(kept)


def test_logits_of_the_sampler_that_are_not_numbers_stop_the_run(learner):
    """vLLM would sample from them without a word; and what was begun leaves nothing behind in the engine."""
    from tasks.errors import NonFiniteError

    engine = learner.actor.engine
    weight = next(iter(engine.model.parameters()))
    kept = weight.data.clone()
    weight.data[:] = float("nan")
    try:
        with pytest.raises(NonFiniteError, match="left the range of float16"):
            learner.actor.evaluate(learner.eval_prompts[:4], seed=0)
    finally:
        weight.data.copy_(kept)
        for cache in engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner.kv_caches:
            cache.zero_()  # a key that is not a number harms whoever gets its block next
    assert not engine.llm.llm_engine.has_unfinished_requests()
    rewards, _ = learner.actor.evaluate(learner.eval_prompts[:64], seed=0)
    assert rewards.mean() > 0.5


def test_config_json_describes_the_run(learner):
    described = json.loads((learner.log.folder / "config.json").read_text())
    assert described["precision"]["dtype"] == "fp16"
    assert described["training"]["max_steps"] == learner.max_steps
    assert described["environment"]["versions"]["oat-llm"] == "0.2.4"
