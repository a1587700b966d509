r"""An answer's text made tidy: one spelling for each thing that LaTeX, Unicode and plain keyboards spell differently.

No meaning is decided here; `tidy(r"$\dfrac12\,$") == r"\frac{1}{2}"`.
"""

import itertools
import re
import unicodedata

_CHARACTERS = (  # pairs: what is written, and what LaTeX calls it
    "− - – - × \\cdot · \\cdot ⋅ \\cdot ÷ / ⁄ / ± \\pm ∓ \\mp ≤ \\le ≥ \\ge ≠ \\ne ≈ \\approx ∈ \\in ∪ \\cup ∩ \\cap "
    "∞ \\infty π \\pi θ \\theta α \\alpha β \\beta λ \\lambda ∅ \\emptyset √ \\sqrt ∛ \\sqrt[3] ° ^\\circ º ^\\circ "
    "⟨ ( ⟩ ) ⌊ \\lfloor ⌋ \\rfloor ⌈ \\lceil ⌉ \\rceil “ \" ” \" ’ ' ′ ' ″ '' ℝ \\mathbb{R} ∠ \\angle"
).split()
_COMMANDS = (
    "langle ( rangle ) lbrace \\{ rbrace \\} leq \\le leqslant \\le geq \\ge geqslant \\ge neq \\ne lt < gt > mid | "
    "vert | lvert | rvert | times \\cdot ast \\cdot div / varnothing \\emptyset quad , qquad , degree ^\\circ"
).split()
_UNICODE = str.maketrans(dict(zip(_CHARACTERS[::2], (f"{name} " for name in _CHARACTERS[1::2]), strict=True)))
_SPELLED = dict(zip(_COMMANDS[::2], (f"{name} " for name in _COMMANDS[1::2]), strict=True))
_OPERATORS = {"<=": "\\le ", "=<": "\\le ", ">=": "\\ge ", "!=": "\\ne ", "**": "^", "*": "\\cdot ", "%": "\\%"}
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_FORMS = {"<super>": "^{{{}}}", "<sub>": "_{{{}}}", "<fraction>": " {}"}  # 10²³, x₁, 2½
_FONTS = "text|mbox|hbox|(?:math|text)(?:rm|bf|it|sf|tt|normal)|operatorname|boldsymbol|bold|bm"
_NAMES = "alpha|beta|gamma|delta|theta|lambda|mu|sigma|phi|omega|pi|log|ln|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc"
_ARGUMENT = r"\s*([0-9a-zA-Z]|\\[a-zA-Z]+)"
_BRACED = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"

