r"""An answer's text made tidy: one spelling for each thing that LaTeX, Unicode and plain keyboards spell differently.

No meaning is decided here; `tidy(r"$\dfrac12\,$") == r"\frac{1}{2}"`.
"""

import re
import unicodedata

_UNICODE = str.maketrans(
    {
        **{"−": "-", "–": "-", "×": "\\cdot ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "/", "±": "\\pm ", "∓": "\\mp "},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap "},
        **{"∞": "\\infty ", "π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "λ": "\\lambda "},
        **{"∅": "\\emptyset ", "√": "\\sqrt ", "°": "^\\circ ", "º": "^\\circ ", "ℝ": "\\mathbb{R}"},
        **{
            "⟨": "\\langle ",
            "⟩": "\\rangle ",
            "“": '"',
            "”": '"',
            "’": "'",
            "′": "'",
            "″": "''",
            "€": "\\euro ",
            "£": "\\pounds ",
        },
        **{"½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}"},
    }
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WORDS = "text mbox hbox mathrm textrm textbf mathbf textit textsf texttt mathsf mathit operatorname boldsymbol bold bm"
_NAMES = "alpha beta gamma delta theta lambda mu sigma phi omega pi infty"
_NAMES += " sin cos tan cot sec csc arcsin arccos arctan log ln"

# In this order. A thousands separator goes before spaces do; a command ends where its letters end.
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(displaystyle|textstyle|limits|nolimits|cdotp(?![a-z])|phantom\{[^{}]*\})", " "),
        (r"\\(left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?(?=[^a-zA-Z0-9]|$)", ""),
        (r"(?<=\d)(\{,\}|,?(?<!\\)\\!|(?<!\\)\\[,:; ]|,\{\}|\\text\{,\}|~)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,:;> ]|\\q?quad(?![a-zA-Z])|~|\\hspace\{[^{}]*\}|\\space(?![a-zA-Z])", " "),
        (rf"\\({'|'.join(_WORDS.split())})\s*\{{", r"\\text{"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}", lambda m: _repeating(*m.groups())),
        (r"\\overline\{([A-Z]{2})\}", r"\1"),
        (r"(?i)^(?:\\text\{)?\s*(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)|option|choice)\s*:?\s*\}?(?=.)", ""),
        (r"^([A-Z])\)$", r"\1"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(lbrace|lbrack)(?![a-zA-Z])", lambda m: {"lbrace": "\\{", "lbrack": "["}[m[1]]),
        (r"\\(rbrace|rbrack)(?![a-zA-Z])", lambda m: {"rbrace": "\\}", "rbrack": "]"}[m[1]]),
        (r"\\leq?(slant)?(?![a-zA-Z])|<=|=<", r"\\le "),
        (r"\\geq?(slant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq?(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(times|ast)(?![a-zA-Z])|(?<!\*)\*(?!\*)", r"\\cdot "),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(varnothing|empty)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(infin|infinity)(?![a-zA-Z])", r"\\infty "),
        (r"\\(simeq|thickapprox|doteq)(?![a-zA-Z])", r"\\approx "),
        (r"\\(mid|vert|lvert|rvert)(?![a-zA-Z])", "|"),
        (r"\\degrees?(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![a-zA-Z])", r"^\\circ "),
        (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
        (r"\^\s*\{\s*\\prime\s*\}|\^\s*\\prime(?![a-zA-Z])", "'"),
        (r"(?<!\\)%", r"\\%"),
        (r"(?<![\\a-zA-Z])sqrt\s*(?=[({])", r"\\sqrt"),
        (r"(?<![\\a-zA-Z])(infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (rf"(?<![\\a-zA-Z])({'|'.join(_NAMES.split())})(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![a-zA-Z\\_^{.\d])(\d+(?:\.\d+)?|\.\d+)\s*[eE]\s*\{?([+-]?\d+)\}?(?![\da-zA-Z.])", r"\1\\cdot 10^{\2}"),
        (r"\^\s*\(", "^("),
        (r"\^\s*(?:\{\s*\+?(-?\d+)\s*\}|\+?(-?\d+))", lambda m: f"^{{{m[1] or m[2]}}}"),
        (r"_\s*(\d+)", r"_{\1}"),
        (r"(?<![\d.}])\.(?=\d)", "0."),
        (r"(?<=\d)\.(?!\d)", " "),
    )
]  # fmt: skip


def closing(text: str, start: int, opener: str, closer: str) -> int:
    """Where the bracket opened at ``start`` closes, or -1."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] == opener:
            depth += 1
        elif text[position] == closer:
            depth -= 1
            if depth == 0:
                return position
    return -1


def tidy(text: str) -> str:
    """One spelling. Idempotent but for the number of spaces."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", _strip_fences(text))
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_UNICODE))
    text = "".join(c if c.isprintable() else " " for c in text)
    text = re.sub(r"(?<!\\)\$|(?<!\\)\\[()]|(?<!\\)\\[\[\]]", " ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _brace_powers(_brace_arguments(text))
    text = re.sub(r"(?<![\w.}^{_)])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed, text)
    text = re.sub(r"(?<![\w.}^{_)/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w/])", _mixed, text)
    return _trim(re.sub(r"\s+", " ", text))


def squeeze(text: str) -> str:
    """Without the spaces that separate nothing: those between two digits or two letters stay."""
    return re.sub(r"(?<=[0-9])\s+(?=[0-9])|(?<=[a-zA-Z])\s+(?=[a-zA-Z])|\s+", lambda m: " " if _splits(m) else "", text)


def _repeating(whole: str, digits: str, period: str) -> str:
    """A repeating decimal as a fraction: 0.1666..., written with a bar, is (16 - 1) / 90."""
    below = (10 ** len(period) - 1) * 10 ** len(digits)
    return f"\\frac{{{int(whole + digits + period) - int((whole + digits) or 0)}}}{{{below}}}"


def _splits(match: re.Match) -> bool:
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return (before.isdigit() and after.isdigit()) or (before.isalpha() and after.isalpha())


def _strip_fences(text: str) -> str:
    text = text.strip()
    for fence in ("```", "**", "`"):
        if len(text) > 2 * len(fence) and text.startswith(fence) and text.endswith(fence):
            text = text[len(fence) : -len(fence)].strip()
    boxed = re.fullmatch(r"\\f?boxed\s*\{(.*)\}", text, re.DOTALL)
    return boxed[1] if boxed and closing(text, text.index("{"), "{", "}") == len(text) - 1 else text


def _trim(text: str) -> str:
    """Without the punctuation of the sentence around it."""
    text = text.strip()
    while text and (text[-1] in ",;:" or (text[-1] == "." and not re.search(r"\b[a-z]\.[a-z]\.$", text))):
        text = text[:-1].strip()
    return re.sub(r"^(=|\\approx|:)\s*", "", text).strip()


def _brace_arguments(text: str) -> str:
    r"""``\frac12``, ``\frac 3x`` and ``\sqrt2`` with the braces that TeX supplies, and ``\sqrt(x)`` with braces."""
    for name, count in (("\\frac", 2), ("\\binom", 2), ("\\sqrt", 1)):
        position = text.find(name)
        while position >= 0:
            end = position + len(name)
            if not text[end : end + 1].isalpha():
                text = text[:end] + _arguments(text[end:], count)
            position = text.find(name, end)
    return text


def _arguments(rest: str, count: int) -> str:
    braced = ""
    for _ in range(count):
        rest = rest.lstrip()
        if rest.startswith("[") and count == 1 and "]" in rest:
            index, _, rest = rest.partition("]")
            braced, rest = f"{index}]", rest.lstrip()
        opener = rest[:1]
        if opener in ("{", "("):
            end = closing(rest, 0, opener, {"{": "}", "(": ")"}[opener])
            if end < 0 or (opener == "(" and count == 2):
                return braced + rest
            braced, rest = f"{braced}{{{rest[1:end]}}}", rest[end + 1 :]
        elif token := re.match(r"\\[a-zA-Z]+|[0-9a-zA-Z]", rest):
            if count == 1 and token[0].isdigit():
                token = re.match(r"\d+", rest)
            braced, rest = f"{braced}{{{token[0]}}}", rest[token.end() :]
        else:
            return braced + rest
    return braced + rest


def _brace_powers(text: str) -> str:
    """``x^(1/2)`` as ``x^{1/2}``."""
    position = text.find("^(")
    while position >= 0:
        end = closing(text, position + 1, "(", ")")
        if end < 0:
            break
        text = f"{text[: position + 1]}{{{text[position + 2 : end]}}}{text[end + 1 :]}"
        position = text.find("^(", position + 1)
    return text


def _mixed(match: re.Match) -> str:
    r"""``2\frac{1}{3}`` is two and a third; ``2\frac{4}{3}`` is a product."""
    whole, above, below = match.groups()
    return f"({whole}+\\frac{{{above}}}{{{below}}})" if int(above) < int(below) else match[0]
