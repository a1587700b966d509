"""Finding the answer in a response."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}`` of a text, with balanced braces; None if there is none.

    Escaped braces count like any other, as they come in pairs. The search walks the text once from each
    ``\boxed{``, the last one first, and stops at the first that closes.

    Example: ``last_boxed(r"so \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"``.
    """
    start = text.rfind("\\boxed{")
    while start != -1:
        depth, begin = 0, start + len("\\boxed")
        for position in range(begin, len(text)):
            if text[position] == "{":
                depth += 1
            elif text[position] == "}":
                depth -= 1
                if depth == 0:
                    return text[begin + 1 : position]
        start = text.rfind("\\boxed{", 0, start)
    return None
