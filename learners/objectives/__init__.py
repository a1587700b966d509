"""The policy losses, each a pure function of tensors, chosen by name.

Shapes: B responses, T token positions. pi is the trainer now, mu the sampler (its own log-probabilities, reported when
it sampled), pi_old the trainer re-evaluated at the rollout weights. Every importance weight is detached. A loss is
given per token, to be minimised; learners/objectives/aggregation.py reduces it.

An objective is registered with the thresholds it uses (each a command-line option of that name), whether it needs
pi_old, which costs one more forward pass, and whether a response without an advantage can have a gradient: where none
can, such responses are not trained on. Two families: policy gradients, ``-weight A log pi``, whose weight corrects
for mu; and PPO's clipped surrogate in pi / pi_old, times a weight pi_old / mu. A weight is truncated (TIS: min(w, C)),
or the token or response is masked (MIS: w if w <= C, else 0). Only tensor methods are used, so that naming the
objectives (for ``--help``) does not import torch.

Formulas: "Defeating the Training-Inference Mismatch via FP16" (arXiv 2510.26788) and the references beside each.
"""

from learners.objectives import policy_gradients, surrogates, trust_regions  # noqa: F401 - so that they register
from learners.objectives.batch import OBJECTIVES, Objective, PolicyBatch  # noqa: F401
from learners.objectives.recipes import RECIPES, THRESHOLDS, defaults  # noqa: F401
from learners.objectives.rejections import REJECTIONS  # noqa: F401
from learners.objectives.trust_regions import reference_kl  # noqa: F401
