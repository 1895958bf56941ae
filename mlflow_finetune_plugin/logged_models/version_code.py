"""The Python code that a version brings with it, and whether this package wrote it.

A registered version holds code: the loader that ``mlflow.pyfunc`` runs, and the files beside it. Everybody who can write to the
registry or its artifacts can put other code there, and it would run with the caller's credentials. So a file is run only
if its digest is that of a file of this package, of an installed adaptation, or of an earlier version of one.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.base_models import weights_digest
from mlflow_finetune_plugin.errors import ConfigError, ReloadError
from mlflow_finetune_plugin.evaluation import answer_text
from mlflow_finetune_plugin.images import picture
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.store.names import CARD_FILE, REFERENCE_FILE

LOADER = Path(__file__).parent / "pyfunc_loader.py"
SHARED_CODE = (Path(weights_digest.__file__), Path(answer_text.__file__))
"""Files that the loader imports, and that every logged model holds."""
PICTURE_CODE = (Path(picture.__file__),)
"""Files that the loader imports for a base that sees, and that the logged models of such bases hold."""
_CODE_FOLDER = "code"
_LOADER_MODULE = "mlflow.pyfunc.loaders.code_model"
_ARTIFACTS = {"adapter": "adapter", "tokenizer": "tokenizer", "card": CARD_FILE, "reference": REFERENCE_FILE}

EARLIER_CODE: Mapping[str, frozenset[str]] = {
    "pyfunc_loader.py": frozenset(
        (
            "2fc35911464438c9bcf7c36c7fe07a6576c76f9f09895e1a1786021836b5d612",
            "ae62d3f3eaa479d9ae89daf08d61da46af63f771355283669e65a8c5b191cef4",
            "6f85889f892614d16556b4b4ab3f314d5537ccf689ba5076d3ce4461f56e4e4a",
            "d1813c0b40bb4bac7680c98fe047c5ced116c9532c794035e112dbe11a759ad9",
            "da060cf3b6964ca63504d5a2d97651e26039d2e9080a92538b402bbeed6b606a",
            "7ef3f6a4b62d28441b74a698a020bf7998da1806f54df73018ed22b384c0ac2d",
            "32e5100fc9baceec091024ed403504c84b9e4db2832fcfaf854e4c6d5ece14be",
            "8f6f78171586d3375b7b1f4c16a9deb7841dd6373c47d6acabe4c9b0eb4b679a",
            "95dbdf20067a24ac8f079b5871b68d5ba9eb52038dddb6c256e2afdd1831443c",
            "cf00023b45abf1a5cbbcc7f3ec2951f486eb0bfa08ab44601ebd04aedde47e34",
        )
    ),
    "picture.py": frozenset(("98c4f685c42035dd9bd0fe67466d80dbed9a794a50de99fb66e4d4dc88d8e5f4",)),
    "answer_text.py": frozenset(("bbe2cfdc0ea9d3349e80220a1b1075029080d4c0e22632039148d34e01ad1af4",)),
    "weights_digest.py": frozenset(
        (
            "93d8c2a2f3a8494bb375cfb62543009ab49f29557be46c27436497a0e87984e9",
            "717129bce9b07786a2f6750eeed66fc7bd15eee97be5ee328bb7259e581d6ccd",
        )
    ),
    "_full_tuner.py": frozenset(("958dd0f2da763849c4a049a2fe4807722624a7a4c803e1a2248a09d2c90f588b",)),
    "_bottleneck_tuner.py": frozenset(
        (
            "3f9813c164eb13394c1c8b1ef2a63df58ccfeb47681b710e2858c13d8d5525b7",
            "38d7420bb5c0f96ae7898b2b70a52306587df498c7d9a8f7734bb558ea3da867",
            "572ef2bfef114976c4db20260ab8a0e90a91cd98b3bdefa6cdcaa927728710d3",
            "cdf74a6ce3ed33fe499abbb7c6f0ed20c95dcb1d7f81a7e3958d33edeff0aba2",
        )
    ),
    "_virtual_token_tuner.py": frozenset(("df0268edd4efc1c207c29abf5236e29b7e77151d966fb8c2ef6b53412ce194a2",)),
}
"""SHA-256 of the files that logged models may hold, as they were and are. Add a file's new digest when it changes."""


