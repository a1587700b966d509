"""Oat's DeepSpeed strategy, with the precision that the run chose and an optimiser for the device that is there."""

from dataclasses import dataclass

import deepspeed
import torch
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from oat.algorithms.ppo import PPOArgs
from oat.model import LLM
from oat.utils.deepspeed import DeepspeedStrategy, get_optimizer_grouped_parameters

from learners.options.precision import Precision
from tasks.errors import NonFiniteError


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Torch's own. ZeRO-3 puts an autograd function in its place, which of three-dimensional input rounds the product
    before it adds the bias: in half precision, learner and sampler would compute two things."""
    return torch._C._nn.linear(input, weight, bias)


LinearFunctionForZeroStage3.forward = staticmethod(linear)


@dataclass(frozen=True)
class StepReport:
    """What became of an update."""

    skipped: bool
    """the gradient overflowed and nothing was changed"""
    grad_norm: float
    """of the whole gradient, unscaled, before clipping; NaN if skipped"""
    loss_scale: float
    """that the gradient was computed with"""


class PrecisionStrategy(DeepspeedStrategy):
    """Oat's strategy; three things are different.

    DeepSpeed's dtype sections come from `Precision` (Oat leaves gradient accumulation to the model's dtype and loss
    scaling to DeepSpeed's defaults). The caller owns the accumulation boundary: `backward` any number of times, then
    `optimizer_step` once, so that an update can be cut into micro-batches of any size. The optimiser is torch's fused
    AdamW on every device, the host's memory included: DeepSpeed's own are compiled at first use, with a compiler, ninja
    and a CUDA toolkit that many machines lack.
    """

    def __init__(self, args: PPOArgs, precision: Precision, offload: str = "none"):
        args.adam_offload, args.model_offload = offload != "none", offload == "parameters"
        batch = ("train_batch_size", "train_batch_size_per_device")
        taken = ("seed", "max_norm", *batch, "zero_stage", "bf16", "fp16")
        super().__init__(**{name: getattr(args, name) for name in taken}, args=args)
        self.precision = precision

    def create_optimizer(self, model: LLM, **kwargs) -> torch.optim.Optimizer:
        """Fused AdamW (``lr``, ``betas``, ``eps``, ``weight_decay``) over the model's parameters, norms and biases
        without weight decay."""
        groups = get_optimizer_grouped_parameters(model.model, kwargs["weight_decay"])
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, fused=True, **kwargs)

    def get_ds_train_config(self, is_wrapped: bool) -> dict:
        """DeepSpeed's configuration for the policy."""
        config = super().get_ds_train_config(is_wrapped) | self.precision.deepspeed_sections()
        config["zero_optimization"]["offload_optimizer"]["pin_memory"] = torch.cuda.is_available()
        # DeepSpeed's own batch arithmetic is left out of it: one micro-batch of one, and boundaries set by hand.
        config |= {"managed_gradient_accumulation": False, "gradient_accumulation_steps": 1}
        config |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": self.world_size}
        config |= {"steps_per_print": None, "zero_force_ds_cpu_optimizer": False}
        return config

    def backward(self, loss: torch.Tensor, model: LLM, optimizer, **kwargs) -> None:
        """Scale the loss, if the dtype needs it, and accumulate its gradient.

        Args:
            loss: scalar; the sum over the calls of an update and over the processes is the update's loss. DeepSpeed
                averages gradients over processes, hence the factor.
        """
        model.model.backward(loss * self.world_size, scale_wrt_gas=False)

    def optimizer_step(self, optimizer, model: LLM, scheduler, name="model", **kwargs) -> StepReport:
        """Unscale, clip and apply the accumulated gradient, or skip the update if it overflowed.

        Raises:
            NonFiniteError: it overflowed at the smallest loss scale that is allowed.
        """
        engine: deepspeed.DeepSpeedEngine = model.model
        scale = self.loss_scale(model)
        try:
            engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise NonFiniteError(
                f"the gradient overflows even at the smallest loss scale, --min-loss-scale {scale:g}. Allow a smaller "
                "one, or use --dtype bf16, or a lower --learning-rate if the run was unstable before."
            ) from error
        skipped = not engine.was_step_applied()
        norm = float("nan") if skipped else float(engine.get_global_grad_norm())
        return StepReport(skipped=skipped, grad_norm=norm, loss_scale=scale)

    def loss_scale(self, model: LLM) -> float:
        """The factor that the next loss is multiplied by: FP16's loss scale, 1 in the other arms."""
        scaler = getattr(model.model.optimizer, "loss_scaler", None)
        return float(scaler.loss_scale) if self.fp16 and scaler is not None else 1.0
