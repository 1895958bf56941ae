"""A prompt as the engine decodes it: its tokens, and what the vision tower reads beside them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.images import Picture, PictureFault, PictureInputs, PictureLimits, read_picture

if TYPE_CHECKING:
    import torch

_LIMITS = PictureLimits(max_bytes=2**28)
"""The router sends PNGs, which may be larger than the files that it accepts from clients: three bytes a pixel."""


@dataclass(frozen=True)
class ShownPictures:
    """The pictures of one prompt. They are equal if their ``names`` are, so that prompts with equal tokens are not confused.

    Attributes:
        names: The SHA-256 of each picture's file, in the order of the prompt.
        end: Where the tokens of the last picture end in the prompt.
        tensors: The model's inputs beside the tokens (``PictureInputs.tensors``), on the CPU.
    """

    names: tuple[str, ...] = ()
    end: int = 0
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)


NO_PICTURES = ShownPictures()


@dataclass(frozen=True)
class EnginePrompt:
    """The token ids of a prompt, with all tokens of its pictures, and the pictures."""

    ids: list[int]
    pictures: ShownPictures = NO_PICTURES


class PromptWriter:
    """A tokenizer, and the processor of a base that sees. Both belong to one thread.

    Args:
        tokenizer: The tokenizer, with the chat template.
        inputs: The processor; None for a base that reads text only.
        max_model_len: The context length. Pictures of longer prompts, which are refused, are not computed.
    """

    def __init__(self, tokenizer: Any, inputs: PictureInputs | None, max_model_len: int) -> None:
        self.tokenizer, self._inputs = copy.deepcopy(tokenizer), copy.deepcopy(inputs)
        self._max_model_len = max_model_len

    def pictures(self, urls: Sequence[str], field_name: str) -> list[Picture]:
        """Return the pictures of data URLs. Raises ValueError for one that cannot be used, or a base that does not see."""
        if urls and self._inputs is None:
            raise ValueError(
                f"{field_name}: a picture (image_url), and this base reads text only; fix: send text parts only"
            )
        try:
            return [read_picture(url, folder=None, limits=_LIMITS) for url in urls]
        except PictureFault as fault:
            raise ValueError(f"{field_name}: {fault}") from fault

    def prompt(self, text: str, pictures: Sequence[Picture], *, is_chat: bool) -> EnginePrompt:
        """Return the prompt of a text with one placeholder for each picture. Raises ValueError if they do not fit together.

        Args:
            text: The text.
            pictures: Its pictures.
            is_chat: Whether the chat template wrote it, which adds the special tokens itself.
        """
        inputs = self._inputs
        if inputs is not None:
            if (places := text.count(inputs.placeholder)) != len(pictures):
                raise ValueError(
                    f"the prompt has {places} places for {len(pictures)} pictures; fix: write no {inputs.placeholder} into a text"
                )
            text = inputs.expand(text, pictures)
        ids = list(self.tokenizer(text, **({"add_special_tokens": False} if is_chat else {}))["input_ids"])
        if inputs is not None:
            of_pictures = sum(self._tokens_of(picture, inputs) for picture in pictures)
            if ids.count(inputs.image_token_id) != of_pictures:
                token = self.tokenizer.convert_ids_to_tokens(inputs.image_token_id)
                raise ValueError(f"a text has the token {token}, which stands for a picture; fix: remove it")
        return self.of_ids(ids, pictures)

    def of_ids(self, ids: list[int], pictures: Sequence[Picture]) -> EnginePrompt:
        """Return a prompt that already has all tokens of its pictures. Raises ValueError for such tokens without pictures."""
        if self._inputs is None or len(ids) >= self._max_model_len:
            return EnginePrompt(ids)
        if not pictures and self._inputs.image_token_id in ids:
            raise ValueError(
                f"prompt: the token {self._inputs.image_token_id} stands for a picture; fix: send pictures in a chat"
            )
        import torch

        token = self._inputs.image_token_id
        end = max((place for place, other in enumerate(ids, start=1) if other == token), default=0)
        tensors = self._inputs.tensors([pictures], torch.tensor([ids]))
        return EnginePrompt(ids, ShownPictures(tuple(picture.sha256 for picture in pictures), end, tensors))

    def _tokens_of(self, picture: Picture, inputs: PictureInputs) -> int:
        written = inputs.expand(inputs.placeholder, [picture])
        return list(self.tokenizer(written, add_special_tokens=False)["input_ids"]).count(inputs.image_token_id)
