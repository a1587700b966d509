"""A model's own config.json, read without importing transformers."""

import json
from pathlib import Path

from learners.options.config import Config
from tasks.errors import UsageError, first_line, require


def read_model_config(config: Config) -> dict:
    """The model's config.json: from its folder, the local hub cache, or the hub (one small file). A folder must hold
    weights too, unless a run is only planned.

    Raises:
        UsageError: there is no such model, or what is there is no language model.
    """
    folder = Path(config.model_path)
    if folder.is_dir():
        file = folder / "config.json"
        require(file.is_file(), f"--model {folder} is not a Hugging Face model: it has no config.json.")
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        require(
            bool(weights) or config.memory.plan,
            f"--model {folder} has no weights: no .safetensors or .bin file lies in it.",
        )
    else:
        file = _fetch_model_config(config.model.model)
    try:
        content = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {config.model.model}: its config.json cannot be read ({error}).") from error
    architectures = content.get("architectures") or []
    require(
        any(name.endswith("ForCausalLM") or name.endswith("ForConditionalGeneration") for name in architectures),
        f"--model {config.model.model} is no causal language model: its config.json names {architectures}.",
    )
    return content.get("text_config", content)


def check_model(config: Config) -> None:
    content = read_model_config(config)
    require(
        not config.model.router_fp32 or any("experts" in key and value for key, value in content.items()),
        f"--router-fp32 is for mixtures of experts, and --model {config.model.model} is none; leave it out.",
    )
    context = content.get("max_position_embeddings")
    require(
        context is None or config.max_model_len <= context,
        f"--prompt-max-length {config.task.prompt_max_length} and --generate-max-length "
        f"{config.sampling.generate_max_length} together exceed the model's context of {context} tokens; shorten one.",
    )


def _fetch_model_config(model: str) -> str:
    looks_like_a_path = model.startswith((".", "/", "~")) or model.count("/") > 1
    missing = f"--model {model} does not exist: it is neither a folder"
    require(not looks_like_a_path, f"{missing} nor a hub id; check the path.")
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    try:
        cached = try_to_load_from_cache(model, "config.json")
        if isinstance(cached, str):
            return cached
        require(not HF_HUB_OFFLINE, f"{missing} nor in the local hub cache, and HF_HUB_OFFLINE is set.")
        HfApi().model_info(model, timeout=4)  # fails at once where hf_hub_download retries for half a minute
        return hf_hub_download(model, "config.json")
    except UsageError:
        raise
    except HfHubHTTPError as error:  # it answered
        raise UsageError(f"{missing} nor a model that the hub gives ({first_line(error)}).") from error
    except Exception as error:
        raise UsageError(
            f"--model {model} is no folder here, and the hub cannot be reached ({first_line(error)}); name a folder "
            "that holds the model (for --plan True its config.json is enough)."
        ) from error
