"""Check the files of a base model before anything is loaded. Standard library only.

The command that starts a run checks local folders, so that a wrong folder starts no run. The worker checks any base once
its files are on disk.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.base_models.weights_digest import weight_files
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.section import EMBEDDED, EMBEDDED_VISION

EMBEDDED_FOLDER = Path(__file__).parent.parent / "embedded_base"
EMBEDDED_VISION_FOLDER = EMBEDDED_FOLDER.with_name("embedded_vision_base")
_EMBEDDED_FOLDERS = {EMBEDDED: EMBEDDED_FOLDER, EMBEDDED_VISION: EMBEDDED_VISION_FOLDER}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_LONGEST_HEADER = 100_000_000  # the safetensors library's own limit
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def local_folder(name: str) -> Path | None:
    """Return the folder of a base model: an embedded base or a local folder. Return None for a hub name.

    Raises:
        BaseModelError: the name is neither; the message suggests the nearest name.
    """
    if name in _EMBEDDED_FOLDERS:
        return _EMBEDDED_FOLDERS[name]
    if "://" in name:
        raise BaseModelError(
            f"base_model.name = {_short(name)}: is a URL; fix: give the hub name (ORGANISATION/MODEL), or download it and give the folder"
        )
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path.resolve()
    if _is_there(path):
        what = "a broken link" if not os.path.exists(path) else "a file, not a model folder"
        raise BaseModelError(
            f"base_model.name = {_short(name)}: is {what}; fix: give the folder that holds config.json"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(
            f"base_model.name = {_short(name)}: does not exist{_nearest_folder(path)}; fix: give a model folder or a hub name"
        )
    if not _HUB_NAME.fullmatch(name):
        raise BaseModelError(
            f"base_model.name = {_short(name)}: neither a folder here nor a hub name (ORGANISATION/MODEL){_nearest_folder(path)}; "
            "fix: give a model folder or a hub name"
        )
    return None


def check_hub_name(name: str) -> None:
    """Raise BaseModelError for a hub model that cannot be downloaded (HF_HUB_OFFLINE) and is not in the cache."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        return
    cache = _hub_cache()
    if (cache / f"models--{name.replace('/', '--')}").is_dir():
        return
    raise BaseModelError(
        f"base_model.name = {_short(name)}: no such folder here, not in the hub cache {cache}, and HF_HUB_OFFLINE forbids "
        f"a download{_nearest_folder(Path(name))}; fix: give a local folder or {EMBEDDED!r}, or download it where there is a network"
    )


def check_base_files(folder: Path, *, trust_remote_code: bool, max_length: int | None = None) -> dict[str, Any]:
    """Check that the folder holds a trainable base and return its ``config.json``.

    Args:
        folder: the base.
        trust_remote_code: whether a model with its own Python code is allowed.
        max_length: tokens of the longest row, to compare with the base's positions; None skips that check.

    Raises:
        BaseModelError: no config, tokenizer or safetensors; an adapter; not a causal language model; custom code
            that is not trusted; or ``max_length`` beyond the positions.
    """
    _refuse_adapter(folder)
    config = _read_config(folder)
    architectures = _architectures(config)
    if config.get("is_encoder_decoder") or (architectures and not any(_is_causal(name) for name in architectures)):
        kind = ", ".join(architectures) or "an encoder-decoder"
        raise BaseModelError(
            f"{folder}: not a causal language model ({kind}); fix: choose a base with an architecture that ends in ForCausalLM"
        )
    if config.get("auto_map") and not trust_remote_code:
        raise BaseModelError(
            f"{folder}: the model brings its own Python code ({', '.join(sorted(config['auto_map']))}); "
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
            f"training.max_length = {max_length}: beyond the base's {positions} positions; fix: use at most {positions}"
        )
    return config


def sees(config: dict[str, Any]) -> bool:
    """Return whether a model's ``config.json`` is one of a model that reads pictures beside text."""
    generates = any(name.endswith("ForConditionalGeneration") for name in _architectures(config))
    return generates and isinstance(config.get("vision_config"), dict) and not config.get("is_encoder_decoder")


