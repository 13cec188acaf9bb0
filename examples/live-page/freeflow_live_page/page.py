"""A record as one HTML page that needs nothing else: no script, no server, no other file."""

from __future__ import annotations

import base64
from html import escape

from freeflow_live_page.curve import sparkline
from freeflow_live_page.record import RUNNING, Record

SECONDS_BETWEEN_RELOADS = 5
LARGEST_PICTURE = 4 * 2**20
_COLOURS = {RUNNING: "#1f5aa6", "finished": "#1b7f3b", "stopped": "#8a6d00", "interrupted": "#8a6d00"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.status { color: #fff; border-radius: 4px; padding: 0.1rem 0.5rem; font-size: 0.9rem; vertical-align: middle; }
progress { width: 100%; height: 1.2rem; }
.curves { display: flex; flex-wrap: wrap; gap: 1rem; color: #1f5aa6; }
figure { margin: 0; } figcaption { color: #222; font-size: 0.85rem; }
table { border-collapse: collapse; }
td, th { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; image-rendering: pixelated; }
"""


def render(record: Record) -> str:
    """The page. Every name that comes from the run is escaped."""
    name = escape(record.run.name)
    reload = f'<meta http-equiv="refresh" content="{SECONDS_BETWEEN_RELOADS}">' if record.status == RUNNING else ""
    colour = _COLOURS.get(record.status, "#a61f1f")
    body = "\n".join([_progress(record), _samples(record), _scores(record), _curves(record)])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{reload}
<title>{name}: {escape(record.status)}</title><style>{_STYLE}</style></head>
<body><h1>{name} <span class="status" style="background:{colour}">{escape(record.status)}</span></h1>
{body}
</body></html>
"""


def _progress(record: Record) -> str:
    parts = [f"{record.images:,} of {record.total:,} images"]
    if record.status == RUNNING:
        left = record.total - record.images
        parts += [f"{record.speed:,.0f} images/s, {_duration(left / record.speed)} left"] if record.speed else []
        parts += [record.busy] if record.busy else []
    if record.checkpoint:
        parts.append(f"newest checkpoint {record.checkpoint}")
    return (
        f'<progress value="{record.images}" max="{record.total}"></progress>'
        f"<p>{escape(record.run.command)}: {escape('; '.join(parts))}</p>"
    )


def _samples(record: Record) -> str:
    picture = record.newest_picture()
    if picture is None or picture.stat().st_size > LARGEST_PICTURE:
        return ""
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f'<h2>Samples: {escape(picture.stem)}</h2><img alt="samples" src="data:image/png;base64,{data}">'


def _scores(record: Record) -> str:
    if not record.scores:
        return ""
    columns = list(dict.fromkeys(score for row in record.scores.values() for score in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for name, row in record.scores.items():
        cells = "".join(f"<td>{row[c]:.4g}</td>" if c in row else "<td>-</td>" for c in columns)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    table = f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    return f"<h2>Scores at image {record.scored_at:,}</h2>{table}"


def _curves(record: Record) -> str:
    if not record.curves:
        return ""
    figures = []
    for name, points in sorted(record.curves.items(), key=lambda item: ("/" not in item[0], item[0])):
        caption = f"{escape(name)}: {points[-1][1]:.4g}"
        figures.append(f"<figure>{sparkline(points)}<figcaption>{caption}</figcaption></figure>")
    return f'<h2>Metrics</h2><div class="curves">{"".join(figures)}</div>'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
