"""How a question becomes a prompt, and where the answer then stands.

The wording follows the authors' code (sail-sg/Precision-RL) and the models' own documentation, so that results compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Template:
    """A named prompt format."""

    name: str
    apply: Callable[[str], str] | None
    """question -> prompt text; None means the tokenizer's own chat template"""
    stop: tuple[str, ...] = ()
    """strings that end a response, and are kept in it"""
    answer_in: str = "boxed"
    """where the answer is read: "boxed" (the last \\boxed{}) or "answer-tag" (<answer>...</answer>)"""

    def render(self, question: str, tokenizer) -> list[int]:
        """Token ids of the prompt.

        Args:
            question: text.
            tokenizer: of the model; asked for its special tokens where the template does not write them itself.
        """
        if self.apply is None:
            message = [{"role": "user", "content": f"{question} {BOXED_INSTRUCTION}"}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer(self.apply(question))["input_ids"]


def _qwen_math(question: str) -> str:
    return (
        f"<|im_start|>system\n{BOXED_INSTRUCTION}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def _r1(question: str) -> str:
    return (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> "
        "</answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
        f"\nUser: {question}\nAssistant: <think>"
    )


TEMPLATES = {
    template.name: template
    for template in (
        Template("no", lambda question: question),
        Template("qwen_math", _qwen_math),
        Template("r1", _r1, stop=("</answer>",), answer_in="answer-tag"),
        Template("chat", None),
    )
}