def context_length(config: dict[str, Any]) -> int | None:
    """Return the positions of a model in tokens, or None where its config states none."""
    text = config.get("text_config") or config
    # Architectures use different field names.
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        if isinstance(text.get(key), int):
            return int(text[key])
    return None


def hidden_size(folder: Path) -> int:
    """Return the width of the model in ``folder``. Where its config.json does not say it, assume a wide one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    sizes = (text.get(key) for key in ("hidden_size", "n_embd", "d_model"))
    return next((size for size in sizes if isinstance(size, int)), 4096)


def _is_there(path: Path) -> bool:
    """Return whether the path exists, including as a broken link."""
    return os.path.exists(path) or os.path.islink(path)


def _short(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:120]}...")


def _nearest_folder(path: Path) -> str:
    if not os.path.isdir(path.parent):
        return ""
    folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    near = difflib.get_close_matches(path.name, folders, n=1)
    if near:
        return f"; did you mean {path.parent / near[0]}?"
    embedded = difflib.get_close_matches(str(path), list(_EMBEDDED_FOLDERS), n=1)
    return f"; did you mean {embedded[0]}?" if embedded else ""


def _hub_cache() -> Path:
    """Return the cache folder of huggingface_hub by its own variables. Importing it would take a second."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(xdg) / "huggingface").expanduser() / "hub"


def _refuse_adapter(folder: Path) -> None:
    """Raise BaseModelError for a folder with an adapter: transformers would load the adapter's own base."""
    path = folder / "adapter_config.json"
    if not path.exists():
        return
    base = _read_json(path).get("base_model_name_or_path") or "the base it was trained on"
    raise BaseModelError(
        f"{folder}: holds a PEFT adapter (adapter_config.json), not a base; fix: name the adapter's base: {base}"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise BaseModelError(
            f"{folder}: no config.json, so this is not a model folder; fix: give the folder that save_pretrained wrote"
        )
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path}: not valid JSON: {error}; fix: download it again") from error
    except OSError as error:
        raise BaseModelError(f"{path}: cannot be read: {error.strerror}; fix: download it again") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path}: expected a JSON object; fix: download it again")
    return value


def _architectures(config: dict[str, Any]) -> list[str]:
    names = config.get("architectures") or []
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]


def _is_causal(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def _check_weights(folder: Path) -> None:
    try:
        files = weight_files(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BaseModelError(
            f"{folder}/model.safetensors.index.json: not a valid weight index ({type(error).__name__}: {error}); fix: download it again"
        ) from error
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise BaseModelError(
            f"{folder}: missing weight files that the index or a link names: {', '.join(missing[:3])}; fix: download the model again"
        )
    if files:
        for path in files:
            _check_header(path)
        return
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise BaseModelError(
            f"{folder}: the weights are pickles ({', '.join(sorted(pickles)[:3])}), which can run code when loaded; "
            "fix: convert them to safetensors"
        )
    raise BaseModelError(f"{folder}: no weights (*.safetensors); fix: complete the download")


def _check_header(path: Path) -> None:
    """Raise BaseModelError where a safetensors file is not as long as its header says, as after half a download."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: Any = json.loads(stream.read(length)) if 0 < length < min(size, _LONGEST_HEADER) else None
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        promised = 8 + length + int(end)
    except OSError as error:
        raise BaseModelError(f"{path}: cannot be read: {error.strerror}; fix: download it again") from error
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BaseModelError(f"{path}: not a safetensors file{_what_it_is(path)}; fix: download it again") from error
    if size != promised:
        raise BaseModelError(f"{path}: has {size} bytes, but its header says {promised}; fix: download it again")


def _what_it_is(path: Path) -> str:
    with path.open("rb") as stream:
        return " but a Git LFS pointer" if stream.read(16) == b"version https://" else ""


def generation_ends(folder: Path | None) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer by a base's ``generation_config.json``; none without that file.

    Raises:
        BaseModelError: the file cannot be read.
    """
    path = None if folder is None else folder / "generation_config.json"
    if path is None or not path.is_file():
        return ()
    try:
        ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{path} cannot be read: {error}; fix: download the base again") from error
    return tuple(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))
