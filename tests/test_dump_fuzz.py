"""Spoilt dumps: the doctor refuses each in one sentence, or makes a sound page of it that runs nothing."""

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from scripts.doctor import Arguments, main
from scripts.parts import dump_formats
from scripts.parts.dump import OF_A_ROW, TOKENS
from scripts.parts.dump_reading import read
from tasks.errors import UsageError
from tests import test_dumps as dumps

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
COLUMNS = (*TOKENS, "prompt_ids", *OF_A_ROW)
VALUES = [
    None, True, "", HOSTILE, {}, {HOSTILE: HOSTILE}, [], [[]], [None], [HOSTILE], [1e308] * 10, [1e39] * 10, [-1e38,
    1e38] * 5, [float("nan")] * 10, [float("-inf")] * 10, [2**40] * 10, [-5] * 10, [1.5] * 10, 10**400, -(2**70),
    1e308, float("nan"), [0.0] * 10, [3e4] * 10, [True, False] * 5, "7", [[1.0] * 10],
]  # fmt: skip
TYPES = [
    pa.string(), pa.int8(), pa.float16(), pa.bool_(), pa.binary(), pa.list_(pa.string()), pa.list_(pa.int8()),
    pa.null(), pa.list_(pa.float64()), pa.list_(pa.float16()), pa.list_(pa.bool_()), pa.list_(pa.list_(pa.float32())),
    pa.list_(pa.decimal128(20, 5)), pa.struct({"a": pa.int8()}), pa.timestamp("s"), pa.large_list(pa.uint64()),
    pa.dictionary(pa.int8(), pa.string()),
]  # fmt: skip
LINES = [
    b"", b"\xef\xbb\xbf{}", b"null", b"[" * 50_000, b'{"log_mu":' + b"[" * 3000 + b"]" * 3000 + b"}", b"\xff\xfe\x00",
    HOSTILE.encode(), b'{"response_ids": 1, "response_ids": [1]}',
]  # fmt: skip
SIZE = (4, 6)
TENSORS = [
    torch.zeros(SIZE), torch.full(SIZE, torch.nan), torch.ones(3), torch.ones(4, 7), torch.zeros(0), HOSTILE, None,
    [1, 2], {}, torch.ones(SIZE, dtype=torch.complex64), torch.full(SIZE, 1e38), torch.ones(SIZE, dtype=torch.int8),
    [HOSTILE] * 4, torch.ones(SIZE).bfloat16(), torch.eye(4).to_sparse(), torch.ones(4, 6, 2),
]  # fmt: skip


