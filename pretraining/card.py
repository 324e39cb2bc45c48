"""Generated parts of a model card: text between <!-- name --> and <!-- end of name -->."""

from __future__ import annotations

from pathlib import Path


def fill(card: Path, name: str, text: str) -> None:
    """Replace a generated part of a card; nothing happens if the card or the part does not exist."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    if not card.is_file() or begin not in (old := card.read_text()):
        return
    before, _, rest = old.partition(begin)
    card.write_text(f"{before}{begin}{text}{end}{rest.partition(end)[2]}")
