"""What a base makes of pictures: the tokens in the place of each one, and the tensors that its vision tower reads.

Both come from the base's own processor (``AutoProcessor``), so any image-text-to-text model of Transformers works here whose processor
can be loaded. A family whose processor needs a further package (torchvision, num2words) says so when it is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import BaseModelError, one_line
from mlflow_finetune_plugin.images.picture import Picture

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Inputs of some families that say which tokens stand for a picture: 1 for those, else 0; (rows, tokens)."""

_OF_PROCESSORS = frozenset(("num_crops",))
"""What image processors give their processor, and no model takes."""
_MOST_TEXTS = 4096
_BLANK = 64  # pixels of a side of the picture that shows which token stands for a part of one


class PictureInputs:
    """The processor of one base.

    Attributes:
        image_token_id: The token that stands for a part of a picture. A picture takes many of them.
        placeholder: What chat templates write in the place of a picture. It becomes all tokens of the picture.
    """

    def __init__(self, processor: Any) -> None:
        from PIL import Image

        self.processor = processor
        self.placeholder = str(getattr(processor, "boi_token", None) or processor.image_token)
        self._names = frozenset(processor.image_processor.model_input_names) - _OF_PROCESSORS
        self._texts: dict[str, str] = {}
        blank = Image.new("RGB", (_BLANK, _BLANK))
        ids = processor.tokenizer(self._expanded(blank), add_special_tokens=False)["input_ids"]
        # Some processors have a token around it under this name. A line break may be as frequent, but no text is an added token.
        added = set(processor.tokenizer.get_added_vocab().values())
        self.image_token_id = int(Counter(sorted(ids, key=lambda token: token not in added)).most_common(1)[0][0])
        self._token_types = [name for name in _TOKEN_TYPES if name in processor.model_input_names]

    @classmethod
    def load(cls, folder: Path, *, trust_remote_code: bool = False) -> PictureInputs:
        """Load the processor of a base or of a logged model.

        Raises:
            BaseModelError: it cannot be loaded, or takes no pictures.
        """
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            raise BaseModelError(f"{folder}: the processor cannot be loaded: {one_line(error)}") from error
        if not hasattr(processor, "image_processor") or getattr(processor, "image_token_id", None) is None:
            raise BaseModelError(f"{folder}: {type(processor).__name__} takes no pictures; fix: use another base")
        return cls(processor)

    def expand(self, text: str, pictures: Sequence[Picture]) -> str:
        """Return a rendered text with all tokens of each picture, as text, in the place of its placeholder.

        Args:
            text: What the chat template wrote; it holds one placeholder for each picture, in their order.
            pictures: The pictures.

        Raises:
            ValueError: there are more or fewer placeholders than pictures, or the processor refuses a picture.
        """
        if (places := text.count(self.placeholder)) != len(pictures):
            raise ValueError(f"{places} times {self.placeholder} in the rendered text for {len(pictures)} pictures")
        if not pictures:
            return text
        before, *texts = text.split(self.placeholder)
        return before + "".join(self._written(one) + after for one, after in zip(pictures, texts, strict=True))

    def _written(self, picture: Picture) -> str:
        """Return all tokens of a picture as text. They do not depend on what is around them."""
        if picture.sha256 not in self._texts:
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            self._texts[picture.sha256] = self._expanded(picture.pixels())
        return self._texts[picture.sha256]

    def _expanded(self, pixels: Any) -> str:
        recorded = _Recorder(self.processor.tokenizer)
        self.processor.tokenizer, tokenizer = recorded, self.processor.tokenizer
        try:
            self.processor(text=[self.placeholder], images=[[pixels]], add_special_tokens=False)
        finally:
            self.processor.tokenizer = tokenizer
        return recorded.text

    def tensors(self, pictures: Sequence[Sequence[Picture]], ids: Any) -> dict[str, Any]:
        """Return the model's inputs beside the tokens.

        Args:
            pictures: The pictures of each row; a row may have none.
            ids: The tokens, (rows, tokens), padded on any side.

        Returns:
            ``pixel_values`` and what else the family needs, in the order of the pictures, on the CPU; the types of the tokens on the
            device of ``ids``. Empty if no row has a picture.
        """
        shown = [[picture.pixels() for picture in row] for row in pictures if row]
        more = {name: (ids == self.image_token_id).long() for name in self._token_types}
        if not shown:
            return more
        values = self.processor.image_processor(images=shown, return_tensors="pt")
        return {name: value for name, value in values.items() if name in self._names} | more


class _Recorder:
    """A tokenizer that remembers the text that the processor gives it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.text = ""

    def __call__(self, text: list[str], **options: Any) -> Any:
        (self.text,) = text
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
