"""Check a version's own files, finetune.json and reference.json, because a registry may hold files of any origin."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mlflow_finetune_plugin.errors import EngineChoiceError, ServingError
from mlflow_finetune_plugin.images import PictureFault
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import MARK, PICTURES
from mlflow_finetune_plugin.store.names import CARD_FILE, REFERENCE_FILE

Digest = Annotated[str, StringConstraints(pattern=re.compile(r"^[0-9a-f]{64}$"))]
_MOST_STOP_IDS = 64
_LONGEST_PREFIX = 1000
_MOST_PROBES = 64
_MOST_RENDERINGS = 32
_MOST_PICTURES = 1024
_MOST_ANSWERS = 16
_LONGEST_ANSWER = 256
Ids = list[Annotated[int, Field(ge=0)]]


class _Part(BaseModel):
    """A part of a file. Unknown fields are ignored, because later versions of this package write more. Numbers are finite."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Base(_Part):
    name: str = Field(min_length=1)
    folder: str
    digest: Digest
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: str | None
    trust_remote_code: bool
    revision: str | None = None
    attn_implementation: str | None = None
    model_type: str | None = Field(default=None, max_length=100)


class _Card(_Part):
    base_model: _Base
    adaptation: str
    serving: str
    adapter_digest: Digest
    stop_token_ids: Ids = Field(max_length=_MOST_STOP_IDS)
    max_length: int = Field(gt=0)
    answer_prefix: str = Field(default="", max_length=_LONGEST_PREFIX)
    sees: bool = False
    files: dict[str, Digest] | None = None


class _Probe(_Part):
    prompt_ids: Ids = Field(min_length=1)
    completion_ids: Ids = Field(min_length=1)
    messages: list[dict[str, Any]] | None = None
    base_log_probs: list[float] | None = None
    adapter_log_probs: list[float] | None = None


class _Rendering(_Part):
    shape: str = Field(max_length=100)
    messages: list[dict[str, str]] = Field(min_length=1, max_length=100)
    prompt_ids: Ids = Field(min_length=1, max_length=1000)


class _Answer(_Part):
    probe: int = Field(ge=0)
    ids: Ids = Field(min_length=1, max_length=_LONGEST_ANSWER)
    texts: list[str] = Field(max_length=_LONGEST_ANSWER)
    margins: list[float] = Field(max_length=_LONGEST_ANSWER)


class _ServedAs(_Part):
    base_log_probs: list[list[float]]
    adapter_log_probs: list[list[float]]
    noise: float = Field(ge=0)
    gap: float
    max_gap: float
    answers: list[_Answer] = Field(default=[], max_length=_MOST_ANSWERS)


class _Reference(_Part):
    precision: str
    probes: list[_Probe] = Field(min_length=1, max_length=_MOST_PROBES)
    served_as: dict[str, _ServedAs] | None = None
    renderings: list[_Rendering] = Field(default=[], max_length=_MOST_RENDERINGS)
    pictures: dict[Digest, str] = Field(default={}, max_length=_MOST_PICTURES)


Content = TypeVar("Content", bound=_Part)


def check_card(card: dict[str, Any], name: str) -> None:
    """Raise ServingError with the first fault of finetune.json, and EngineChoiceError for a reward model, which no engine serves."""
    if card.get("kind") == "reward":
        raise EngineChoiceError(
            f"{name} is a reward model: it gives scores and no answers, so it is neither served nor continued; fix: load it "
            "with mlflow.pyfunc.load_model (docs/guides/reward-models.md), or name another version"
        )
    _check(_Card, card, CARD_FILE, name)


def check_reference(reference: dict[str, Any], name: str) -> None:
    """Raise ServingError with the first fault of reference.json, which has a log-probability for each token of each probe."""
    checked = _check(_Reference, reference, REFERENCE_FILE, name)
    lengths = [len(probe.completion_ids) for probe in checked.probes]
    if checked.served_as is None:
        sides = [[probe.base_log_probs or [] for probe in checked.probes]]
        sides.append([probe.adapter_log_probs or [] for probe in checked.probes])
    else:
        precisions = checked.served_as.values()
        sides = [side for precision in precisions for side in (precision.base_log_probs, precision.adapter_log_probs)]
    if any([len(row) for row in side] != lengths for side in sides):
        raise ServingError(
            f"{name}: reference.json does not have a log-probability for every token of its probes; fix: register it again"
        )
    answers = [answer for precision in (checked.served_as or {}).values() for answer in precision.answers]
    if not all(_belongs_to_a_chat(answer, checked.probes) for answer in answers):
        raise ServingError(
            f"{name}: reference.json has an answer that belongs to none of its probes; fix: register it again"
        )
    fault = _picture_fault(checked)
    if fault is not None:
        raise ServingError(f"{name}: reference.json: {fault}; fix: register it again")


def _picture_fault(reference: _Reference) -> str | None:
    """Return what is wrong with the pictures of the probes; None if each is there and is the one that its name says."""
    pictures = PicturesInMemory(reference.pictures)
    for number, probe in enumerate(reference.probes):
        for turn in probe.messages or ():
            names = turn.get(PICTURES, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return f"probe {number} does not name its pictures as texts"
            if names and str(turn.get("content")).count(MARK) != len(names):
                return f"probe {number} has more or fewer pictures than places for them"
            for picture in names:
                try:
                    is_same = pictures.get(picture).sha256 == picture
                except KeyError:
                    return f"a picture of probe {number} is missing"
                except (PictureFault, ValueError) as error:
                    return f"a picture of probe {number} cannot be read: {error}"
                if not is_same:
                    return f"a picture of probe {number} is another one"
    return None


def _belongs_to_a_chat(answer: _Answer, probes: list[_Probe]) -> bool:
    """Return whether an answer's probe is a chat, and each of its tokens has a text and a margin."""
    is_chat = answer.probe < len(probes) and bool(probes[answer.probe].messages)
    return is_chat and len(answer.ids) == len(answer.texts) == len(answer.margins)


def _check(kind: type[Content], content: dict[str, Any], file: str, name: str) -> Content:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ServingError(f"{name}: {file}: {field}: {first['msg'].lower()}; fix: register it again") from error
