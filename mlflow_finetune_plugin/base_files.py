"""What the files of a base model say before anything is loaded: standard library only.

Used twice: by the command that starts a run (local folders, so that a wrong folder costs no run) and by the worker
(any base, once its files are on disk).
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.weights_digest import weight_files

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local_folder(name: str) -> Path | None:
    """The folder behind a base model's name: the packaged base, a local folder, or None for a hub name."""
    if name == EMBEDDED:
        return EMBEDDED_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [], n=1
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        what = "is a file, not a model folder" if path.exists() else "does not exist"
        raise BaseModelError(f"base_model.name = {name!r}: {what}{hint}")
    return None


def check_base_files(folder: Path, *, trust_remote_code: bool, max_length: int | None = None) -> dict[str, Any]:
    """Refuses what could not be trained, and returns ``config.json``.

    Raises BaseModelError for a folder without config, tokenizer or safetensors, for a model that is not a causal
    language model, for one that brings its own code, and for a max_length beyond its positions.
    """
    config = _read_config(folder)
    architectures = [str(name) for name in config.get("architectures") or []]
    if config.get("is_encoder_decoder") or (architectures and not any(_is_causal(name) for name in architectures)):
        kind = ", ".join(architectures) or "an encoder-decoder"
        raise BaseModelError(
            f"{folder}: not a causal language model ({kind}); fix: choose a base whose architecture ends in ForCausalLM"
        )
    if config.get("auto_map") and not trust_remote_code:
        raise BaseModelError(
            f"{folder}: the model wants to run its own Python code ({', '.join(sorted(config['auto_map']))}); "
            "fix: read that code, then set base_model.trust_remote_code: true"
        )
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise BaseModelError(
            f"{folder}: no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}, ...); fix: save the base's tokenizer into the folder"
        )
    _check_weights(folder)
    positions = context_length(config)
    if max_length is not None and positions is not None and max_length > positions:
        raise BaseModelError(
            f"training.max_length = {max_length}: beyond the base's {positions} positions; fix: at most {positions}"
        )
    return config


def context_length(config: dict[str, Any]) -> int | None:
    """Positions a model was built for, by the field names that architectures use; None when it states none."""
    text = config.get("text_config") or config
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        if isinstance(text.get(key), int):
            return int(text[key])
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        adapter = (
            " (it holds a PEFT adapter: fix: name the adapter's base instead)"
            if (folder / "adapter_config.json").exists()
            else ""
        )
        raise BaseModelError(f"{folder}: no config.json, so this is no model folder{adapter}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{path}: expected a JSON object")
    return config


def _is_causal(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _check_weights(folder: Path) -> None:
    files = weight_files(folder)
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise BaseModelError(
            f"{folder}: the weight index names files that are not there: {', '.join(missing[:3])}; fix: download the model again"
        )
    if files:
        for path in files:
            _check_header(path)
        return
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise BaseModelError(
            f"{folder}: weights only as pickles ({', '.join(sorted(pickles)[:3])}), which can run code when loaded; "
            "fix: convert them to safetensors"
        )
    raise BaseModelError(f"{folder}: no weights (*.safetensors); fix: complete the download")


def _check_header(path: Path) -> None:
    """A safetensors file must be as long as its header says: half a download is told before it is loaded."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length)) if 0 < length < size else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise BaseModelError(f"{path}: not a safetensors file; fix: download it again")
    end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    if size != 8 + length + end:
        raise BaseModelError(f"{path}: {size} bytes, its header promises {8 + length + end}; fix: download it again")
