"""Finding the answer in a response. Each function walks the text once, whatever the text is."""

import re

# What opens and closes: an escaped brace, or a brace after a line break "\\", must not be taken for one of these.
_TOKEN = re.compile(r"\\\\|\\[{}]|\\boxed\s*\{|[{}]")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` of a text, with balanced braces; None if there is none.

    Of nested boxes it is the innermost. Escaped braces, ``\{`` and ``\}``, are text. One pass: braces wait on a stack
    for their partner, those that are boxes with the place where their content begins.

    Example: ``last_boxed(r"so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"``.
    """
    if "\\boxed" not in text:
        return None
    waiting: list[int | None] = []
    begin = end = -1
    for token in _TOKEN.finditer(text, text.index("\\boxed")):
        found = token.group()
        if found == "{":
            waiting.append(None)
        elif found == "}":
            opened = waiting.pop() if waiting else None
            if opened is not None and opened > begin:
                begin, end = opened, token.start()
        elif found.startswith("\\boxed"):
            waiting.append(token.end())
    return text[begin:end] if begin >= 0 else None


def extract_answer(response: str, answer_in: str = "boxed") -> str | None:
    r"""The answer that a response gives, as text, or None.

    Args:
        response: text.
        answer_in: "boxed" reads the last ``\boxed{}``; "after-think" the last one after ``</think>``, of which there
            must be exactly one; "answer-tag" the last ``<answer>...</answer>``, which must stand after a ``</think>``,
            and within it the last ``\boxed{}`` if there is one.

    Raises:
        ValueError: there is no such place.
    """
    if answer_in == "boxed":
        return last_boxed(response)
    if answer_in == "after-think":
        return last_boxed(response.partition("</think>")[2]) if response.count("</think>") == 1 else None
    if answer_in == "answer-tag":
        thought, _, tail = response.rpartition("<answer>")
        content, closed, _ = tail.partition("</answer>")
        if not (closed and "</think>" in thought):
            return None
        boxed = last_boxed(content)
        return content.strip() if boxed is None else boxed
    raise ValueError(f"an answer is read in boxed, after-think or answer-tag, not in {answer_in!r}")