def rows(rng) -> list[dict]:
    numbers = np.random.default_rng(rng.randrange(2**32))
    made = []
    for i in range(rng.choice([1, 2, 12])):
        log_mu = -numbers.exponential(1.0, 10)
        log_pi = log_mu + numbers.normal(0, rng.choice([0.0, 0.01, 3.0]), 10)
        made.append(
            {"response_ids": numbers.integers(0, 99, 10).tolist(), "log_mu": log_mu.tolist(), "log_pi": log_pi.tolist(),
             "log_pi_again": log_pi.tolist(), "prompt_ids": [1, 2, i // 2], "mask": [True] * 10, "reward": float(i % 2),
             "group": f"p{i // 2}", "step": 1 + i // 4, "finished": True}
        )  # fmt: skip
    return made


def spoil(records: list[dict], rng) -> None:
    """One column, in one row or in all."""
    column, value = rng.choice(COLUMNS), rng.choice(VALUES)
    for record in records if rng.random() < 0.4 else [rng.choice(records)]:
        if rng.random() < 0.2:
            record[HOSTILE] = record.pop(column, value)
        else:
            record[column] = value


def spoilt_lines(path, rng) -> None:
    records = rows(rng)
    for _ in range(rng.randint(1, 2)):
        spoil(records, rng)
    lines = [json.dumps(record).encode() for record in records]
    for _ in range(rng.randint(0, 2)):
        lines.insert(rng.randint(0, len(lines)), rng.choice(LINES))
    path.write_bytes(damaged(b"\n".join(lines), rng))


def spoilt_parquet(path, rng) -> None:
    records, columns = rows(rng), {}
    for name in COLUMNS:
        columns[name] = pa.array([record[name] for record in records])
    for _ in range(rng.randint(1, 3)):
        kind, name = rng.choice(TYPES), rng.choice(COLUMNS)
        try:
            columns[name] = columns[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # no such cast: nothing of that type is spoilt too
            columns[name] = pa.nulls(len(records), kind)
    if rng.random() < 0.3:
        columns[HOSTILE] = columns.pop(rng.choice(COLUMNS))
    parquet.write_table(pa.table(columns), path)
    path.write_bytes(damaged(path.read_bytes(), rng))


def spoilt_tensors(path, rng) -> None:
    log_mu = -torch.rand(SIZE)
    batch = {
        "responses": torch.randint(0, 99, SIZE), "response_mask": torch.ones(SIZE), "rollout_log_probs": log_mu,
        "old_log_probs": log_mu + 0.01 * torch.randn(SIZE), "prompts": torch.ones(4, 2, dtype=torch.long),
        "attention_mask": torch.ones(4, 8), "token_level_scores": torch.zeros(SIZE), "uid": list("aabb"),
    }  # fmt: skip
    for _ in range(rng.randint(1, 2)):
        batch[rng.choice(list(batch))] = rng.choice(TENSORS)
    torch.save(batch, path)
    path.write_bytes(damaged(path.read_bytes(), rng))


def damaged(content: bytes, rng) -> bytes:
    """Cut off, or with a few other bytes, a third of the time."""
    chance, spoilt = rng.random(), bytearray(content)
    if chance < 0.15:
        return content[: rng.randrange(len(content))]
    if chance < 0.33:
        for _ in range(rng.randint(1, 8)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def refusal(seed: int, folder, capsys) -> str:
    """What the doctor says of a spoilt dump that it refuses; of one that it reads, its page is looked at."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    write, name = rng.choice([(spoilt_lines, "d.jsonl"), (spoilt_parquet, "d.parquet"), (spoilt_tensors, "d.pt")])
    write(folder / name, rng)
    if rng.random() < 0.3:
        claims = {rng.choice(["temperature", "sample_dtype", "lora", "top_k", HOSTILE]): rng.choice(VALUES)}
        (folder / f"{name}.claims.json").write_text(json.dumps(claims))
    out = folder / "out"
    try:
        code = main(Arguments((folder / name,), output_dir=out))
    except UsageError as error:
        return str(error)
    shown, page = capsys.readouterr().out, (out / "report.html").read_text()
    assert code in (0, 1) and len(shown.splitlines()) > 3
    assert "<script" not in page and "<img" not in page
    json.loads((out / "diagnosis.json").read_text())
    return ""


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("seed", range(40))
def test_a_spoilt_dump_is_refused_in_a_sentence_or_read(seed, tmp_path, capsys):
    sentence = refusal(seed, tmp_path, capsys)
    assert "\n" not in sentence
    assert not sentence or (len(sentence) > 30 and not (tmp_path / "out").exists())


def test_what_is_larger_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = dumps.table(tmp_path / "large.parquet", dumps.rows() * 1000)
    monkeypatch.setattr(dump_formats, "free_memory", lambda: 10_000)
    assert "give fewer files" in dumps.refusal(path)
    assert "give fewer files" in dumps.refusal(dumps.lines(tmp_path / "large.jsonl", dumps.rows() * 1000))


def test_a_format_can_be_named(tmp_path):
    ours_under_their_names = dumps.prime_rl(0) | dumps.rows()[0]
    path = dumps.lines(tmp_path / "both.jsonl", [ours_under_their_names])
    assert read([path], {}).log_mu.tolist() == dumps.MU[0]
    assert read([path], {}, "plain").response_ids.tolist() == dumps.IDS[0]
    assert "writes tensors" in dumps.refusal(path, form="verl")
