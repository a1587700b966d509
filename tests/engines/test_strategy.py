"""DeepSpeed as this project configures it, against plain torch in FP32, update by update."""

import pytest
import torch

from learners.command_line import parse

pytestmark = pytest.mark.engines

MICRO_BATCHES = 3


def prepare(arguments: list[str], offload: str = "none"):
    """(strategy, engine in Oat's wrapper, optimiser, scheduler, the same model in FP32) on the embedded model."""
    import train

    config = parse([*arguments, "--learning-rate=1e-3", "--lr-scheduler=constant"])
    train.prepare(config)
    from oat.model import LLM
    from transformers import AutoModelForCausalLM

    from learners.model.log_probs import TokenLogProbs
    from learners.options.oat_args import to_oat_args
    from learners.options.precision import Precision
    from learners.update.strategy import PrecisionStrategy

    precision = Precision.of(config.precision)
    strategy = PrecisionStrategy(to_oat_args(config), precision, offload)
    strategy.setup_distributed()

    def load(dtype):
        model = AutoModelForCausalLM.from_pretrained(config.model_path, dtype=dtype, attn_implementation="eager")
        return TokenLogProbs(model)

    model = LLM(load(precision.train))
    optimizer = strategy.create_optimizer(model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    model, optimizer, scheduler = strategy.prepare((model, optimizer, scheduler))
    return strategy, model, optimizer, scheduler, load(torch.float32)


def micro_batches(update: int):
    generator = torch.Generator().manual_seed(update)
    for _ in range(MICRO_BATCHES):
        ids = torch.randint(3, 98, (4, 12), generator=generator)
        kept = (torch.arange(11) >= 5).expand(4, 11)
        yield ids, torch.full((4,), 12), kept, torch.randn(24, generator=generator)


ARMS = {
    "fp32": (["--dtype=fp32"], "none"),
    "fp32, stage 1": (["--dtype=fp32", "--zero-stage=1"], "none"),
    "fp32, stage 3": (["--dtype=fp32", "--zero-stage=3"], "none"),
    "fp32, stage 2, offload": (["--dtype=fp32", "--zero-stage=2"], "optimizer"),  # to the host: here, the same memory
    "fp32, stage 3, offload": (["--dtype=fp32", "--zero-stage=3"], "optimizer"),
    "fp16": (["--dtype=fp16"], "none"),
}


@pytest.mark.parametrize("arm", ARMS)
def test_updates_are_those_of_plain_adamw_and_nothing_is_compiled(arm, tmp_path, monkeypatch):
    from deepspeed.utils import safe_get_full_fp32_param

    arguments, offload = ARMS[arm]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    strategy, model, optimizer, scheduler, reference = prepare(arguments, offload)
    assert type(optimizer.optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.optimizer.param_groups)
    plain = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    fp32 = arguments[0] == "--dtype=fp32"
    start = {name: p.detach().clone() for name, p in reference.named_parameters()}
    for update in range(4):
        for ids, lengths, kept, weights in micro_batches(update):
            loss = (model.model(ids, lengths, kept) * weights).sum() / 100
            strategy.backward(loss, model, optimizer)
            ((reference(ids, lengths, kept) * weights).sum() / 100).backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0).item()
        plain.step()
        plain.zero_grad()
        report = strategy.optimizer_step(optimizer, model, scheduler)
        assert not report.skipped
        assert report.loss_scale == (1 if fp32 else 65536)
        if fp32 or update == 0:  # in FP16 the two go apart after that, a little
            assert report.grad_norm == pytest.approx(norm, rel=1e-4 if fp32 else 1e-2), "unscaled, before clipping"
    ours = {name: safe_get_full_fp32_param(p) for name, p in model.model.module.named_parameters()}
    moved = torch.cat([(p.detach() - start[name]).flatten() for name, p in reference.named_parameters()])
    apart = torch.cat([(p.detach() - ours[name]).flatten() for name, p in reference.named_parameters()])
    assert moved.norm() > 1.0
    assert apart.norm() < (1e-3 if fp32 else 0.2) * moved.norm(), (apart.norm(), moved.norm())
    assert not (tmp_path / "compiled").exists(), "DeepSpeed compiled something"


def test_an_overflow_at_the_minimum_scale_ends_with_a_sentence():
    from tasks.errors import NonFiniteError

    strategy, model, optimizer, scheduler, _ = prepare(
        ["--dtype=fp16", "--initial-scale-power=4", "--min-loss-scale=8", "--hysteresis=1"]
    )

    def overflow():
        ids, lengths, kept, weights = next(micro_batches(0))
        loss = (model.model(ids, lengths, kept) * weights).sum() * 1e30
        strategy.backward(loss, model, optimizer)
        return strategy.optimizer_step(optimizer, model, scheduler)

    assert overflow().skipped
    assert strategy.loss_scale(model) == 8
    with pytest.raises(NonFiniteError, match="--min-loss-scale 8"):
        overflow()
