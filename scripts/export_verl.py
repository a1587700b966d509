"""Write what VeRL needs to run an experiment of this repository: `python scripts/export_verl.py --preset NAME OUT`.

OUT gets train.parquet and test.parquet in VeRL's schema, reward.py, which calls this repository's grader, and run.sh,
which starts verl 0.9.1 with the Hydra overrides for the same objective, constants and dtypes. Every option of train.py
is taken. Nothing of VeRL is imported here; the same command writes the same bytes.
"""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro
from tqdm import tqdm

from actors.launch import Launch
from learners.command_line import complete
from learners.options.config import Config
from learners.options.presets import PRESETS
from scripts.parts.program import run_program
from scripts.parts.verl_overrides import PASS_THROUGH, VERL, as_override, overrides
from tasks.errors import require
from tasks.templates import BOXED_INSTRUCTION, TEMPLATES


@dataclass
class Arguments:
    """Write an experiment in VeRL's terms; takes every option of train.py as well."""

    folder: Annotated[Path, tyro.conf.Positional]
    """new folder to write"""
    nodes: int | None = None
    """machines that VeRL runs on (default: by the preset, else 1)"""
    gpus_per_node: int | None = None
    """GPUs of a machine (default: by the preset, else 8)"""
    config: Config = field(default_factory=Config)


