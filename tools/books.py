"""Cuts plain-text books into stories: what the demo model reads.

This file owns the text: what is a title, a story, page furniture, and how quotes and dashes are
written. It knows nothing of tokens or models.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NUMBER = re.compile(r"[IVXLC]+\.?|\d+\.?")
_SMALL_WORDS = re.compile(
    "an?|and|as|at|be|but|by|did|for|found|from|got|had|has|he|her|him|his|how|in|into|is|it|its|made|not|"
    "of|off|on|or|out|over|s|she|that|the|their|they|to|up|was|went|were|what|who|why|with"
)
_NOT_A_STORY = re.compile(
    r"(?i)\b(preface|introduction|contents|illustrations|notes and references|transcriber|"
    r"how to get into this book|hesitating purchaser|dedicat)"
)
_SOURCE_NOTE = re.compile(r"[\[(][^\])]*[\])]\.?|(?i:the end\.?|finis\.?)|[\W\d_]*")
_SHORTEST_STORY = 600  # characters; anything shorter is a verse, a caption, a title page


def normalize(line: str) -> str:
    """Brings one line to the spelling that the model learns: ASCII quotes, one kind of dash."""
    line = line.translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x00A0: " "})
    line = re.sub(r"\s*(?:-{2,}|\u2014+|\u2015+)\s*", "\u2014", line)
    line = re.sub(r"\[[^\]]*\]|\(\d+\)|[_|]", "", line)
    return re.sub(r"\s+", " ", line).strip()


def is_heading(line: str) -> bool:
    """Tells a title ("THE FROG-PRINCE", "Chapter I. Down the Hole") from a paragraph."""
    if len(line) > 90 or line[:1] in "\"'(" or not re.search(r"[A-Za-z]{2}", line):
        return False
    if re.match(r"(?i)(chapter\b|(preface|contents|introduction|notes)\.?$)", line):
        return True
    if line.upper() == line:
        return len(line) >= 4
    titled = " " in line and _share_of_titled_words(line) == 1
    return titled and line[-1] not in ",;:!?\"'\u2014"


def _share_of_titled_words(line: str) -> float:
    """The share of words that a title would write so: capitalized, or small words like "of"."""
    words = re.findall(r"[A-Za-z]+", line)
    titled = [word for word in words if word[0].isupper() or _SMALL_WORDS.fullmatch(word)]
    return len(titled) / max(1, len(words))


def _is_list_of_titles(line: str) -> bool:
    """Tells a table of contents, joined into one paragraph, from prose."""
    return len(line) > 120 and _share_of_titled_words(line) > 0.8


def paragraphs_of(text: str) -> list[str]:
    """Joins hard-wrapped lines: a paragraph ends at an empty line or, in unwrapped books, at any."""
    lines = text.replace("\r\n", "\n").split("\n")
    wrapped = sum(1 for a, b in pairwise(lines) if a.strip() and b.strip())
    blocks = re.split(r"\n\s*\n", "\n".join(lines)) if wrapped > len(lines) // 10 else lines
    return [line for line in (normalize(block) for block in blocks) if line]


def split_stories(text: str) -> list[str]:
    """Cuts a book into stories or chapters, without titles, front matter and notes.

    Args:
        text: the book as plain text.

    Returns:
        The stories in order; paragraphs are separated by one empty line.
    """
    sections: list[tuple[str, list[str]]] = [("", [])]
    for line in paragraphs_of(text):
        if _NUMBER.fullmatch(line):
            continue
        if is_heading(line):
            sections.append((line, []))
        elif not _SOURCE_NOTE.fullmatch(line) and not _is_list_of_titles(line):
            sections[-1][1].append(line)
    stories: list[str] = []
    for place, (title, body) in enumerate(sections):
        if _NOT_A_STORY.search(title):
            if re.search("(?i)notes", title) and place > len(sections) // 2:
                break
            continue
        while body and len(body[-1]) < 90 and _share_of_titled_words(body[-1]) == 1:
            body.pop()  # where the tale was taken from: "From the Mabinogion."
        story = "\n\n".join(body)
        # Printers set the first words in capitals: "ONCE upon a time".
        story = re.sub(r"^[A-Z]{2,}(?=[ ,])", lambda found: found[0].capitalize(), story)
        if len(story) >= _SHORTEST_STORY:
            stories.append(story)
        elif story and stories:
            stories[-1] += "\n\n" + story
    return stories


def read_books(folder: Path, held_out: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Reads every `*.txt` of a folder into (stories to train on, stories held out)."""
    books = sorted(folder.glob("*.txt"))
    if not books:
        raise SystemExit(f"{folder}: no .txt files; --data wants a folder with one book per file")
    train: list[str] = []
    held: list[str] = []
    for book in books:
        stories = split_stories(book.read_text(encoding="utf-8"))
        (held if book.name.startswith(held_out) else train).extend(stories)
    if not train or not held:
        raise SystemExit(
            f"{folder}: {len(train)} stories to train on and {len(held)} held out; both are "
            f"needed (held-out books are those whose names start with {', '.join(held_out)})"
        )
    return train, held
