"""Templates: the exact token ids of each, whether or not the tokenizer adds a beginning-of-sequence token."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tasks.prompts import build_prompts
from tasks.task import Example
from tasks.templates import TEMPLATES

QUESTION = "1+1?"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
R1 = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process is enclosed within <think> </think> and answer is enclosed within <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.\nUser: 1+1?\nAssistant: <think>"
)
# Text, and special tokens in their place, as (name,). Written out from the authors' code, not from ours.
PIECES = {
    "no": ["1+1?"],
    "qwen_math": [
        ("<|im_start|>",), f"system\n{BOXED}", ("<|im_end|>",), "\n", ("<|im_start|>",), "user\n1+1?", ("<|im_end|>",),
        "\n", ("<|im_start|>",), "assistant\n",
    ],
    "qwen3": [
        ("<|im_start|>",), f"user\nQuestion: 1+1?\n{BOXED}", ("<|im_end|>",), "\n", ("<|im_start|>",), "assistant\n",
    ],
    "llama3": [
        ("<|begin_of_text|>",), ("<|start_header_id|>",), "system", ("<|end_header_id|>",),
        "\n\nCutting Knowledge Date: December 2023\n", ("<|eot_id|>",), ("<|start_header_id|>",), "user",
        ("<|end_header_id|>",), f"\n\n1+1? {BOXED}\n", ("<|eot_id|>",), ("<|start_header_id|>",), "assistant",
        ("<|end_header_id|>",), "\n\n",
    ],
    "r1": [R1],
    "r1_distill_qwen": [
        ("<｜begin▁of▁sentence｜>",), ("<｜User｜>",), f"1+1? {BOXED}\n", ("<｜Assistant｜>",), ("<think>",), "\n",
    ],
    "worked_sums": [
        ("<|im_start|>",), "user\n4+3=", ("<|im_end|>",), "\n", ("<|im_start|>",), "assistant\n\\boxed{7}",
        ("<|im_end|>",), "\n", ("<|im_start|>",), "user\n8+9=", ("<|im_end|>",), "\n", ("<|im_start|>",),
        "assistant\n\\boxed{17}", ("<|im_end|>",), "\n", ("<|im_start|>",), "user\n1+1?", ("<|im_end|>",), "\n",
        ("<|im_start|>",), "assistant\n",
    ],
    "chat": [("<|im_start|>",), f"user: 1+1? {BOXED}\nassistant: "],
}  # fmt: skip
SPECIAL = {
    "qwen_math": "<|im_start|> <|im_end|>",
    "qwen3": "<|im_start|> <|im_end|>",
    "llama3": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
    "r1_distill_qwen": "<｜begin▁of▁sentence｜> <｜User｜> <｜Assistant｜> <think>",
    "worked_sums": "<|im_start|> <|im_end|>",
    "chat": "<|im_start|>",
}


def tokenizer_for(name: str, bos: str | None):
    """Bytes as tokens, and the special tokens of a template; ``bos`` is put before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(["<eos>", *([bos] if bos else []), *SPECIAL.get(name, "").split()])
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token=bos)
    wrapped.chat_template = (
        "{{ '<|im_start|>' }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return wrapped


def expected_ids(name: str, tokenizer) -> list[int]:
    letters = {byte: letter for byte, letter in zip(range(256), _byte_letters(), strict=True)}
    ids = []
    for piece in PIECES[name]:
        if isinstance(piece, tuple):
            ids.append(tokenizer.convert_tokens_to_ids(piece[0]))
        else:
            ids += [tokenizer.convert_tokens_to_ids(letters[byte]) for byte in piece.encode()]
    return ids


def _byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for what follows 255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_exact_token_ids_where_the_tokenizer_adds_nothing(name):
    tokenizer = tokenizer_for(name, bos=None)
    assert TEMPLATES[name].render(QUESTION, tokenizer) == expected_ids(name, tokenizer)


BOS = {"llama3": "<|begin_of_text|>", "r1_distill_qwen": "<｜begin▁of▁sentence｜>", "chat": "<|im_start|>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_beginning_of_sequence_token_where_the_tokenizer_adds_one(name):
    tokenizer = tokenizer_for(name, bos=BOS.get(name, "<bos>"))
    ids = TEMPLATES[name].render(QUESTION, tokenizer)
    wanted = expected_ids(name, tokenizer)
    assert ids == (wanted if name in BOS else [tokenizer.bos_token_id, *wanted])
    assert ids[0] == tokenizer.bos_token_id and ids[1] != tokenizer.bos_token_id
    prompts, _ = build_prompts([Example(QUESTION, "2")], TEMPLATES[name], tokenizer, 2000)
    assert prompts[0].token_ids == ids


def test_each_template_knows_where_it_stops_and_where_its_answer_is():
    assert {name: t.stop for name, t in TEMPLATES.items() if t.stop} == {"r1": ("</answer>",)}
    places = {name: t.answer_in for name, t in TEMPLATES.items() if t.answer_in != "boxed"}
    assert places == {"r1": "answer-tag", "r1_distill_qwen": "after-think"}
