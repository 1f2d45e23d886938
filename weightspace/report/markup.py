"""Pieces of HTML; every text that comes from a run is escaped here."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from weightspace.report.figures import Figure

MISSING, MINUS = "\u2013", "\u2212"


def number(value: object, digits: int = 3) -> str:
    """Write a number with a true minus sign, and a dash for what is missing.

    >>> number(1792), number(0.9264), number(None)
    ('1,792', '0.926', '–')
    """
    if not isinstance(value, int | float) or value != value:
        return MISSING
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", MINUS)


def section(title: str, parts: Iterable[str]) -> str:
    """Put parts under a heading; nothing at all if there are none."""
    content = "\n".join(part for part in parts if part)
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}">\n<h2>{title}</h2>\n{content}\n</section>' if content else ""


def figure_block(name: str, title: str, caption: str, figure: Figure | None) -> str:
    """Frame a figure with its caption, its data and, where it has `choices`, a menu; nothing if it is `None`."""
    if figure is None:
        return ""
    data = json.dumps(figure, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    select = ""
    choices = figure.get("choices")
    if isinstance(choices, dict) and len(choices) > 1:
        options = "".join(f"<option>{escape(choice)}</option>" for choice in choices)
        select = f'<label>colour by <select data-plot="{name}">{options}</select></label>'
    layout = figure["layout"]
    height = layout["height"] if isinstance(layout, dict) else 400
    return (
        f"<figure>{select}<h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>"
        f'<div class="plot" id="{name}" data-figure="{name}-data" style="height:{height}px" role="img" '
        f'aria-label="{escape(title)}"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script></figure>'
    )


def pair(*parts: str) -> str:
    """Put frames side by side where the window is wide enough."""
    shown = [part for part in parts if part]
    return f'<div class="pair">{"".join(shown)}</div>' if len(shown) > 1 else "".join(shown)


@dataclass(frozen=True)
class Cell:
    """A table cell; `kind` is its CSS class: number, name or words."""

    text: str
    kind: str = "number"
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A table row; rows of what this library has learned are tinted."""

    cells: Sequence[Cell]
    learned: bool = False


def table(title: str, caption: str, heads: Sequence[Sequence[tuple[str, int]]], rows: Sequence[Row]) -> str:
    """Frame a table; nothing if it has no rows.

    Args:
        title: Heading of the frame.
        caption: One sentence that says what to look for.
        heads: Rows of headings, each a text and the number of columns that it spans.
        rows: All of the same length.
    """
    if not rows:
        return ""
    kinds = [cell.kind for cell in rows[0].cells]
    head = ""
    for level in heads:
        head += "<tr>"
        column = 0
        for text, span in level:
            kind = "group" if span > 1 else kinds[column]
            head += f'<th scope="col" class="{kind}"{f" colspan={span}" if span > 1 else ""}>{escape(text)}</th>'
            column += span
        head += "</tr>"
    body = ""
    for row in rows:
        cells = (
            f'<td class="{c.kind}{" best" if c.best else ""}">'
            + (f"<strong>{escape(c.text)}</strong></td>" if c.best else f"{escape(c.text)}</td>")
            for c in row.cells
        )
        body += f"<tr{' class=learned' if row.learned else ''}>{''.join(cells)}</tr>"
    return (
        f"<figure><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>"
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div></figure>'
    )
