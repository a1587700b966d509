"""``--task arithmetic``: the embedded task (tasks/arithmetic)."""

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

    train = generate(config.task.train_problems, config.training.seed, "train")
    test = generate(config.evaluation.max_eval, 0, "test")  # one test set for every seed, so that runs compare
    return Task(
        "arithmetic",
        [Example(p.question, p.answer) for p in train],
        [Example(p.question, p.answer) for p in test],
        template,
        grade,
    )
