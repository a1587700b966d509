"""What is settled before an engine is imported: a GPU that is out of reach, and how products are summed."""

import inspect
import os

import pytest
import torch

from actors import runtime
from actors.devices import Gpu
from tasks.errors import UsageError

GPU = Gpu("NVIDIA A100-SXM4-80GB", 81_920 * 2**20, "550.54.15")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here, a GPU is within reach")
def test_a_driver_too_old_for_this_torch_is_refused_by_name():
    with pytest.raises(UsageError, match=r"2 x NVIDIA A100-SXM4-80GB with driver 550\.54\.15.* driver; or set"):
        runtime.refuse_a_gpu_out_of_reach((GPU, GPU))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here, a GPU is within reach")
def test_it_is_refused_before_anything_else(monkeypatch):
    monkeypatch.setattr(runtime, "gpus", lambda: (GPU,))
    with pytest.raises(UsageError, match="Install a newer driver"):
        runtime.prepare({torch.float16})


def test_no_gpu_is_nothing_to_refuse():
    runtime.refuse_a_gpu_out_of_reach(())


def test_half_products_are_summed_in_fp32():
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = True
    runtime._sum_in_fp32()
    assert not matmul.allow_fp16_reduced_precision_reduction
    assert not matmul.allow_bf16_reduced_precision_reduction


@pytest.mark.parametrize(("dtypes", "expected"), [({torch.float32}, "ieee"), ({torch.float16}, None)])
def test_fp32_attention_is_fp32(dtypes, expected, monkeypatch):
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    runtime._set_environment(dtypes)
    assert os.environ.get("TRITON_F32_DEFAULT") == expected


def test_a_caller_is_named_as_torch_names_it(monkeypatch):
    from torch._library import utils

    monkeypatch.setattr(utils, "get_source", utils.get_source)  # and back, at the end
    by_torch = utils.get_source(1)
    runtime._name_callers_without_their_source()
    assert utils.get_source(1).split(":")[0] == by_torch.split(":")[0] == __file__
    assert utils.get_source(1).split(":")[1] == str(inspect.currentframe().f_lineno)
