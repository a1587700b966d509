"""How causes are written: one function each, which looks at a `Case` and says a `Finding` or nothing."""

from collections.abc import Callable

from learners.diagnosis.case import Case
from learners.diagnosis.findings import Finding

Rule = Callable[[Case], Finding | None]
RULES: list[Rule] = []
"""in the order in which `diagnose` asks them: from the most particular to the most general"""
EXPLAIN_THE_GAP: list[Rule] = []
"""the causes of which one is enough: beside it the more general ones say nothing new"""


def rule(explains_the_gap: bool = False) -> Callable[[Rule], Rule]:
    def add(made: Rule) -> Rule:
        RULES.append(made)
        if explains_the_gap:
            EXPLAIN_THE_GAP.append(made)
        return made

    return add
