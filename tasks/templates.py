"""How a question becomes a prompt, where a response stops, and where its answer then stands.

The wording is that of the paper's authors (sail-sg/Precision-RL) to the letter, so that results compare.
"""

from dataclasses import dataclass
from typing import Literal

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

AnswerPlace = Literal["boxed", "answer-tag", "after-think"]


@dataclass(frozen=True)
class Template:
    """A named prompt format."""

    name: str
    text: str | None
    """of the prompt, {question} in its place; None means the tokenizer's own chat template"""
    stop: tuple[str, ...] = ()
    """strings that end a response, and are kept in it"""
    answer_in: AnswerPlace = "boxed"
    """where the answer is read (`tasks.boxed.extract_answer`)"""

    def apply(self, question: str) -> str:
        return self.text.replace("{question}", question)

    def render(self, question: str, tokenizer) -> list[int]:
        """Token ids of the prompt, with one beginning-of-sequence token where the model's tokenizer or the template has
        one."""
        if self.text is None:
            message = [{"role": "user", "content": f"{question} {BOXED_INSTRUCTION}"}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            return tokenizer(text, add_special_tokens=False)["input_ids"]
        text = self.apply(question)
        has_its_own = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        return tokenizer(text, add_special_tokens=not has_its_own)["input_ids"]


USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\n<|eot_id|>"
    f"<|start_header_id|>user<|end_header_id|>\n\n{{question}} {BOXED_INSTRUCTION}\n<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
    "answer. The reasoning process is enclosed within <think> </think> and answer is enclosed within <answer> "
    "</answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
    "\nUser: {question}\nAssistant: <think>"
)
R1_DISTILL_QWEN = f"<｜begin▁of▁sentence｜><｜User｜>{{question}} {BOXED_INSTRUCTION}\n<｜Assistant｜><think>\n"
# Two sums before the question, for a model that does not do as it is told but goes on as it was shown.
SHOWN = (f"{USER}{sum_}{ASSISTANT}\\boxed{{{answer}}}<|im_end|>\n" for sum_, answer in (("4+3=", 7), ("8+9=", 17)))
WORKED_SUMS = f"{''.join(SHOWN)}{USER}{{question}}{ASSISTANT}"

TEMPLATES = {
    template.name: template
    for template in (
        Template("no", "{question}"),
        Template("qwen_math", f"<|im_start|>system\n{BOXED_INSTRUCTION}<|im_end|>\n{USER}{{question}}{ASSISTANT}"),
        Template("qwen3", f"{USER}Question: {{question}}\n{BOXED_INSTRUCTION}{ASSISTANT}"),
        Template("llama3", LLAMA3),
        Template("r1", R1, stop=("</answer>",), answer_in="answer-tag"),
        Template("r1_distill_qwen", R1_DISTILL_QWEN, answer_in="after-think"),
        Template("worked_sums", WORKED_SUMS),
        Template("chat", None),
    )
}