# In this order; a comment names a reference or an answer that needs the line. "@": a command's name ends here.
_REWRITES = [
    (re.compile(pattern.replace("@", r"(?![a-zA-Z])")), replacement)
    for pattern, replacement in (
        (r"\\(left|right|[bB]igg?[lrm]?)@\s*\.?(?=[^a-zA-Z0-9]|$)|\\!(?!\s*\d{3})", ""),  # 8\!:\!34
        (r"(?<=\d)(\{,\}|,?\\!|\\[,:; ]|,\{\}|\\text\{,\}|~| )\s*(?=\d{3}(?![\d/]))", ""),  # 11,\!090 and 1{,}008{,}016
        (r"(?<!\\)\\[,:;> ]|\\!|~|\\hspace\{[^{}]*\}|\\(displaystyle|textstyle|limits)@", " "),  # 5,\,-11
        (r"\\([a-zA-Z]+)", lambda m: _SPELLED.get(m[1], m[0])),  # 2 \times 10^{27}
        (r"\\[dtc](?=frac@|binom@)", r"\\"),  # \tfrac{41}2
        (r"<=|=<|>=|!=|\*\*|\*|(?<!\\)%", lambda m: _OPERATORS[m[0]]),
        (rf"\\({_FONTS})\s*\{{", r"\\text{"),  # 320000 \mbox{ acres}
        (r"(?i)^(\\text\{)?\s*(no (real )?solutions?|(the )?empty( set)?)(?(1)\})$|^\\\{\s*\\\}$", r"\\emptyset"),
        (  # 3\text{ million dollars}
            rf"(?<=\d)\s*(\\text\{{\s*)?({'|'.join(_ZEROS)})@(\s*\}})?",
            lambda m: rf"\cdot 10^{_ZEROS[m[2]]}" + ("" if m[3] else m[1] or ""),
        ),
        (r"\\\$\s*((?:\d|[.,]\d)+(?:\\cdot 10\^\d+)?)", r"\1\\text{ dollars} "),  # \$ 54.60
        (r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ@", r"^\\circ "),  # 50^{\circ}
        (r"\^\s*\{\s*((?:\\prime\s*)+)\}", lambda m: "'" * m[1].count("p")),  # 0.003^{\prime \prime}
        (r"(?<![\\a-zA-Z])(infinity|infty|inf|oo)@", r"\\infty "),  # (-oo, 3]
        (rf"(?<![\\a-zA-Z])({_NAMES}|sqrt(?=\s*[({{]))@", r"\\\1 "),  # 2*pi, sqrt(2)
        (r"(?<![\w\\^{.])(\d+(?:\.\d+)?|\.\d+)\s*[eE]\s*([+-]?\d+)(?![\w.])", r"\1\\cdot 10^{\2}"),  # 3.3e12
        (r"\^\s*\(((?:[^()]|\([^()]*\))*)\)", r"^{\1}"),  # x^(1/2)
        (r"\^\s*(?:\{\s*\+?(-?\d+)\s*\}|\+?(-?\d+))", lambda m: f"^{{{m[1] or m[2]}}}"),  # 3 \times 10^6
        (r"(?<![\d.}])\.(?=\d)", "0."),  # .039
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[[^\]]*\])?\s*(\d+|[a-zA-Z]|\\[a-zA-Z]+)", r"\\sqrt\1{\2}"),  # 11\sqrt2
        (rf"\\(frac|binom){_ARGUMENT}", r"\\\1{\2}"),  # \dfrac 3 8, \frac\pi 2
        (rf"(\\(?:frac|binom)\s*{_BRACED}){_ARGUMENT}", r"\1{\2}"),  # \frac{50}3
        (r"(?<![\w.}^{_)/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w/])", r"\1\\frac{\2}{\3}"),  # 2 1/3
        (  # 1\frac{1}{2} is one and a half, 2\frac{4}{3} a product
            r"(?<![\w.}^{_)])(\d+)\s*\\frac\s*\{(\d+)\}\{(\d+)\}",
            lambda m: f"({m[1]}+\\frac{{{m[2]}}}{{{m[3]}}})" if int(m[2]) < int(m[3]) else m[0],
        ),
    )
]


def _depths(text: str) -> list[int]:
    """How many brackets are open after each character; "[0, 1)" closes too: the kinds are counted together."""
    return list(itertools.accumulate((c in "([{") - (c in ")]}") for c in text))


def is_enclosed(text: str) -> bool:
    """Whether the bracket that a text begins with closes at its end."""
    depths = _depths(text)
    return depths[-1:] == [0] and 0 not in depths[:-1]


def split_top(text: str, separator: str) -> list[str]:
    """The parts of a text between the separators, a pattern, that stand outside all brackets."""
    depth, parts, start = [0, *_depths(text)], [], 0
    for found in re.finditer(separator, text):
        if depth[found.start()] == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]


def tidy(text: str) -> str:
    """One spelling. Idempotent but for the number of spaces."""
    runs = itertools.groupby(text.translate(_UNICODE), lambda c: unicodedata.decomposition(c).partition(" ")[0])
    spelled = (_FORMS.get(form, "{}").format(unicodedata.normalize("NFKC", "".join(run))) for form, run in runs)
    text = "".join(c if c.isprintable() else " " for c in "".join(spelled).translate(_UNICODE))
    text = _unwrapped(re.sub(r"(?<!\\)\$|(?<!\\)\\[()]|(?<!\\)\\[\[\]]", " ", text.replace("...", "\\dots ")))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _unwrapped(re.sub(r"\s+", " ", text))


def squeeze(text: str) -> str:
    """Without the spaces that separate nothing: those between two digits or two letters stay."""
    return re.sub(r"(?<=\d)\s+(?=\d)|(?<=[a-zA-Z])\s+(?=[a-zA-Z])|(\s+)", lambda m: "" if m[1] else " ", text)


def _unwrapped(text: str) -> str:
    """Without the sentence's punctuation, a box, and braces around it all."""
    before = None
    while text != before:
        before, text = text, re.sub(r"^[=:]|(?<!\b[a-zA-Z]\.[a-zA-Z])\.$|(?<!\\)[,;:\\]$", "", text.strip()).strip()
        opened = re.match(r"(?:\\f?boxed\s*)?(?=\{)", text)
        if opened and is_enclosed(text[opened.end() :]):
            text = text[opened.end() + 1 : -1]
    return text
