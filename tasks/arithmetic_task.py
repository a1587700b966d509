"""``--task arithmetic``: the embedded task (tasks/arithmetic)."""

from tasks.errors import UsageError
from tasks.task import Example, Task, register
from tasks.templates import TEMPLATES


@register("arithmetic", template="no")
def build(config) -> Task:
    """Additions, graded to the letter."""
    from tasks.arithmetic.problems import generate
    from tasks.boxed import extract_answer

    template = TEMPLATES[config.task.prompt_template]

    def grade(responses: list[str], references: list[str]) -> list[float]:
        answers = [(extract_answer(response, template.answer_in) or "").strip() for response in responses]
        return [float(answer == reference) for answer, reference in zip(answers, references, strict=True)]

    options = config.task
    try:
        train = generate(options.train_problems, config.training.seed, "train", options.arithmetic_levels)
        # One test set for every seed, so that runs compare.
        test = generate(config.evaluation.max_eval, 0, "test", options.arithmetic_levels)
    except ValueError as error:
        raise UsageError(f"--train-problems and --max-eval ask for more than there is: {error}.") from error
    train, test = ([Example(problem.question, problem.answer) for problem in split] for split in (train, test))
    return Task("arithmetic", train, test, template, grade)
