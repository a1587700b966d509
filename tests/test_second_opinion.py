"""`doctor.py --model`: the same tokens scored here tell which side is at fault."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learners.diagnosis.dump import Dump
from scripts.parts.second_opinion import first_responses, opinions
from tasks.arithmetic.model import CHECKPOINT, build_tokenizer
from tasks.errors import UsageError
from tests.programs import run_programs

TEMPERATURE = 1.2  # of the side that is wrong: the sampler says what it did not sample from


@pytest.fixture(scope="module")
def dump() -> Dump:
    """Sampled by the embedded model in FP32, whose log-probabilities are both sides'."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval(), build_tokenizer()
    prompts, responses, right, wrong = [], [], [], []
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for i in range(40):
            prompt = tokenizer(f"{13 + 7 * i}+{461 - 11 * i}=")["input_ids"]
            ids = torch.tensor([prompt]).repeat(2, 1)
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=True,
                                  temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None)  # fmt: skip
            logits = model(input_ids=made).logits[:, len(prompt) - 1 : -1]
            for values, scale in ((right, 1.0), (wrong, TEMPERATURE)):
                log_probs = (logits / scale).log_softmax(-1).gather(2, made[:, len(prompt) :, None])
                values.append(log_probs.flatten().numpy())
            responses.append(made[:, len(prompt) :].flatten().numpy().astype(np.int32))
            prompts += [prompt] * 2
    right, wrong = np.concatenate(right), np.concatenate(wrong)
    made = Dump(np.arange(81) * 12, np.concatenate(responses), wrong, right, prompt_ids=prompts)
    return made


def test_the_row_of_the_side_at_fault_is_ill_and_that_of_the_other_is_not(dump):
    rows = {row["what"]: row for row in opinions("embedded", ("fp32", "fp16"), dump, 80)}
    assert rows["log pi against log mu: your gap"]["diagnosis"] == "raw-log-probs"
    sampler = rows["here, fp32 against log mu: your sampler"]
    trainer = rows["log pi against here, fp32: your trainer"]
    assert sampler["diagnosis"] == "raw-log-probs" and sampler["k3"] > 1e-3
    assert trainer["diagnosis"] == "healthy" and trainer["k3"] < 1e-9
    assert rows["here, fp32: alone against in a batch"]["k3"] < 1e-9
    noise = rows["here, fp16 against fp32: noise floor"]
    assert 1e-9 < noise["k3"] < 1e-4 and noise["diagnosis"] == "healthy"
    assert len(rows) == 8


def test_only_the_first_responses_are_scored(dump):
    part = first_responses(dump, 3)
    assert len(part) == 3 and part.starts.tolist() == [0, 12, 24, 36] and len(part.log_mu) == 36


def test_what_cannot_be_scored_is_refused(dump, tmp_path):
    dump = first_responses(dump, 3)
    dump.prompt_ids[1] = []
    with pytest.raises(UsageError, match=r"response 1 .* has none"):
        opinions("embedded", ("fp32",), dump, 3)
    row = {"response_ids": [5, 6], "log_mu": [-1.0, -2.0], "log_pi": [-1.0, -2.5]}
    cases = (({}, "the dump has no prompt_ids"), ({"prompt_ids": [200]}, "another model's"))
    for number, (more, _) in enumerate(cases):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(row | more) + "\n")
    ended = run_programs(*(["scripts/doctor.py", tmp_path / f"{n}.jsonl", "--model", "embedded"] for n in range(2)))
    for (_, sentence), done in zip(cases, ended, strict=True):
        assert done.returncode == 2 and sentence in done.stderr
