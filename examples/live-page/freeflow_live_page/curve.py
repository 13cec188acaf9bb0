"""Numbers as an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 260, 80


def sparkline(points: Sequence[tuple[int, float]]) -> str:
    """A curve of (images, value) pairs, lowest value at the bottom; a dot when there is only one."""
    xs, ys = zip(*points, strict=True)
    x_span, y_span = (max(xs) - min(xs)) or 1, (max(ys) - min(ys)) or 1.0
    places = [
        (4 + (WIDTH - 8) * (x - min(xs)) / x_span, HEIGHT - 4 - (HEIGHT - 8) * (y - min(ys)) / y_span)
        for x, y in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="currentColor"/></svg>'
    )
