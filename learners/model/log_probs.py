"""The model that the learner trains: a causal language model whose output is log-probabilities in FP32."""

import torch
from torch import Tensor, nn

from learners.model.output_head import give_log_probs
from tasks.errors import NonFiniteError


class TokenLogProbs(nn.Module):
    """Wraps a Hugging Face model so that its forward pass gives log pi of chosen tokens.

    The head (the product with the vocabulary) runs on response tokens only, chunk by chunk (output_head.py). Logits
    leave it in the model's dtype, are widened to FP32 at once, and every log-probability is FP32 from there on.

    The decoder is given token ids and nothing else: padding stands on the right, where causal attention does not look,
    so that fused attention kernels need no mask. `check` finds out whether that is so of this model.

    Args:
        causal_lm: a `transformers` causal language model.
        temperature: that the tokens were sampled at; pi is the distribution at that temperature.
        head_fp32: compute the product with the vocabulary in FP32, so that logits are not rounded to the dtype.

    Raises:
        ValueError: its output head is not a linear layer.
    """

    def __init__(self, causal_lm: nn.Module, temperature: float = 1.0, head_fp32: bool = False):
        super().__init__()
        self.causal_lm = causal_lm
        self.temperature = temperature
        self.needs_mask = False
        give_log_probs(causal_lm.get_output_embeddings(), temperature, head_fp32)

    @property
    def config(self):
        return self.causal_lm.config

    def forward(self, input_ids: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
        """Log-probabilities of chosen tokens.

        Args:
            input_ids: (B, L) integers, right-padded.
            lengths: (B,) tokens of each row; read only if the model needs a mask.
            chosen: (B, L - 1) bool; [b, t] asks for the log-probability of token t + 1 given those before it.

        Returns:
            (N,) FP32, in row-major order of the N places asked for.
        """
        input_ids = input_ids.long()
        mask = {}
        if self.needs_mask:
            places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
            mask = {"attention_mask": (places < lengths[:, None]).long(), "position_ids": places}
        hidden = self.causal_lm.get_decoder()(input_ids=input_ids, use_cache=False, **mask).last_hidden_state
        # One call, whatever the number of tokens: see `give_log_probs`.
        return self.causal_lm.get_output_embeddings()(hidden[:, :-1][chosen], input_ids[:, 1:][chosen])

    @torch.no_grad()
    def check(self) -> None:
        """Assert, on a few tokens, that the head alone gives what the whole model gives; find out about the mask.

        Raises:
            ValueError: the model does something to its logits after the head (soft-capping, scaling), which this
                wrapper would leave out.
            NonFiniteError: they are not finite.
        """
        ids = torch.arange(8, device=next(self.parameters()).device)[None] + 3
        ours = self(ids, torch.tensor([8], device=ids.device), torch.ones_like(ids[:, 1:], dtype=torch.bool))
        logits = self.causal_lm(input_ids=ids, use_cache=False).logits
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
        self.needs_mask = self._padding_is_seen(ids)

    def _padding_is_seen(self, ids: Tensor) -> bool:
        """Whether hidden states depend on what stands right of them, as they do under prefix attention.

        Another content of the padding, in the same shape, gives a causal model the same bits. In a mixture of experts
        it gives the experts other numbers of rows, which rounds their products differently: there, rounding is let
        pass.
        """
        seen, decoder = 5, self.causal_lm.get_decoder()
        padded = torch.where(torch.arange(ids.shape[1], device=ids.device) < seen, ids, ids[:, :1])
        one, other = (decoder(input_ids=i, use_cache=False).last_hidden_state[:, :seen].float() for i in (ids, padded))
        return bool((one - other).norm() > 8 * torch.finfo(next(self.parameters()).dtype).eps * one.norm())
