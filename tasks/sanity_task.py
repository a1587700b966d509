"""``--task sanity``: a set whose every problem the initial model solves sometimes, and not always.

A sound algorithm must bring the training reward of such a set near 1. ``--data`` names a folder that
scripts/build_sanity_set.py wrote (problems.jsonl and card.json), a file, or a set on the hub such as the paper's
authors', sail/Sanity-Test-R1D-1.5B.
"""

import json
from pathlib import Path

from tasks.errors import UsageError
from tasks.task import Task, register
from tasks.templates import TEMPLATES

LAYOUTS = [("problem", "answer"), ("question", "answer"), ("prompt", "reward_model.ground_truth")]
"""columns of the question and the reference: the first that are there, where those asked for are not"""


def card_of(source: str) -> dict:
    """The card.json of a folder; {} if there is none, or none that can be read."""
    try:
        card = json.loads((Path(source) / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def template_of(data: tuple[str, ...]) -> str:
    """The template that the problems were selected with; r1_distill_qwen, the authors', where no card says."""
    names = {card_of(source).get("template") for source in data} & set(TEMPLATES)
    return names.pop() if len(names) == 1 else "r1_distill_qwen"


@register("sanity", template=template_of, needs_data="a folder of scripts/build_sanity_set.py, a file or a hub name")
def build(config) -> Task:
    """Problems of one or more sanity sets, graded by mathematical equality."""
    from tasks.datasets import read_questions
    from tasks.math_task import graded_by_equality, held_out
    from tasks.mixture import mix

    options, sets = config.task, []
    for name in options.data:
        problems = Path(name) / "problems.jsonl"
        source = str(problems) if problems.is_file() else name
        if Path(name).is_dir() and card_of(name) and not problems.is_file():
            raise UsageError(f"--data {name} has a card.json but no problems.jsonl; build the set again.")
        sets.append(read_questions(source, options.input_key, options.output_key, "train", "--data", others=LAYOUTS))
    test = held_out(config) if options.eval_data is not None else []
    return graded_by_equality(config, "sanity", mix(sets, options.data_weights), test)
