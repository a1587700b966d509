"""What is refused of the folders that a run writes to, and of a run that is to go on."""

import json
import tempfile
from pathlib import Path

from learners.options.config import Config
from learners.record.run_files import CHECKPOINTS, CONFIG, MANIFEST, SUMMARY
from tasks.errors import UsageError, flag, require


def check_output(config: Config) -> None:
    output = config.output
    for option, name in (("--export", output.export), ("--output-dir", output.output_dir)):
        if name is not None:
            _check_folder(option, Path(name))
    require(
        output.export is None or not any(Path(output.export).glob("*")),
        f"--export {output.export} is not empty; name a new folder.",
    )
    if output.output_dir is not None and (Path(output.output_dir) / CONFIG).exists():
        _check_going_on(config, Path(output.output_dir))
    if output.resume not in ("auto", "never"):
        checkpoint = Path(output.resume)
        require(
            (checkpoint / MANIFEST).is_file(),
            f"--resume {checkpoint} is no checkpoint; name a folder such as <run>/checkpoints/step-000020.",
        )


def _check_folder(option: str, folder: Path) -> None:
    require(not folder.exists() or folder.is_dir(), f"{option} {folder} is a file; name a folder.")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:  # access rights do not tell (root, read-only mounts); a folder that is made and removed at once does
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise UsageError(f"{option} {folder} cannot be written ({error.strerror}); name another place.") from error


# Options that may be others when a run goes on; any other change would make it another run.
MAY_CHANGE = {
    "output", "preset", "trust_remote_code", "attn_implementation", "gradient_checkpointing", "vllm_gpu_ratio",
    "vllm_sleep_level", "tensor_parallel", "enforce_eager", "enable_prefix_caching", "micro_batch_size",
    "micro_batch_tokens", "train_on_all", "zero_stage", "offload", "cpu_half", "lora_sync", "eval_steps",
}  # fmt: skip


def _check_going_on(config: Config, folder: Path) -> None:
    """The folder holds a run: it goes on if it is unfinished and is this one."""
    output, where = config.output, f"--output-dir {folder}"
    try:
        status = json.loads((folder / SUMMARY).read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = "unfinished"  # killed before it could say anything
    require(status != "finished", f"{where} already holds a finished run; name a new folder.")
    require(
        output.resume != "never", f"{where} already holds an unfinished run; name a new folder, or leave --resume out."
    )
    if output.resume != "auto":
        newest = max((folder / CHECKPOINTS).glob("step-*[0-9]"), key=lambda path: path.name, default=None)
        require(
            newest is not None and newest.resolve() == Path(output.resume).resolve(),
            f"--resume {output.resume} is not the newest checkpoint of the run in {where}; name a new --output-dir.",
        )
    try:
        written = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} holds a {CONFIG} that cannot be read ({error}); name a new folder.") from error
    require("precision" in written, f"{where} holds a {CONFIG} that is no run's; name a new folder.")
    for group, options in config.to_dict().items():
        for name, before in written.get(group, {}).items():
            value = options.get(name)
            require(
                bool({group, name} & MAY_CHANGE) or json.loads(json.dumps(value)) == before,
                f"{where} holds an unfinished run with {flag(name)} {before}, not {value}; give the same options to go "
                "on, or name a new folder.",
            )
