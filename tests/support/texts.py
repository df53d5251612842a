"""What is written in a figure, and where two of its texts lie on each other."""

from itertools import combinations
from unittest.mock import patch

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def drawn_texts(figure: Figure) -> dict[Text, Bbox]:
    """Draw a figure, and return the boxes of the texts that this draws, pixels."""
    canvas, drawn = FigureCanvasAgg(figure), {}
    draw = Text.draw

    def noted(text: Text, renderer: object, *rest: object, **more: object) -> None:
        draw(text, renderer, *rest, **more)  # pyright: ignore[reportArgumentType]
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent()

    with patch.object(Text, "draw", noted):
        canvas.draw()
    return drawn


def faults(figure: Figure) -> list[str]:
    """Texts that overlap, or that leave the figure."""
    boxes = drawn_texts(figure)
    found = [
        f"{one.get_text()!r} lies on {other.get_text()!r}"
        for (one, a), (other, b) in combinations(boxes.items(), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    width, height = figure.bbox.size
    outside = [
        t.get_text() for t, b in boxes.items() if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1
    ]
    return [*found, *(f"{text!r} leaves the figure" for text in outside)]
