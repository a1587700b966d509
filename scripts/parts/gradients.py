"""Gradients of single responses, in the trainer's dtype and in FP32, small enough to be kept and compared.

A response's gradient is sum_t kappa_t grad log pi(y_t), with kappa = 1 where no token weighs more than another. It is
taken three times: in FP32, from a forward pass in the dtype and a backward pass in FP32, and in the dtype; what lies
between them is the rounding of the forward pass and that of the backward pass.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors import runtime
from learners.model.output_head import give_log_probs
from learners.options.config import Config
from scripts.parts.responses import Response
from scripts.parts.scoring import load_trained_model

PLAIN = "1"  # the key of kappa = 1
EXACT, FORWARD = "exact", "forward"
"""FP32 throughout; the forward pass in the dtype"""

BLOCK = 32  # sketches that are added up at a time: they stay in the cache, where whole gradients do not


class Sketch:
    """A random linear map of gradients to ``size`` numbers that keeps lengths and angles: every parameter's sign is
    drawn, and parameters ``size`` places apart are added up (a count sketch, Charikar, Chen, Farach-Colton 2002).

    A squared length comes out right on average, with a relative standard deviation of about sqrt(2 / size). Of no more
    than ``size`` parameters nothing is lost.
    """

    def __init__(self, parameters: Sequence[Tensor], size: int, seed: int):
        self.count = sum(p.numel() for p in parameters)
        self.size = min(size, self.count)
        generator = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(0, 2, (self.count,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        self.signs = self.signs.to(parameters[0].device)
        self.room = torch.empty(BLOCK * self.size, device=self.signs.device)

    def __call__(self, gradients: Sequence[Tensor], divisor: float) -> np.ndarray:
        """(size,) FP32 of the gradient of every parameter, divided by ``divisor``."""
        made, place = torch.zeros(self.size, device=self.signs.device), 0
        for gradient in gradients:
            flat = gradient.flatten()
            head = min(-place % self.size, len(flat))
            for part in (flat[:head], *flat[head:].split(BLOCK * self.size)):
                signed, start = self.room[: len(part)], place % self.size
                torch.mul(part, self.signs[place : place + len(part)], out=signed)
                whole = len(part) // self.size * self.size if start == 0 else 0
                made += signed[:whole].view(-1, self.size).sum(0)
                made[start : start + len(part) - whole] += signed[whole:]
                place += len(part)
        return (made / divisor).cpu().numpy()


class GradientModel:
    """The trainer's model in one dtype, and in FP32 from the same checkpoint.

    Args:
        config: resolved.
        dtype: of the trainer.
        attention: its implementation.
        size, seed: of the sketch.
        loss_scale: that the backward pass in the dtype runs under, as a run's does; its results are divided by it.
        weight: that a run's loss gives a token, 1 / (responses x tokens); it decides, with the scale, what underflows.
    """

    def __init__(
        self,
        config: Config,
        dtype: torch.dtype,
        attention: str,
        *,
        size: int,
        seed: int,
        loss_scale: float,
        weight: float,
    ):
        self.dtype, self.factor = dtype, loss_scale * weight
        self.exact = self._load(config, torch.float32, attention)
        self.rounded = self.exact if dtype == torch.float32 else self._load(config, dtype, attention)
        self.sketch = Sketch(list(self.exact.parameters()), size, seed)

    @staticmethod
    def _load(config: Config, dtype: torch.dtype, attention: str):
        model = load_trained_model(config, dtype, attention).requires_grad_()
        give_log_probs(model.get_output_embeddings(), 1.0, config.precision.lm_head_fp32)
        return model

    def gradients(self, response: Response, tokens: int, kappas: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of a response's first ``tokens`` tokens.

        Args:
            kappas: by key, (tokens,) each; `PLAIN` is added.

        Returns:
            Sketched gradients by key, in the dtype, and under `EXACT` and `FORWARD` those of kappa = 1.
        """
        ids = torch.tensor([response.prompt_ids + response.response_ids[:tokens]], device=runtime.device())
        kappas = {PLAIN: np.ones(tokens)} | kappas
        captured: list[Tensor] = []
        with watched(self.rounded, captured.append):
            made = dict(zip(kappas, self._backward(self.rounded, ids, list(kappas.values()), self.factor), strict=True))
        if self.rounded is self.exact:
            return made | dict.fromkeys((EXACT, FORWARD), made[PLAIN])
        made[EXACT] = next(self._backward(self.exact, ids, [kappas[PLAIN]], 1.0))
        values = iter(captured)
        with watched(self.exact, lambda output: output + (next(values).float() - output).detach()):
            made[FORWARD] = next(self._backward(self.exact, ids, [kappas[PLAIN]], 1.0))
        return made

    def _backward(self, model, ids: Tensor, kappas: list[np.ndarray], factor: float):
        """The sketched gradient of each kappa, from one forward pass of the layers."""
        parameters, tokens = list(model.parameters()), len(kappas[0])
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, -tokens - 1 : -1]
        for kappa in kappas:
            log_pi = model.get_output_embeddings()(hidden, ids[0, -tokens:])
            slopes = torch.from_numpy(kappa * factor).to(log_pi)
            gradients = torch.autograd.grad(log_pi, parameters, slopes, retain_graph=kappa is not kappas[-1])
            yield self.sketch(gradients, factor)


class watched:
    """Calls a function with every output of a model's layers, in the order of the forward pass; what it returns, if it
    does, takes the output's place."""

    def __init__(self, model, function):
        self.model, self.function, self.hooks = model, function, []

    def __enter__(self):
        for module in self.model.get_decoder().modules():
            self.hooks.append(module.register_forward_hook(self._hook))

    def _hook(self, module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.is_floating_point() and first.requires_grad:
            kept = self.function(first)
            if kept is not None:
                return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


class GradientStore:
    """Sketched gradients in files, one for every response and length, so that a measurement can be taken up again."""

    def __init__(self, folder: Path, dtype: str):
        self.folder, self.dtype = folder, dtype

    def path(self, response: Response, tokens: int) -> Path:
        return self.folder / f"{self.dtype}-{response.prompt:05d}-{response.sample:03d}-{tokens:05d}.npz"

    def keys(self, response: Response, tokens: int) -> set[str]:
        file = self.path(response, tokens)
        if not file.exists():
            return set()
        with np.load(file) as stored:
            return set(stored.files)

    def read(self, response: Response, tokens: int) -> dict[str, np.ndarray]:
        with np.load(self.path(response, tokens)) as stored:
            return dict(stored)

    def add(self, response: Response, tokens: int, made: dict[str, np.ndarray]) -> None:
        file = self.path(response, tokens)
        file.parent.mkdir(parents=True, exist_ok=True)
        before = self.read(response, tokens) if file.exists() else {}
        unfinished = file.with_name(f"_{file.name}")
        with unfinished.open("wb") as stream:
            np.savez(stream, **before | made)
        os.replace(unfinished, file)


def key_of(kappa: np.ndarray) -> tuple[str, float]:
    """What a response's kappa is filed under, and what that is to be multiplied by: a constant is `PLAIN`."""
    first = float(kappa[0])
    if np.abs(kappa - first).max() <= 1e-6 * max(1.0, abs(first)):
        return PLAIN, first
    return hashlib.sha256(kappa.astype(np.float32).tobytes()).hexdigest()[:16], 1.0
