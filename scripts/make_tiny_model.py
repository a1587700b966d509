"""Warm up the embedded model by supervised learning on additions, and save it: `python scripts/make_tiny_model.py`.

The committed checkpoint was made by this script with its defaults. The model learns to add, and then two bad habits:
some of the last examples stand in no box, and some are wrong in one digit, the more the harder the problem. So it knows
how, but sampled at temperature 1 it earns its reward only part of the time, which is what reinforcement
learning needs: most problems lie between 20% and 80%. It is stored in BF16, whose numbers are exact in FP16 (down to
2^-17) and FP32 too, so that every precision starts from the same weights.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tyro
from tqdm import tqdm

from tasks.arithmetic.model import CHECKPOINT, build_model, build_tokenizer
from tasks.arithmetic.problems import EMBEDDED_LEVELS, draw, is_held_out

# Shares of a level's training answers.
WITHOUT_BOX = {1: 0.1, 2: 0.4, 3: 0.6}
WRONG_DIGIT = {1: 0.02, 2: 0.05, 3: 0.1}


@dataclass
class Arguments:
    """Warm up the embedded model by supervised learning and save it in Hugging Face format."""

    output_dir: Path = CHECKPOINT
    """folder to write (an existing checkpoint there is replaced)"""
    updates: int = 1000
    """gradient updates; more make a better start"""
    habits_from: float = 0.8
    """share of the updates after which the examples show the bad habits; before, every answer is right and boxed"""
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


def batch_of_examples(
    rng: random.Random, tokenizer, batch_size: int, habits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training problems with their answers: right and boxed, or with the habits that the shares above say.

    Returns:
        input_ids, labels: (batch_size, longest) int64; labels are -100 on the question and on padding.
    """
    rows = []
    while len(rows) < batch_size:
        problem = draw(rng, rng.choice(EMBEDDED_LEVELS))
        if is_held_out(problem.question):
            continue
        question = tokenizer(problem.question)["input_ids"]
        answer = problem.answer
        if habits and rng.random() < WRONG_DIGIT[problem.level]:
            answer = wrong_in_one_digit(answer, rng)
        if not (habits and rng.random() < WITHOUT_BOX[problem.level]):
            answer = f"\\boxed{{{answer}}}"
        answer = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((question + answer, [-100] * len(question) + answer))
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in rows])
    return input_ids, labels


def warm_up(arguments: Arguments, stop_after: int | None = None):
    """Train a fresh model as told.

    Args:
        stop_after: end after so many updates of the schedule, which stays that of the whole.

    Returns:
        The model in FP32, its tokenizer, and the loss of each update.
    """
    tokenizer = build_tokenizer()
    model = build_model(arguments.hidden_size, arguments.num_layers, arguments.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.learning_rate, arguments.updates, pct_start=0.1)
    rng, losses = random.Random(arguments.seed), []
    with tqdm(range(stop_after or arguments.updates), desc="warm-up") as progress:
        for update in progress:
            habits = update >= arguments.habits_from * arguments.updates
            input_ids, labels = batch_of_examples(rng, tokenizer, arguments.batch_size, habits)
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return model, tokenizer, losses


def main(arguments: Arguments) -> None:
    model, tokenizer, losses = warm_up(arguments)
    model.to(torch.bfloat16).save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)
    record = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    record = {key: value for key, value in record.items() if key != "output_dir"}
    record["losses_of_every_tenth_update"] = [round(loss, 5) for loss in losses[::10]]
    (arguments.output_dir / "warm_up.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"saved {sum(p.numel() for p in model.parameters()):,} parameters to {arguments.output_dir}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
