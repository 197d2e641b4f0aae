"""What can be seen of a text: the basis of every comparison of labels, column names and examples."""

from __future__ import annotations

import re
import unicodedata

INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # control characters that are no white space
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # from here on those that Unicode calls ignorable
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u2800"  # the braille pattern without a dot
    "]+"
)


def visible(text: str) -> str:
    r"""Return a text as a reader sees it; case stays a difference.

    Invisible characters go, white space of any kind and length becomes one blank and none at either end, and composed
    characters are written in one way (NFC). Example: "\ufeffcafe\u0301\xa0\xa0bar\u200b " becomes "café bar".
    """
    return unicodedata.normalize("NFC", " ".join(INVISIBLE.sub("", text).split()))
