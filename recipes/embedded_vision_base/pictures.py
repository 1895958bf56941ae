"""Draw small pictures, and ask about them. Everything is drawn here; no outside picture is used."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIZE = 32
"""Pixels of a picture's side."""

COLOURS = {
    "red": (215, 45, 45),
    "green": (40, 160, 60),
    "blue": (45, 75, 215),
    "yellow": (240, 215, 50),
    "black": (25, 25, 25),
    "white": (250, 250, 250),
    "pink": (250, 135, 190),
    "brown": (125, 80, 40),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
LETTERS = tuple("ABCDEFGHJKLMNPRSTUVWXYZ")
DIGITS = tuple("0123456789")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PARTS = tuple(
    f"{row} {column}".replace("middle middle", "middle")
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)
_FEWEST, _MOST = 11, 18  # pixels of what is drawn


@dataclass(frozen=True)
class Drawing:
    """One thing on a grey ground.

    Attributes:
        picture: RGB, ``SIZE`` x ``SIZE``.
        kind: A shape, a letter or a digit.
        colour: A key of ``COLOURS``.
        part: One of ``PARTS``.
    """

    picture: Image.Image
    kind: str
    colour: str
    part: str


def draw(rng: random.Random, kinds: tuple[str, ...]) -> Drawing:
    """Draw one of these kinds in a random colour, size and place."""
    kind, colour = rng.choice(kinds), rng.choice(list(COLOURS))
    ground = rng.randint(100, 180)
    picture = Image.new("RGB", (SIZE, SIZE), tuple(ground + rng.randint(-12, 12) for _ in range(3)))
    width = rng.randint(_FEWEST, _MOST)
    left, top = (rng.randint(0, SIZE - width - 1) for _ in range(2))
    fill = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in COLOURS[colour])
    paint(ImageDraw.Draw(picture), kind, (left, top, left + width, top + width), fill)
    third = SIZE / 3
    row, column = (int((start + width / 2) // third) for start in (top, left))
    return Drawing(picture, kind, colour, PARTS[3 * row + column])


def paint(canvas: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], fill: tuple[int, ...]) -> None:
    """Paint a kind into a square box."""
    left, top, right, bottom = box
    width = right - left
    if kind == "circle":
        canvas.ellipse(box, fill=fill)
    elif kind == "square":
        canvas.rectangle(box, fill=fill)
    elif kind == "triangle":
        canvas.polygon([(left, bottom), (right, bottom), (left + width // 2, top)], fill=fill)
    elif kind == "cross":
        canvas.rectangle((left + width // 3, top, left + 2 * width // 3, bottom), fill=fill)
        canvas.rectangle((left, top + width // 3, right, top + 2 * width // 3), fill=fill)
    elif kind == "ring":
        canvas.ellipse(box, outline=fill, width=max(2, width // 5))
    elif kind == "bar":
        canvas.rectangle((left, top + width // 3, right, bottom - width // 3), fill=fill)
    else:
        font = ImageFont.load_default(size=1.3 * width)
        canvas.text((left + width / 2, top + width / 2), kind, fill=fill, font=font, anchor="mm", stroke_width=0)


def question(rng: random.Random) -> tuple[Drawing, str, str]:
    """Draw a shape and ask about it. Letters and digits are never asked about."""
    drawing = draw(rng, SHAPES)
    article = "an" if drawing.colour[0] in "aeiou" else "a"
    whole = f"{article} {drawing.colour} {drawing.kind}"
    answers = {
        ("What is in the picture?", "What do you see?", "Describe the picture."): whole,
        ("What colour is it?", "Which colour does it have?"): drawing.colour,
        ("What shape is it?", "Which shape do you see?"): drawing.kind,
        ("Where is it?", "In which part of the picture is it?"): drawing.part,
    }
    ways = rng.choice(list(answers))
    return drawing, rng.choice(ways), answers[ways]
