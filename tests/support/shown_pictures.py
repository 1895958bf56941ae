"""Small pictures that the packaged base that sees knows something about, and chats about them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mlflow_finetune_plugin.images import Picture

VISION = Path(__file__).resolve().parents[2] / "mlflow_finetune_plugin" / "embedded_vision_base"
LANGUAGE_LAYERS = r".*language_model.*\.(q_proj|v_proj)"
"""The layers of the language model that an adapter changes; the vision tower has layers of the same names."""

RED, BLUE, GREEN = (215, 45, 45), (45, 75, 215), (40, 160, 60)


def picture(colour: tuple[int, int, int], *, round_shape: bool = False, size: int = 32, kind: str = "PNG") -> Picture:
    """A square or a circle on grey."""
    image = Image.new("RGB", (size, size), (140, 140, 140))
    canvas, box = ImageDraw.Draw(image), (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
    (canvas.ellipse if round_shape else canvas.rectangle)(box, fill=colour)
    stream = io.BytesIO()
    image.save(stream, kind)
    return Picture.of(stream.getvalue())


def data_url(shown: Picture, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(shown.content).decode()}"


def picture_turn(text: str, *shown: Picture) -> dict[str, Any]:
    """A turn with pictures before its text, as OpenAI's API takes it."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(each)}} for each in shown]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def holds_picture(text: str, shown: Picture) -> bool:
    """Whether a text holds a part of a picture's file that no other text would."""
    encoded = base64.b64encode(shown.content).decode()
    return any(encoded[start : start + 40] in json.dumps(text) for start in range(40, len(encoded) - 40, 20))
