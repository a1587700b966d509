"""Dumps of every framework, written here as its source writes them (docs/dumps.md has repository, file and commit)."""

import json
import math
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from scripts.parts.dump_reading import read
from tasks.errors import UsageError
from tests.conftest import ROOT

IDS = [[5, 6, 7], [8, 9]]
MU = [[-0.5, -0.25, -1.0], [-2.0, -0.125]]
PI = [[-0.5, -0.375, -1.0], [-2.5, -0.125]]
PROMPTS = [[1, 2], [3]]


def rows(**more) -> list[dict]:
    """Two responses in the plain form; ``more`` are columns of theirs."""
    made = [{"response_ids": IDS[i], "log_mu": MU[i], "log_pi": PI[i], "prompt_ids": PROMPTS[i]} for i in range(2)]
    for name, values in more.items():
        for row, value in zip(made, values, strict=True):
            row[name] = value
    return made


def lines(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def table(path: Path, records: list[dict]) -> Path:
    parquet.write_table(pa.Table.from_pylist(records), path)
    return path


def holds_the_two(dump, prompts=True) -> None:
    assert dump.starts.tolist() == [0, 3, 5] and len(dump) == 2
    assert dump.response_ids.tolist() == [*IDS[0], *IDS[1]] and dump.response_ids.dtype == np.int32
    assert dump.log_mu.tolist() == [*MU[0], *MU[1]] and dump.log_mu.dtype == np.float32
    assert dump.log_pi.tolist() == [*PI[0], *PI[1]] and dump.log_pi.dtype == np.float32
    assert not prompts or list(dump.prompt_ids) == PROMPTS
    assert dump.problems == []


def refusal(*paths: Path, claims: dict | None = None, form: str | None = None) -> str:
    with pytest.raises(UsageError) as error:
        read(list(paths), claims or {}, form)
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------ the plain form


@pytest.mark.parametrize("write", [lines, table])
def test_the_plain_form_with_everything(tmp_path, write):
    more = {"reward": [1, 0.5], "group": ["a", "b"], "step": [3, 4], "finished": [True, False], "log_pi_again": MU}
    path = write(tmp_path / "dump.any", rows(**more))
    (tmp_path / "dump.any.claims.json").write_text('{"sample_dtype": "torch.bfloat16", "temperature": 1.0}')
    dump = read([path], {"temperature": 0.9, "lora": None})
    holds_the_two(dump)
    assert dump.log_pi_again.tolist() == dump.log_mu.tolist()
    assert dump.reward.tolist() == [1, 0.5] and dump.step.tolist() == [3, 4] and dump.finished.tolist() == [True, False]
    assert dump.group.tolist() == [0, 1]
    assert dump.claims == {"sample_dtype": "bf16", "temperature": 0.9}


def test_what_is_not_finite_is_kept_as_found(tmp_path):
    strange = [float("nan"), float("-inf"), 0.0]
    for write in (lines, table):
        dump = read(
            [write(tmp_path / "strange", [{"response_ids": [1, 2, 3], "log_mu": strange, "log_pi": strange}])], {}
        )
        assert math.isnan(dump.log_mu[0]) and dump.log_mu[1] == -math.inf and dump.log_mu[2] == 0
    (tmp_path / "null.jsonl").write_text('{"response_ids": [1, 2], "log_mu": [null, -1e999], "log_pi": [-1, -2]}\n')
    dump = read([tmp_path / "null.jsonl"], {})
    assert math.isnan(dump.log_mu[0]) and dump.log_mu[1] == -math.inf


def test_parquet_of_doubles_and_int64_in_several_row_groups_and_files(tmp_path):
    made = [{"response_ids": [i, i + 1], "log_mu": [-i, -0.5], "log_pi": [-i, -0.75], "step": i} for i in range(10)]
    schema = pa.schema({"response_ids": pa.large_list(pa.int64()), "log_mu": pa.list_(pa.float64()),
                        "log_pi": pa.list_(pa.float64()), "step": pa.int64()})  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(made[:7], schema), tmp_path / "0.parquet", row_group_size=2)
    parquet.write_table(pa.Table.from_pylist(made[7:], schema), tmp_path / "1.parquet")
    dump = read([tmp_path], {})
    assert dump.step.tolist() == list(range(10)) and dump.starts.tolist() == list(range(0, 21, 2))
    assert dump.response_ids.tolist() == [n for i in range(10) for n in (i, i + 1)]
    assert dump.log_mu[::2].tolist() == [-i for i in range(10)]


