"""What tables of the page are made of: cells with numbers, verdict words in their colours, lists of pairs."""

from collections.abc import Callable, Sequence
from typing import Any

from compress.report import format as fmt
from compress.report.markup import Markup, element, join

_TONES = {
    "refused": "fail", "failed": "fail",
    "chosen": "pass", "faster": "pass", "kept": "pass", "paid": "pass", "ok": "pass",
    "slower": "fail", "lost": "fail", "did not pay": "fail", "invalid": "fail",
    "inconclusive": "inconclusive", "undecided": "inconclusive",
}  # fmt: skip


_MANY_ROWS = 8  # from so many on there is a filter


def table(caption: str, heads: Sequence[str], rows: Sequence[Markup], *, in_order: bool = False) -> Markup:
    """A table that scrolls sideways on a narrow screen, with its columns named. `page.js` lets it be sorted, unless its
    rows tell something by their order (`in_order`), and filtered where there are many.
    """
    head = element("thead", element("tr", *(element("th", h, scope="col") for h in heads)))
    kinds = [] if in_order else ["sortable"]
    kinds += ["filterable"] if len(rows) >= _MANY_ROWS else []
    return element(
        "div",
        element("table", head, element("tbody", *rows), class_=" ".join(kinds) or None, aria_label=caption),
        class_="wide",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def tag(word: str) -> Markup:
    """A verdict word in its colour; the word itself carries the meaning."""
    return element("span", word, class_=f"tag {_TONES.get(word, '')}".strip())


def number(
    estimate: dict[str, Any], show: Callable[[dict[str, Any]], str], verdict: str = "", note: str = ""
) -> Markup:
    """A table cell with a number, its verdict word and a note below it, or the reason why there is none."""
    missing = estimate["value"] is None and not estimate.get("is_baseline")
    extra = [element("small", words) for words in (tag(verdict) if verdict else "", note) if words]
    class_ = "none" if missing else "n soft" if estimate.get("is_baseline") else "n"
    return element("td", show(estimate), *extra, class_=class_, data_v=sort_value(estimate["value"]))


def sort_value(value: float | None) -> str | None:
    """What `page.js` sorts by: the number that is shown, unrounded and in one unit."""
    return None if value is None else f"{value:.6g}"


def counted(value: float | None, show: Callable[[float], str], otherwise: str = "") -> Markup:
    """A table cell with a plain number, or what is said where there is none."""
    return element("td", otherwise if value is None else show(value), class_="n", data_v=sort_value(value))


def plain(estimate: dict[str, Any], one: Callable[[float], str]) -> Markup:
    return number(estimate, lambda e: fmt.shown(e, one))


def pairs(items: Sequence[tuple[str, Any]]) -> Markup:
    """A list of terms and values; empty values are left out."""
    return element("dl", join(*(join(element("dt", k), element("dd", v)) for k, v in items if v not in ("", None))))
