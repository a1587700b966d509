"""The learner's model against float64, whole and in chunks."""

import pytest
import torch

from learners import log_probs
from learners.log_probs import TokenLogProbs
from tasks.arithmetic.model import build_model


def draw_batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 98, (3, 9), generator=generator)
    lengths = torch.tensor([9, 6, 4])
    mask = (torch.arange(9) < lengths[:, None]).long()
    kept = (torch.arange(8) >= 2) & (torch.arange(8) < lengths[:, None] - 1)
    return ids, mask, torch.arange(9).expand(3, 9), kept


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_against_float64(temperature):
    model = build_model(hidden_size=64, num_layers=2)
    ids, mask, positions, kept = draw_batch()
    with torch.no_grad():
        ours = TokenLogProbs(model, temperature)(ids, mask, positions, kept)
        expected = []
        wide = build_model(hidden_size=64, num_layers=2).double()
        for row in range(3):  # each response alone and unpadded, one softmax a token
            tokens = ids[row, : int(mask[row].sum())]
            logits = wide(input_ids=tokens[None]).logits[0]
            for t in kept[row].nonzero().flatten().tolist():
                expected.append((logits[t] / temperature).softmax(0)[tokens[t + 1]].log().item())
    assert ours.dtype == torch.float32
    assert ours.tolist() == pytest.approx(expected, abs=2e-5)


def test_chunks_change_neither_values_nor_gradients(monkeypatch):
    ids, mask, positions, kept = draw_batch()
    values, gradients = [], []
    for chunk in (1000, 4):
        monkeypatch.setattr(log_probs, "CHUNK_TOKENS", chunk)
        model = TokenLogProbs(build_model(hidden_size=64, num_layers=2))
        made = model(ids, mask, positions, kept)
        (made * torch.arange(len(made))).sum().backward()
        values.append(made.detach())
        gradients.append([p.grad for p in model.parameters()])
    assert len(values[0]) > 2 * 4, "too few tokens for several chunks"
    assert torch.allclose(*values, atol=1e-6)
    for whole, cut in zip(*gradients, strict=True):
        assert torch.allclose(whole, cut, atol=1e-5)


def test_log_probabilities_are_fp32_whatever_the_model_computes_in():
    """Rounded to BF16 they would be multiples of 2^-8 or coarser; the exponentials over the vocabulary sum to 1."""
    model = TokenLogProbs(build_model(hidden_size=64, num_layers=2).to(torch.bfloat16))
    ids = torch.full((128, 5), 7)
    ids[:, 4] = torch.arange(128)
    kept = torch.tensor([[False, False, False, True]]).expand(128, 4)
    made = model(ids, torch.ones_like(ids), torch.arange(5).expand(128, 5), kept)
    assert made.dtype == torch.float32
    assert made.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert not torch.equal(made, made.to(torch.bfloat16).float())


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    class SoftCapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_model(hidden_size=64, num_layers=2)
            self.inner.get_output_embeddings().weight.data *= 20

        def get_decoder(self):
            return self.inner.get_decoder()

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, **arguments):
            output = self.inner(**arguments)
            output.logits = output.logits.tanh()
            return output

    model = SoftCapped()
    with pytest.raises(ValueError, match="SoftCapped changes its logits"):
        TokenLogProbs(model).check()
    TokenLogProbs(model.inner).check()
