"""Elements of HTML and SVG from Python. Text is escaped unless it already is `Markup`, so forgetting is safe."""

import html
import unicodedata
from typing import Any

# Control characters, halves of surrogate pairs, and the marks that reorder text: each can forge what a reader sees. The
# last two are no characters at all, which XML refuses.
_UNSEEN = {"Cc", "Cs"}
_REFUSED = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufffe\uffff")
_VOID = {"br", "image", "meta", "path", "use"}


class Markup(str):
    """Text that is already markup."""


def clean(text: Any) -> str:
    """`text` with every character that cannot be seen or stored replaced by the replacement character."""
    return "".join(
        "\ufffd" if (unicodedata.category(c) in _UNSEEN and c not in "\n\t") or c in _REFUSED else c for c in str(text)
    )


def escape(text: Any) -> Markup:
    """`text` as markup; what is markup already stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(clean(text), quote=True))


def join(*parts: Any, between: str = "") -> Markup:
    return Markup(between.join(escape(part) for part in parts if part is not None))


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`; None children and attributes are left out, `class_` becomes `class`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(_number(value)), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>" if name not in {"br", "meta"} else f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def _number(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
