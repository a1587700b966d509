"""The model that the learner trains: a causal language model whose output is log-probabilities in FP32."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tasks.errors import NonFiniteError


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


CHUNK_TOKENS = 2048  # at 152k words of vocabulary, 1.2 GB of FP32 logits


class TokenLogProbs(nn.Module):
    """Wraps a Hugging Face model so that its forward pass gives log pi of chosen tokens.

    The head (the product with the vocabulary) runs on response tokens only, in chunks that are recomputed in the
    backward pass, so that memory does not grow with tokens x vocabulary. Logits leave the head in the model's dtype,
    are widened to FP32 at once, and every log-probability is FP32 from there on.

    Args:
        causal_lm: a `transformers` causal language model.
        temperature: that the tokens were sampled at; pi is the distribution at that temperature.
        head_fp32: compute the product with the vocabulary in FP32, so that logits are not rounded to the dtype.
    """

    def __init__(self, causal_lm: nn.Module, temperature: float = 1.0, head_fp32: bool = False):
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        if head_fp32:
            head = causal_lm.get_output_embeddings()
            # The module is still what is called, so that ZeRO-3 gathers its weight first.
            head.forward = lambda hidden: functional.linear(hidden.float(), head.weight.float(), _float(head.bias))

    @property
    def config(self):
        return self.causal_lm.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, logits_to_keep: Tensor
    ) -> Tensor:
        """Log-probabilities of the tokens that are kept.

        Args:
            input_ids: (B, L) int32 or int64, right-padded.
            attention_mask: (B, L), 1 on tokens.
            position_ids: (B, L) int64.
            logits_to_keep: (B, L - 1) bool; [b, t] asks for the log-probability of token t + 1 given those before it.

        Returns:
            (N,) FP32, in row-major order of the N places asked for.
        """
        hidden = self.causal_lm.get_decoder()(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        hidden = hidden[:, :-1][logits_to_keep]
        targets = input_ids[:, 1:][logits_to_keep].long()  # they index logits, which int32 cannot
        if len(hidden) <= CHUNK_TOKENS:
            return self._head(hidden, targets)
        return torch.cat(
            [
                checkpoint(self._head, h, t, use_reentrant=False)
                for h, t in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
            ]
        )

    def _head(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(N, hidden), (N,) -> (N,) FP32."""
        logits = self.causal_lm.get_output_embeddings()(hidden).float() / self.temperature
        return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)

    @torch.no_grad()
    def check(self) -> None:
        """Assert, on a few tokens, that the head alone gives what the whole model gives.

        Raises:
            ValueError: the model does something to its logits after the head (soft-capping, scaling), which this
                wrapper would leave out.
            NonFiniteError: they are not finite.
        """
        ids = torch.arange(8, device=next(self.parameters()).device)[None] + 3
        mask, positions = torch.ones_like(ids), torch.arange(8, device=ids.device)[None]
        ours = self(ids, mask, positions, mask[:, 1:].bool())
        logits = self.causal_lm(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        whole = (logits.float() / self.temperature).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).flatten()
        if not (ours.isfinite().all() and whole.isfinite().all()):
            dtype = str(next(self.causal_lm.parameters()).dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"The model's logits are not finite in {dtype}: its activations leave that dtype's range "
                "(docs/fp16-limits.md); use another --dtype for this model."
            )
        if not torch.allclose(ours, whole, atol=0.05, rtol=0.01):
            raise ValueError(
                f"{type(self.causal_lm).__name__} changes its logits after the output head, which is not supported: "
                "log-probabilities would be wrong; choose another model."
            )