def test_rows_that_cannot_be_used_are_dropped_and_named(tmp_path):
    good, short = rows()
    short = short | {"log_pi": [-1.0]}
    path = lines(tmp_path / "some.jsonl", [good, short, good | {"log_mu": None}, good | {"log_mu": ["x", "y", "z"]}])
    with path.open("a") as file:
        file.write('{"response_ids": [1], "log_mu": [-0.')  # cut off by a kill
    dump = read([path], {})
    assert dump.starts.tolist() == [0, 3]
    assert [problem.split(" is ")[0].split(" are ")[0] for problem in dump.problems] == [
        "some.jsonl: rows 4, 5", "some.jsonl: row 3", "some.jsonl: row 2",
    ]  # fmt: skip
    assert "unequal lengths" in dump.problems[2] and dump.unequal == 1
    empty = {"response_ids": [], "log_mu": [], "log_pi": []}
    schema = pa.Table.from_pylist([good]).schema
    parquet.write_table(pa.Table.from_pylist([good, short, {}, empty], schema), tmp_path / "some.parquet")
    dump = read([tmp_path / "some.parquet"], {})
    assert dump.starts.tolist() == [0, 3]
    assert len(dump.problems) == 4 and "row 3" in dump.problems[1] and "row 4" in dump.problems[3]


@pytest.mark.parametrize("write", [lines, table])
def test_a_column_that_is_not_needed_and_not_what_it_should_be_is_left_out(tmp_path, write):
    odd = {"reward": ["good", "bad"], "step": ["one", "two"], "finished": ["no", "no"]}
    odd |= {"log_pi_again": [["x", "y", "z"], ["x", "y"]], "prompt_ids": ["a text", "a text"]}
    dump = read([write(tmp_path / "odd.any", rows(**odd))], {})
    assert len(dump) == 2 and all(getattr(dump, name) is None for name in odd)
    assert len(dump.problems) == 5
    assert "odd.any: reward is left out, as row 1 has 'good'" in dump.problems
    sentence = refusal(write(tmp_path / "mask.any", rows(mask=["1", "1"])))
    assert "mask" in sentence or "row" in sentence


def test_columns_that_some_files_lack_are_left_out(tmp_path):
    lines(tmp_path / "0.jsonl", rows(reward=[1, 0]))
    lines(tmp_path / "1.jsonl", rows())
    dump = read([tmp_path], {})
    assert dump.reward is None and len(dump) == 4
    assert dump.problems == ["reward is left out, as 1.jsonl has none"]


def test_tokens_that_no_policy_sampled_are_left_out(tmp_path):
    plain = lines(tmp_path / "plain.jsonl", [rows()[0] | {"mask": [1, 0, 1]}])
    dump = read([plain], {})
    assert dump.response_ids.tolist() == [5, 7] and dump.log_mu.tolist() == [-0.5, -1.0]
    assert list(dump.prompt_ids) == [[1, 2]]


def test_claims_that_disagree_are_left_open_and_unknown_ones_refused(tmp_path):
    for i, dtype in enumerate(("bf16", "fp16")):
        lines(tmp_path / f"{i}.jsonl", rows())
        (tmp_path / f"{i}.jsonl.claims.json").write_text(json.dumps({"sample_dtype": dtype, "colour": "red"}))
    dump = read([tmp_path], {})
    assert dump.claims == {}
    assert any("bf16 by 0.jsonl.claims.json, fp16 by 1.jsonl.claims.json" in problem for problem in dump.problems)
    assert any("colour" in problem for problem in dump.problems)
    assert "no claim that is known" in refusal(tmp_path / "0.jsonl", claims={"colour": "red"})
    assert "a number is wanted" in refusal(tmp_path / "0.jsonl", claims={"top_p": "much"})
    assert "top_p is 3; it is from 1e-09 to 1." in refusal(tmp_path / "0.jsonl", claims={"top_p": 3})
    assert "temperature is -1; it is from" in refusal(tmp_path / "0.jsonl", claims={"temperature": -1})
    assert "it is one of bf16, fp16, fp32." in refusal(tmp_path / "0.jsonl", claims={"train_dtype": "banana"})


def test_the_same_numbers_on_both_sides_are_a_problem(tmp_path):
    dump = read([lines(tmp_path / "same.jsonl", [rows()[0] | {"log_pi": MU[0]}])], {})
    assert "nothing to compare" in dump.problems[0]