def main(words: list[str]) -> int:
    arguments = tyro.cli(
        Annotated[Arguments, tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff], args=words, prog="export_verl.py"
    )
    folder = arguments.folder
    require(not folder.exists() or not any(folder.iterdir()), f"{folder} holds files already; name a new folder.")
    gpus, nodes = machines(arguments)
    processes = Launch(world_size=gpus * nodes, local_world_size=gpus)  # VeRL's, elsewhere
    config = complete(arguments.config, words, processes)
    require(not config.is_embedded, "VeRL has no embedded model; give --model or a --preset of a real one.")
    settings = overrides(config, nodes, gpus)
    train_rows, test_rows = tables(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(train_rows, folder / "train.parquet")
    write_parquet(test_rows or train_rows[:1], folder / "test.parquet")
    (folder / "reward.py").write_text(reward_file(config))
    (folder / "run.sh").write_text(launch_script(config, settings, words, str(folder), bool(test_rows)))
    print(f"{folder}: {len(train_rows)} training and {len(test_rows)} test problems, reward.py and run.sh")
    print(f"where verl {VERL} is installed: FP16_RL=<this repository> bash {folder}/run.sh")
    return 0


def machines(arguments: Arguments) -> tuple[int, int]:
    """GPUs of a node, and nodes."""
    preset = PRESETS.get(arguments.config.origin.preset)
    wanted = preset.processes if preset else 8
    gpus = arguments.gpus_per_node or min(wanted, 8)
    return gpus, arguments.nodes or -(-wanted // gpus)


# ------------------------------------------------------------------------------------------------ data


def tables(config: Config) -> tuple[list[dict], list[dict]]:
    """The training and test problems as rows of VeRL's schema, prompts that are too long left out."""
    import train

    task, prompts, eval_prompts = train.load_task(config)
    try:
        from tasks.prompts import load_tokenizer

        tokenizer = load_tokenizer(config.model_path, config.model.trust_remote_code)
        return tuple(
            [
                row(prompt, index, split, config, task.template, tokenizer)
                for index, prompt in enumerate(tqdm(some, desc=split, unit="prompt", leave=False))
            ]
            for split, some in (("train", prompts), ("test", eval_prompts))
        )
    finally:
        task.close()


def row(prompt, index: int, split: str, config: Config, template, tokenizer) -> dict:
    """One problem. The prompt is a chat for the model's own chat template, or one message that is the whole text."""
    return {
        "data_source": f"fp16-rl/{config.task.task}",
        "prompt": messages(prompt, template, tokenizer),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": prompt.reference},
        "extra_info": {"split": split, "index": index, "question": prompt.question},
    }


def messages(prompt, template, tokenizer) -> list[dict]:
    """Raises:
    AssertionError: VeRL would not sample from the very tokens that train.py samples from.
    """
    if template.text is None:
        made, chat_template = [{"role": "user", "content": f"{prompt.question} {BOXED_INSTRUCTION}"}], None
    else:
        text = template.apply(prompt.question)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != prompt.token_ids:
            text = (tokenizer.bos_token or "") + text  # the tokenizer adds it to a text, and VeRL's call does not
        made, chat_template = [{"role": "user", "content": text}], PASS_THROUGH
    ids = tokenizer.apply_chat_template(
        made, chat_template=chat_template, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(ids) == list(prompt.token_ids), f"prompt {prompt.question[:60]!r} becomes other tokens in VeRL"
    return made


def write_parquet(rows: list[dict], file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


# ------------------------------------------------------------------------------------------------ reward and launch

REWARD = '''\
"""VeRL's reward function for --task {task}: the grader of fp16-rl. Written by scripts/export_verl.py.

The repository is found by the environment variable FP16_RL, or among the folders above this file.
"""

import os
import sys
from functools import cache
from pathlib import Path


def repository() -> Path:
    named = os.environ.get("FP16_RL")
    for folder in [Path(named)] if named else Path(__file__).resolve().parents:
        if (folder / "tasks" / "math_reward.py").is_file():
            return folder
    raise FileNotFoundError("Set FP16_RL to a clone of fp16-rl: its tasks/ grade the responses.")


@cache
def grader():
    sys.path.insert(0, str(repository()))
{grader}


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The reward of one response, 0 to 1; "acc" is what the filter of dynamic sampling looks at."""
    score = grader()([solution_str], [ground_truth])[0]
    return {{"score": score, "acc": score}}
'''

BY_MATHEMATICS = """\
    from tasks.math_reward import MathGrader

    return MathGrader(answer_in={answer_in!r}, workers=1).grade"""

BY_TEXT = """\
    from tasks.boxed import last_boxed

    return lambda responses, answers: [float((last_boxed(responses[0]) or "").strip() == answers[0])]"""

LAUNCH = """\
#!/usr/bin/env bash
# {experiment}, for verl {verl} with FSDP and vLLM. Written by scripts/export_verl.py:
#   python scripts/export_verl.py {words}
# Usage: FP16_RL=<clone of fp16-rl> bash run.sh [more overrides]; MODEL names another place of the same model.
#
# Not the same as in train.py, as VeRL has no option for it:
{differences}
set -euo pipefail
here="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
export FP16_RL="${{FP16_RL:-$here}}"

python -m verl.trainer.main_ppo \\
    actor_rollout_ref.model.path="${{MODEL:-{model}}}" \\
    data.train_files="$here/train.parquet" \\
    data.val_files="$here/test.parquet" \\
    reward.custom_reward_function.path="$here/reward.py" \\
    reward.custom_reward_function.name=compute_score \\
{settings} \\
    "$@"
"""


def reward_file(config: Config) -> str:
    """reward.py, which grades as the task does."""
    by_mathematics = BY_MATHEMATICS.format(answer_in=TEMPLATES[config.task.prompt_template].answer_in)
    grader = BY_TEXT if config.task.task == "arithmetic" else by_mathematics
    return REWARD.format(task=config.task.task, grader=grader)


def launch_script(config: Config, settings: dict[str, object], words: list[str], out: str, with_test: bool) -> str:
    """run.sh; ``words`` is the command that wrote it, into the folder ``out``."""
    lines = [shlex.quote(as_override(key, value)) for key, value in settings.items()]
    if not with_test:
        lines += ["trainer.val_before_train=False", "trainer.test_freq=-1"]
    return LAUNCH.format(
        experiment=config.origin.preset or config.output.name,
        verl=VERL,
        words=shlex.join("OUT" if word == out else word for word in words),
        differences="\n".join(f"# - {line}" for line in differences(config)),
        model=config.model.model,
        settings=" \\\n".join(f"    {line}" for line in lines),
    )


def differences(config: Config) -> list[str]:
    """What VeRL does differently, one line each, as far as it concerns this configuration."""
    lines = ["a truncated response is graded like any other; train.py gives it 0"]
    if config.precision.train_dtype == "fp16":
        lines.append("the loss scale doubles after 400 updates without an overflow (train.py: --loss-scale-window)")
    if config.objective.log_weight_clamp == 0:
        lines.append("the logarithm of an importance weight is kept within +-20 (train.py: as it is)")
    if config.objective.reject:
        lines.append("--reject sees a token's log ratio within +-20 (train.py: as it is)")
    if config.objective.advantage == "group-std":
        lines.append("the group's spread + 1e-6 divides the advantage (train.py: + 1e-8)")
    if config.training.weight_decay:
        lines.append("norms and biases decay, too (train.py: matrices alone)")
    if config.sampling.dynamic_sampling:
        lines.append("dynamic sampling goes on without a limit of rounds (train.py: --max-sampling-rounds)")
    return lines


if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
