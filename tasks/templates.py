"""How a question becomes a prompt, where a response stops, and where its answer then stands.

The wording is that of the paper's authors (sail-sg/Precision-RL) to the letter, so that results compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

AnswerPlace = Literal["boxed", "answer-tag", "after-think"]


@dataclass(frozen=True)
class Template:
    """A named prompt format."""

    name: str
    apply: Callable[[str], str] | None
    """question -> prompt text; None means the tokenizer's own chat template"""
    stop: tuple[str, ...] = ()
    """strings that end a response, and are kept in it"""
    answer_in: AnswerPlace = "boxed"
    """where the answer is read (`tasks.boxed.extract_answer`)"""

    def render(self, question: str, tokenizer) -> list[int]:
        """Token ids of the prompt, with one beginning-of-sequence token where the tokenizer or the template has one.

        Args:
            question: text.
            tokenizer: of the model; adds its special tokens unless the text brings them along.
        """
        if self.apply is None:
            message = [{"role": "user", "content": f"{question} {BOXED_INSTRUCTION}"}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        text = self.apply(question)
        has_its_own = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        return tokenizer(text, add_special_tokens=not has_its_own)["input_ids"]


def _qwen_math(question: str) -> str:
    return (
        f"<|im_start|>system\n{BOXED_INSTRUCTION}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def _qwen3(question: str) -> str:
    return f"<|im_start|>user\nQuestion: {question}\n{BOXED_INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"


def _llama3(question: str) -> str:
    return (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\n<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{question} {BOXED_INSTRUCTION}\n<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def _r1(question: str) -> str:
    return (
        "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
        "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
        "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> "
        "</answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
        f"\nUser: {question}\nAssistant: <think>"
    )


def _r1_distill_qwen(question: str) -> str:
    return f"<｜begin▁of▁sentence｜><｜User｜>{question} {BOXED_INSTRUCTION}\n<｜Assistant｜><think>\n"


def _worked_sums(question: str) -> str:
    """Two sums before the question, for a model that does not do as it is told but goes on as it was shown."""
    turns = [("4+3=", "\\boxed{7}"), ("8+9=", "\\boxed{17}")]
    shown = "".join(
        f"<|im_start|>user\n{sum_}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n" for sum_, answer in turns
    )
    return f"{shown}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


TEMPLATES = {
    template.name: template
    for template in (
        Template("no", lambda question: question),
        Template("qwen_math", _qwen_math),
        Template("qwen3", _qwen3),
        Template("llama3", _llama3),
        Template("r1", _r1, stop=("</answer>",), answer_in="answer-tag"),
        Template("r1_distill_qwen", _r1_distill_qwen, answer_in="after-think"),
        Template("worked_sums", _worked_sums),
        Template("chat", None),
    )
}
