"""Keep the log-probabilities of a TRL GRPO run: `python scripts/dump_trl.py DUMPS train_grpo.py [its arguments]`.

Runs the given training script unchanged, but for `GRPOTrainer._generate_and_score_completions` (TRL 1.16), whose result
is saved each time: DUMPS/step-<step>-<process>-<call>.pt, and what the run believes in DUMPS/claims.json. Needs torch
and TRL alone, so that the file can be copied into their environment; `accelerate launch` takes it as it takes a script.
The sampler's log-probabilities are there with use_vllm=True; the trainer's beside them as long as
vllm_importance_sampling_correction is on, as it is by default.
"""

import json
import runpy
import sys
from pathlib import Path

KEPT = (
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "sampling_per_token_logps",
    "old_per_token_logps", "advantages",
)  # fmt: skip


def keep(folder: Path) -> None:
    """Have GRPOTrainer save what it makes of each generation."""
    import torch
    from trl import GRPOTrainer

    make, calls = GRPOTrainer._generate_and_score_completions, iter(range(10**9))

    def made(self, inputs):
        batch = make(self, inputs)
        folder.mkdir(parents=True, exist_ok=True)
        if "sampling_per_token_logps" not in batch or "old_per_token_logps" not in batch:
            raise SystemExit("dump_trl.py: TRL keeps both log-probabilities with use_vllm=True and "
                             "vllm_importance_sampling_correction=True only; set both.")  # fmt: skip
        name = f"step-{self.state.global_step:06d}-{self.accelerator.process_index}-{next(calls)}.pt"
        torch.save({key: batch[key].cpu() for key in KEPT if key in batch}, folder / name)
        claims = {"train_dtype": str(next(self.model.parameters()).dtype)}
        claims |= {key: getattr(self.args, key, None) for key in ("temperature", "top_p", "top_k", "min_p")}
        claims["lora"] = hasattr(self.model, "peft_config")
        (folder / "claims.json").write_text(json.dumps({k: v for k, v in claims.items() if v is not None}))
        return batch

    GRPOTrainer._generate_and_score_completions = made


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: dump_trl.py DUMPS train_grpo.py [its arguments]")
    dumps, script = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path(script).resolve().parent)
    keep(dumps.resolve())
    runpy.run_path(script, run_name="__main__")
