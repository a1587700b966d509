"""The findings while a run goes on: on the numbers of its steps, pooled to windows, and each cause named once.

A window is small, and rules are right almost always and not always: a cause counts when two windows running show it.
"""

import numpy as np

from learners.diagnosis.diagnose import examine
from learners.diagnosis.dump import Dump
from learners.diagnosis.findings import Finding

WINDOW = 4096  # tokens, in whole steps
MOST = 2**15  # tokens that are looked at of a window, whole responses, so that it takes 50 ms at most
STEPS = 32  # whose gap is remembered: of a sampler that is behind, the first steps tell by how much


class Watch:
    """Looks at what one process has at hand; nothing is gathered.

    Args:
        claims: what the run believes, by the names of `learners.diagnosis.dump.CLAIMS`.
    """

    def __init__(self, claims: dict):
        self.claims = claims
        self.rows: list[tuple] = []
        self.tokens = 0
        self.suspected: dict[str, Finding] = {}
        self.named: set[str] = set()
        self.levels: list[tuple[int, float]] = []

    def keep(self, step: int, batch, log_pi) -> None:
        """Take responses in, as long as there is room.

        Args:
            step: the training step's number.
            batch: a `learners.rollouts.batch.RolloutBatch`, wherever it lies.
            log_pi: (B, L - 1), of the trainer at the weights that sampled.
        """
        lengths = batch.response_mask.sum(1).numpy(force=True)
        before = self.tokens + np.cumsum(lengths) - lengths
        rows = int(np.searchsorted(before, MOST))
        if rows == 0:
            return
        mask, lengths = batch.response_mask[:rows], lengths[:rows]
        ids, mu, pi = (
            values[:rows][mask].numpy(force=True) for values in (batch.input_ids[:, 1:], batch.mu_logp, log_pi)
        )
        whole = batch.input_ids[:rows].numpy(force=True)
        firsts = batch.lengths[:rows].numpy(force=True) - lengths
        prompts = [row[:first].tolist() for row, first in zip(whole, firsts, strict=True)]
        self.rows.append((lengths, ids, mu, pi, prompts, batch.rewards[:rows].numpy(force=True), np.full(rows, step)))
        self.tokens += int(lengths.sum())

    def look(self) -> list[str]:
        """At the end of a step: causes that two windows running have shown and that were not named yet, a sentence
        each."""
        if self.tokens < WINDOW:
            return []
        try:
            found = self._findings()
        except Exception as error:  # to look must never end a run
            found = {"error": Finding("error", "this step's numbers could not be looked at", 1.0, repr(error), "")}
        new = [name for name in found if name in self.suspected and name not in self.named]
        self.suspected = found
        self.named |= set(new)
        return [found[name].sentence for name in new]

    @np.errstate(all="ignore")
    def _findings(self) -> dict[str, Finding]:
        """Of the window, which is over; by name."""
        lengths, ids, mu, pi, prompts, rewards, steps = zip(*self.rows, strict=True)
        self.rows, self.tokens = [], 0
        dump = Dump(np.concatenate([[0], *lengths]).cumsum(), *map(np.concatenate, (ids, mu, pi)),
                    prompt_ids=[ids for part in prompts for ids in part], reward=np.concatenate(rewards).astype(float),
                    step=np.concatenate(steps), claims=self.claims)  # fmt: skip
        case = examine(dump, self.levels)
        self.levels = case.levels[:STEPS]
        return {finding.name: finding for finding in case.findings}
