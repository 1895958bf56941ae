"""Write the recipe's data: pictures of a display with one digit, and questions about them.

The base names shapes, colours and places; digits it has never been told. A digit is drawn as seven bars, as on a meter, in any of
eight colours. Train and test share no picture.

    python recipes/vision/make_data.py            # rewrites data/train.jsonl and data/test.jsonl in place
"""

import base64
import io
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
SEED = 20261126
TRAIN_ROWS, TEST_ROWS = 1000, 150
SIZE, TILE = 32, 8

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BARS = {
    "top": (0, 0, 4, 1),
    "top left": (0, 0, 1, 4),
    "top right": (3, 0, 4, 4),
    "middle": (0, 3, 4, 4),
    "bottom left": (0, 3, 1, 7),
    "bottom right": (3, 3, 4, 7),
    "bottom": (0, 6, 4, 7),
}
"""Each bar's left, top, right and bottom, on a grid of 4 x 7."""
DARK = {
    0: ["middle"],
    1: ["top", "top left", "middle", "bottom left", "bottom"],
    2: ["top left", "bottom right"],
    3: ["top left", "bottom left"],
    4: ["top", "bottom left", "bottom"],
    5: ["top right", "bottom left"],
    6: ["top right"],
    7: ["top left", "middle", "bottom left", "bottom"],
    8: [],
    9: ["bottom left"],
}
"""The bars that a digit leaves out."""
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
QUESTIONS = {
    "Which number is it?": "{number}",
    "What is in the picture?": "a {colour} {number}",
    "What number does it show?": "{number}",
}


def draw(rng: random.Random, digit: int, colour: str) -> Image.Image:
    """Draw a digit on grey tiles; its place, its size and the greys are random."""
    ground = rng.randint(100, 180)
    picture = Image.new("RGB", (SIZE, SIZE))
    for left in range(0, SIZE, TILE):
        for top in range(0, SIZE, TILE):
            grey = ground + rng.randint(-12, 12)
            picture.paste((grey, grey, grey), (left, top, left + TILE, top + TILE))
    unit = rng.choice((2, 3, 4))
    left, top = rng.randint(1, SIZE - 4 * unit - 1), rng.randint(1, SIZE - 7 * unit - 1)
    canvas = ImageDraw.Draw(picture)
    for name, bar in BARS.items():
        if name not in DARK[digit]:
            x0, y0, x1, y1 = (value * unit for value in bar)
            canvas.rectangle((left + x0, top + y0, left + x1 - 1, top + y1 - 1), fill=COLOURS[colour])
    return picture


def row(rng: random.Random) -> dict:
    digit, colour = rng.randrange(10), rng.choice(list(COLOURS))
    stream = io.BytesIO()
    draw(rng, digit, colour).save(stream, "PNG", optimize=True)
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    question, answer = rng.choice(list(QUESTIONS.items()))
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    reply = answer.format(number=NUMBERS[digit], colour=colour)
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": reply}]}


def write() -> None:
    rng, seen = random.Random(SEED), set()
    (HERE / "data").mkdir(exist_ok=True)
    for name, rows in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        lines = []
        while len(lines) < rows:
            line = row(rng)
            url = line["messages"][0]["content"][0]["image_url"]["url"]
            if url not in seen:
                seen.add(url)
                lines.append(json.dumps(line))
        (HERE / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
