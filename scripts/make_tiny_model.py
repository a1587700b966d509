"""Warm up the embedded model by supervised learning on additions, and save it: `python scripts/make_tiny_model.py`.

The committed checkpoint was made by this script with its defaults. Part of the answers it learns from are wrong in one
digit, the more the harder the problem, so that the model can add but, sampled at temperature 1, is right only part of
the time: most problems lie between 20% and 80%, which is what reinforcement learning needs. It is stored in BF16, whose
numbers are exact in FP16 (down to 2^-17) and FP32 too, so that every precision starts from the same weights.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro
from tqdm import tqdm

from tasks.arithmetic.model import CHECKPOINT, build_model, build_tokenizer
from tasks.arithmetic.problems import LEVELS, draw, is_held_out

WRONG_ANSWERS = {1: 0.2, 2: 0.4, 3: 0.6}  # share of a level's training answers that are wrong in one digit


@dataclass
class Arguments:
    """Warm up the embedded model by supervised learning and save it in Hugging Face format."""

    output_dir: Path = CHECKPOINT
    """folder to write (an existing checkpoint there is replaced)"""
    updates: int = 1000
    """gradient updates; more make a better start"""
    batch_size: int = 256
    """problems per update"""
    learning_rate: float = 2e-3
    """peak of a one-cycle cosine schedule, AdamW"""
    hidden_size: int = 128
    num_layers: int = 4
    seed: int = 0
    """of weights and problems"""


def wrong_in_one_digit(answer: str, rng: random.Random) -> str:
    """The answer with one of its digits replaced by another."""
    place = rng.randrange(len(answer))
    digit = rng.choice([d for d in "0123456789" if d != answer[place]])
    return answer[:place] + digit + answer[place + 1 :]


def batch_of_examples(rng: random.Random, tokenizer, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Training problems with their answers, of which `WRONG_ANSWERS` says how many are wrong.

    Returns:
        input_ids, labels: (batch_size, longest) int64; labels are -100 on the question and on padding.
    """
    rows = []
    while len(rows) < batch_size:
        problem = draw(rng, rng.choice(list(LEVELS)))
        if is_held_out(problem.question):
            continue
        question = tokenizer(problem.question)["input_ids"]
        answer = problem.answer
        if rng.random() < WRONG_ANSWERS[problem.level]:
            answer = wrong_in_one_digit(answer, rng)
        answer = tokenizer(f"\\boxed{{{answer}}}")["input_ids"] + [tokenizer.eos_token_id]
        rows.append((question + answer, [-100] * len(question) + answer))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in rows])
    return input_ids, labels


def warm_up(arguments: Arguments):
    """Train a fresh model as told. Returns (model in FP32, tokenizer, loss of the last update)."""
    tokenizer = build_tokenizer()
    model = build_model(arguments.hidden_size, arguments.num_layers, arguments.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, arguments.updates, pct_start=0.1)
    rng = random.Random(arguments.seed)
    with tqdm(range(arguments.updates), desc="warm-up") as progress:
        for _ in progress:
            input_ids, labels = batch_of_examples(rng, tokenizer, arguments.batch_size)
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{loss.item():.4f}")
    return model, tokenizer, loss.item()


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    model, tokenizer, _ = warm_up(arguments)
    model.to(torch.bfloat16).save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.output_dir}")