# ------------------------------------------------------------------------------------------------ this project's own


def test_an_analysis(tmp_path):
    from scripts.parts.responses import Chunks, Response

    responses = [Response(i, 0, PROMPTS[i], IDS[i], MU[i], True, PI[i]) for i in range(2)]
    chunks = Chunks(tmp_path, "bf16", 2)
    chunks.write_sampled(0, responses)
    chunks.write_scored(0, responses)
    chunks.write_sampled(1, responses)  # not scored yet
    (tmp_path / "settings.json").write_text("{}")
    dump = read([tmp_path], {})
    holds_the_two(dump)
    assert dump.group.tolist() == [0, 1] and dump.finished.all()
    assert dump.claims == {"sample_dtype": "bf16", "train_dtype": "bf16", "temperature": 1.0, "top_p": 1.0}
    Chunks(tmp_path, "fp16", 1).write_scored(0, responses)
    assert any("left open" in problem for problem in read([tmp_path], {}).problems)


# ---------------------------------------------------------------------------------------------------- other frameworks


def padded(lists, width: int, left: bool = False, fill: float = 0.0) -> torch.Tensor:
    made = torch.full((len(lists), width), fill, dtype=torch.tensor(lists[0]).dtype)
    for row, values in zip(made, lists, strict=True):
        row[width - len(values) if left else 0 :][: len(values)] = torch.tensor(values)
    return made


ONES = [[1] * len(ids) for ids in IDS]


def verl_batch() -> dict:
    """The tensors of a DataProto after its old_log_probs were computed."""
    prompts, responses = padded(PROMPTS, 3, left=True), padded(IDS, 4)
    return {
        "prompts": prompts, "responses": responses, "input_ids": torch.cat([prompts, responses], 1),
        "attention_mask": torch.cat([padded([[1, 1], [1]], 3, left=True), padded(ONES, 4)], 1),
        "response_mask": padded(ONES, 4), "position_ids": torch.zeros(2, 7, dtype=torch.long),
        "rollout_log_probs": padded(MU, 4), "old_log_probs": padded(PI, 4),
        "rm_scores": torch.tensor([[0, 0, 1.0, 0], [0, 0.5, 0, 0]]),
    }  # fmt: skip


def test_verl(tmp_path):
    batch = verl_batch()
    torch.save(batch | {"uid": ["a", "a"]}, tmp_path / "7.pt")
    dump = read([tmp_path / "7.pt"], {})
    holds_the_two(dump)
    assert dump.reward.tolist() == [1, 0.5] and dump.group.tolist() == [0, 0] and dump.step.tolist() == [7, 7]
    batch.pop("old_log_probs")
    torch.save(batch, tmp_path / "8.pt")
    assert "not the trainer's" in refusal(tmp_path / "8.pt")
    generations = [{"input": "1+1=", "output": "2", "gts": "2", "score": 1.0, "step": 1, "acc": True}]
    assert "rollout_data_dir" in refusal(lines(tmp_path / "1.jsonl", generations))


def skyrl_batch() -> dict:
    """A TrainingInputBatch as it is dumped."""
    sequences = [[*PROMPTS[i], *IDS[i]] for i in range(2)]
    return {
        "sequences": padded(sequences, 5, left=True), "attention_mask": padded([[1] * 5, [1] * 3], 5, left=True),
        "response_mask": padded(ONES, 3, left=True), "loss_mask": padded(ONES, 3, left=True).float(),
        "rollout_logprobs": padded(MU, 3, left=True), "action_log_probs": padded(PI, 3, left=True).bfloat16(),
        "advantages": torch.ones(2, 3), "returns": torch.ones(2, 3), "base_action_log_probs": None,
    }  # fmt: skip


def test_skyrl(tmp_path):
    batch, file = skyrl_batch(), tmp_path / "global_step_12_training_input.pkl"
    with file.open("wb") as opened:
        pickle.dump({"sequences": Bomb(tmp_path / "run")}, opened)
    assert "convert it" in refusal(tmp_path)
    torch.save(batch, file.with_suffix(".pt"))
    dump = read([tmp_path], {})  # the pickle beside it is passed over
    holds_the_two(dump)
    assert dump.step.tolist() == [12, 12] and dump.reward is None and not (tmp_path / "run").exists()