def check_code(folder: Path, uri: str) -> None:
    """Check that a downloaded model runs no code but this package's, before anything of it is loaded.

    Args:
        folder: The model's files.
        uri: The model, for messages.

    Raises:
        ReloadError: It would run other code.
    """
    fault = _fault(folder)
    if fault is not None:
        raise ReloadError(
            f"{uri} was not loaded, because it would run code that this package does not know: {fault}; fix: read that "
            "code, then allow it with --trust-code (-P trust_code=true)"
        )


@contextmanager
def without_bytecode() -> Iterator[None]:
    """Let Python neither read nor write ``__pycache__`` beside the files that are imported inside.

    Bytecode there could be other code than the source that was checked.
    """
    before = sys.pycache_prefix
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix = empty
        try:
            yield
        finally:
            sys.pycache_prefix = before


def _fault(folder: Path) -> str | None:
    """Return what would run unknown code; None if nothing would."""
    try:
        flavor = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]["python_function"]
        card = json.loads((folder / "artifacts" / CARD_FILE).read_text(encoding="utf-8"))
        return _flavor_fault(flavor) or _card_fault(card) or _files_fault(folder, card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        return f"its MLmodel or {CARD_FILE} is not one of this package ({type(error).__name__}: {error})"[:300]


def _flavor_fault(flavor: Mapping[str, Any]) -> str | None:
    expected = {"loader_module": _LOADER_MODULE, "code": _CODE_FOLDER, "data": None, "python_model": None}
    for key, value in expected.items():
        if flavor.get(key) != value:
            return f"MLmodel has {key} = {flavor.get(key)!r:.80}, not {value!r}"
    loader = Path(flavor["model_code_path"]).name
    if loader != LOADER.name:
        return f"MLmodel names the loader {loader[:80]!r}, not {LOADER.name!r}"
    for name, file in _ARTIFACTS.items():
        if flavor["artifacts"][name]["path"] != f"artifacts/{file}":
            return f"MLmodel has {name} at {flavor['artifacts'][name]['path']!r:.80}, not at 'artifacts/{file}'"
    return None


def _card_fault(card: Mapping[str, Any]) -> str | None:
    if card["base_model"]["trust_remote_code"]:
        return f"its base {card['base_model']['name']!s:.80} runs the Python code of its repository"
    return None


def _files_fault(folder: Path, card: Mapping[str, Any]) -> str | None:
    known = _known_code(str(card["adaptation"]))
    code = folder / _CODE_FOLDER
    modules = sorted(path for path in code.iterdir() if path.name != "__pycache__")
    for path in (folder / LOADER.name, *modules):
        if path.is_symlink() or not path.is_file():
            return f"{path.relative_to(folder)} is not a regular file"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest not in known.get(path.name, ()):
            return f"{path.relative_to(folder)} has an unknown digest, {digest[:12]}"
    imports = set(card.get("imports", ())) - {path.stem for path in modules}
    return f"{CARD_FILE} imports {sorted(imports)[0]!r:.80}, which is not among its files" if imports else None


def _known_code(adaptation: str) -> dict[str, frozenset[str]]:
    """Return the digests that a file of each name may have."""
    try:
        installed = load_method("adaptation", adaptation).MODEL_CODE
    except ConfigError:  # an adaptation that is not installed here: only the files of this package are known
        installed = ()
    known = dict(EARLIER_CODE)
    for path in (LOADER, *SHARED_CODE, *PICTURE_CODE, *installed):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        known[path.name] = known.get(path.name, frozenset()) | {digest}
    return known
