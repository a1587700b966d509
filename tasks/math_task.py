"""``--task math``: any dataset with a question and an answer column, graded by mathematical equality."""

from tasks.task import Example, Task, register
from tasks.templates import TEMPLATES


@register("math", template="chat", needs_data="a hub name, a folder or a .jsonl, .json, .parquet or .csv file")
def build(config) -> Task:
    """Datasets, mixed as told."""
    from tasks.datasets import read_questions
    from tasks.mixture import mix

    options = config.task
    sets = [read_questions(name, options.input_key, options.output_key, "train", "--data") for name in options.data]
    return graded_by_equality(config, "math", mix(sets, options.data_weights), held_out(config))


def held_out(config) -> list[Example]:
    """Evaluation problems: of --eval-data, or of the test splits that --data has; none if a run never evaluates."""
    from tasks.datasets import read_questions

    options, found = config.task, []
    given = options.eval_data
    sources, flag = ([given], "--eval-data") if given is not None else (options.data, "--data")
    for source in sources if config.evaluation.eval_steps > 0 else ():
        found += read_questions(source, options.input_key, options.output_key, "test", flag, optional=given is None)
    return found[: config.evaluation.max_eval]


def graded_by_equality(config, name: str, train: list[Example], test: list[Example]) -> Task:
    """A task with the grader of tasks/math_reward.py, whose processes start here and warm up while engines load."""
    from tasks.math_reward import MathGrader

    template = TEMPLATES[config.task.prompt_template]
    grader = MathGrader(answer_in=template.answer_in)
    return Task(name, train, test, template, grader.grade, grader.close, lambda: grader.timeouts)