def test_what_is_to_be_added_to_verl_and_skyrl_runs_as_it_is_written(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dumps.md").read_text(), re.DOTALL)
    for_verl, for_skyrl = (next(b for b in blocks if word in b) for word in ("non_tensor_batch", "pickle.load"))
    monkeypatch.chdir(tmp_path)
    batch = SimpleNamespace(batch=verl_batch(), non_tensor_batch={"uid": np.array(["a", "b"], object)})
    exec(for_verl, {"os": os, "torch": torch, "batch": batch, "self": SimpleNamespace(global_steps=7)})
    dump = read([tmp_path / "dumps"], {})
    holds_the_two(dump)
    assert dump.step.tolist() == [7, 7] and dump.group.tolist() == [0, 1]
    file = tmp_path / "dumped_data" / "global_step_12_training_input.pkl"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps(skyrl_batch()))
    monkeypatch.setattr(sys, "argv", ["convert.py", str(file)])
    exec(for_skyrl, {})
    holds_the_two(read([file.parent], {}))


def test_trl(tmp_path):
    batch = {
        "prompt_ids": padded(PROMPTS, 2, left=True), "prompt_mask": padded([[1, 1], [1]], 2, left=True),
        "completion_ids": padded(IDS, 4), "completion_mask": padded(ONES, 4), "advantages": torch.ones(2),
        "num_items_in_batch": torch.tensor(5), "old_per_token_logps": padded(PI, 4),
        "sampling_per_token_logps": padded(MU, 4), "importance_sampling_ratio": torch.ones(2, 1),
    }  # fmt: skip
    torch.save(batch, tmp_path / "step-3.pt")
    dump = read([tmp_path], {})
    holds_the_two(dump)
    assert dump.step.tolist() == [3, 3]
    torch.save(batch | {"tool_mask": padded([[1, 0, 1], [1, 1]], 4, fill=1)}, tmp_path / "step-3.pt")
    assert read([tmp_path], {}).response_ids.tolist() == [5, 7, 8, 9]
    logged = [{"step": 1, "prompt": "1+1=", "completion": "2", "reward": 1.0, "advantage": 0.0}]
    assert "dump_trl" in refusal(table(tmp_path / "completions_00001.parquet", logged))


def prime_rl(i: int) -> dict:
    """A record of token_export.py: columns span prompt and response."""
    before, after = len(PROMPTS[i]), len(IDS[i])
    length = before + after
    return {
        "schema_version": 1, "step": 2, "rank": 0, "micro_step": 0, "micro_sequence_idx": i, "export_sequence_idx": i,
        "env_name": "math", "token_ids": [*PROMPTS[i], *IDS[i]], "position_ids": list(range(length)),
        "loss_mask": [False] * before + [True] * after, "advantages": [1.0] * length,
        "inference_logprobs": [0.0] * before + MU[i], "trainer_logprobs": [-11.9] * before + PI[i],
        "entropy": [0.1] * length, "mismatch_kl": [None] * length, "log_importance_ratio": [None] * length,
        "importance_ratio": [None] * length, "prob_delta": [None] * length, "is_masked": [False] * length,
        "is_masked_high": [False] * length, "is_masked_low": [False] * length, "rl_weights": [None] * length,
        "ce_weights": [None] * length, "ref_kl_weights": [None] * length,
    }  # fmt: skip


def test_prime_rl(tmp_path):
    for i in range(2):
        lines(tmp_path / "run" / "token_exports" / "step_2" / f"rank_{i}.jsonl", [prime_rl(i)])
    (tmp_path / "run" / "token_exports" / "step_2" / "STABLE").touch()
    dump = read([tmp_path / "run"], {})
    holds_the_two(dump)
    assert dump.step.tolist() == [2, 2]
    record = prime_rl(0)
    record["loss_mask"][-2] = False  # a tool's answer within
    record["trainer_logprobs"][-1] = None  # what is not finite is null
    dump = read([lines(tmp_path / "tool.jsonl", [record])], {})
    assert dump.response_ids.tolist() == [5, 7] and list(dump.prompt_ids) == [[1, 2]] and math.isnan(dump.log_pi[1])


