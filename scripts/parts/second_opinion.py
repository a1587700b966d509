"""The trainer's model scores a dump's responses here, so that the engines' gap has something to be measured against."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from learners.diagnosis.diagnose import diagnose
from learners.diagnosis.dump import Dump
from tasks.arithmetic.model import CHECKPOINT
from tasks.errors import UsageError, require

BATCH_TOKENS = 4096


def opinions(model: str, dtypes: tuple[str, ...], dump: Dump, most: int) -> list[dict]:
    """The gap between every two of: log mu, log pi, the model here alone and in batches, in each dtype.

    Args:
        model: "embedded", a folder or a hub id.
        dtypes: of the model here.
        dump: with prompts.
        most: responses that are scored, the first ones.

    Raises:
        UsageError: the model cannot be loaded, or has fewer tokens than the dump's ids; or a response has no prompt.
    """
    from actors import cpu_half, runtime
    from learners.options.precision import TORCH_DTYPES

    part = first_responses(dump, most)
    empty = next((i for i, prompt in enumerate(part.prompt_ids) if not prompt), None)
    require(empty is None, f"--model scores a response after its prompt, and response {empty} (from 0) has none.")
    runtime.prepare(set())  # no engine samples
    cpu_half.install({TORCH_DTYPES[dtype] for dtype in dtypes})
    scores = {"log mu": part.log_mu, "log pi": part.log_pi}
    for dtype in dtypes:
        alone, batched = score(model, dtype, part)
        scores |= {f"here, {dtype}": batched, f"here, {dtype}, alone": alone}
    rows = [compare("log pi against log mu: your gap", part, "log mu", "log pi", scores)]
    for dtype in dtypes:
        here = f"here, {dtype}"
        rows.append(compare(f"{here} against log mu: your sampler", part, "log mu", here, scores))
        rows.append(compare(f"log pi against {here}: your trainer", part, here, "log pi", scores))
        rows.append(compare(f"{here}: alone against in a batch", part, here, f"{here}, alone", scores))
        if dtype != dtypes[0]:
            rows.append(compare(f"{here} against {dtypes[0]}: noise floor", part, f"here, {dtypes[0]}", here, scores))
    return rows


def compare(what: str, part: Dump, mu: str, pi: str, scores: dict[str, np.ndarray]) -> dict:
    claims = {k: v for k, v in part.claims.items() if not k.endswith("dtype")}
    made = diagnose(replace(part, log_mu=scores[mu], log_pi=scores[pi], log_pi_again=None, claims=claims, problems=[]))
    numbers = {key: made.numbers.get(key, float("nan")) for key in ("d_50", "d_90", "k3")}
    return {"what": what, "diagnosis": made.name} | numbers


def first_responses(dump: Dump, most: int) -> Dump:
    """The first ``most`` responses of a dump."""
    count = min(most, len(dump))
    tokens = int(dump.starts[count])
    row = lambda values: None if values is None else values[:count]
    return Dump(
        dump.starts[: count + 1], dump.response_ids[:tokens], dump.log_mu[:tokens], dump.log_pi[:tokens],
        prompt_ids=[list(dump.prompt_ids[i]) for i in range(count)], reward=row(dump.reward), group=row(dump.group),
        step=row(dump.step), claims=dict(dump.claims),
    )  # fmt: skip


def score(model: str, dtype: str, part: Dump) -> tuple[np.ndarray, np.ndarray]:
    """log pi by the trainer's model here, each response alone and in batches: (T,) FP32 each."""
    from learners.model.log_probs import TokenLogProbs
    from learners.options.precision import TORCH_DTYPES
    from scripts.parts.responses import Response
    from scripts.parts.scoring import free_memory, load_trained_model, score_batch, token_batches

    path = str(CHECKPOINT) if model == "embedded" else model
    config = SimpleNamespace(model_path=path, model=SimpleNamespace(trust_remote_code=False))
    try:
        loaded = load_trained_model(config, TORCH_DTYPES[dtype], "sdpa")
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {model} cannot be loaded ({str(error)[:120]}).") from error
    size = loaded.config.vocab_size
    largest = max(int(part.response_ids.max()), max(max(p, default=0) for p in part.prompt_ids))
    require(
        largest < size, f"--model {model} has {size} tokens, and the dump's ids go up to {largest}: another model's."
    )
    temperature = float(part.claims.get("temperature") or 1.0)
    scorer = TokenLogProbs(loaded, temperature)
    scorer.check()
    responses = [
        Response(i, 0, part.prompt_ids[i], part.response_ids[a:b].tolist(), part.log_mu[a:b].tolist(), True)
        for i, (a, b) in enumerate(zip(part.starts, part.starts[1:], strict=False))
    ]
    made = []
    for batches in ([[r] for r in responses], list(token_batches(responses, BATCH_TOKENS))):
        for batch in batches:
            score_batch(scorer, batch)
        made.append(np.concatenate([r.log_pi for r in responses]).astype(np.float32))
    del scorer, loaded
    free_memory()
    return made[0], made[1]