def test_slime(tmp_path):
    samples = [
        {
            "data_parallel_rank": 0, "sample_index": i, "rollout_position": i, "rewards": 0.7 - i, "truncated": i,
            "tokens": torch.tensor([*PROMPTS[i], *IDS[i]]), "total_lengths": len(PROMPTS[i]) + len(IDS[i]),
            "response_lengths": len(IDS[i]), "loss_masks": torch.ones(len(IDS[i]), dtype=torch.int),
            "rollout_log_probs": torch.tensor(MU[i]), "log_probs": torch.tensor(PI[i]), "rollout_ids": i,
        }
        for i in range(2)
    ]  # fmt: skip
    payload = {"format_version": 2, "rollout_id": 4, "rank": 0, "samples": samples, "raw_reward": [1, 0]}
    (tmp_path / "train_data").mkdir()
    torch.save(payload | {"dp_shards": [{"rank": 0, "partition": [0, 1]}]}, tmp_path / "train_data" / "4.pt")
    dump = read([tmp_path], {})
    holds_the_two(dump)
    assert dump.reward.tolist() == [1, 0] and dump.finished.tolist() == [True, False] and dump.step.tolist() == [4, 4]
    rollout = {"tokens": [1, 2, 5], "response_length": 1, "rollout_log_probs": [-0.5], "status": "completed"}
    torch.save({"rollout_id": 4, "samples": [rollout]}, tmp_path / "rollout.pt")
    assert "--save-debug-train-data" in refusal(tmp_path / "rollout.pt")


# ------------------------------------------------------------------------------------------------------------ refusals


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [pickle.dump, lambda what, file: torch.save({"samples": [what]}, file)])
def test_a_pickle_is_not_executed(tmp_path, write):
    with (tmp_path / "bomb.pkl").open("wb") as file:
        write(Bomb(tmp_path / "exploded"), file)
    assert "could run anything" in refusal(tmp_path / "bomb.pkl")
    assert not (tmp_path / "exploded").exists()


def test_what_will_not_do_is_refused_in_a_sentence(tmp_path):
    assert "no file or folder" in refusal(tmp_path / "nothing.jsonl")
    assert "holds no dump" in refusal(tmp_path)
    files = {
        "empty.jsonl": (b"", "is empty"),
        "text.jsonl": (b"step 1: reward 0.3\n", "neither parquet nor JSON"),
        "image.parquet": (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither parquet nor JSON"),
        "cut.parquet": (b"PAR1" + bytes(200), "damaged"),
        "cut.pt": (b"PK\x03\x04" + bytes(200), "pickle"),
        "brace.jsonl": (b"{" * 100_000, "no row that can be read"),
        "deep.jsonl": (b'{"response_ids": ' + b"[" * 100_000, "no row that can be read"),
        "array.json": (b'[{"response_ids": [1]}]', "neither parquet nor JSON lines"),
        "other.jsonl": (
            b'{"text": "hello", "log_mu": [1.0]}\n',
            "no response_ids and no log_pi (it has: log_mu, text)",
        ),
        "strings.jsonl": (
            b'{"response_ids": "abc", "log_mu": "abc", "log_pi": "abc"}\n',
            "a list of numbers is wanted",
        ),
        "nested.jsonl": (b'{"response_ids": [[1]], "log_mu": [[-1]], "log_pi": [[-1]]}\n', "list of numbers"),
        "large.jsonl": (b'{"response_ids": [9876543210], "log_mu": [-1], "log_pi": [-1]}\n', "below 2^31"),
        "uneven.jsonl": (b'{"response_ids": [1], "log_mu": [-1, -2], "log_pi": [-1]}\n', "no response is left"),
    }
    for name, (content, sentence) in files.items():
        (tmp_path / name).write_bytes(content)
        assert sentence in refusal(tmp_path / name), name
    words = pa.table({"response_ids": ["a"], "log_mu": ["b"], "log_pi": ["c"]})
    parquet.write_table(words, tmp_path / "words.parquet")
    assert "a list of numbers a row" in refusal(tmp_path / "words.parquet")
    parquet.write_table(pa.table({name: pa.array([], pa.list_(pa.float32())) for name in words.column_names}),
                        tmp_path / "none.parquet")  # fmt: skip
    assert "no rows" in refusal(tmp_path / "none.parquet")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "a dictionary is wanted" in refusal(tmp_path / "list.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    assert "no form that is known" in refusal(tmp_path / "model.pt")
    assert "no format that is known" in refusal(tmp_path / "model.pt", form="carrier pigeon")
    good = lines(tmp_path / "good.jsonl", rows())
    (tmp_path / "good.jsonl.claims.json").write_text("{")
    assert "no JSON" in refusal(good)
