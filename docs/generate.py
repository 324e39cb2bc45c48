"""`python docs/generate.py` writes docs/results.md, docs/methods.md and the table in README.md.

Results come from the files in docs/results/, methods from conf/method/ and the component classes. `--check` writes
nothing and exits with 1 if a page differs from what would be written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

EXCERPT_ROWS = ("base", "content_only", "style_only", "direct", "ziplora", "duolora", "klora", "ties", "blora", "oracle")
EXCERPT_METRICS = ("dino/content", "csd/style", "clip_t")
START, END = "<!-- generated: excerpt -->\n", "<!-- end -->"
UNMERGED = ("base", "content_only", "style_only", "oracle")


def main() -> int:
    pages = {
        DOCS / "results.md": results_page(),
        DOCS / "methods.md": methods_page(),
        DOCS.parent / "README.md": with_excerpt((DOCS.parent / "README.md").read_text()),
    }
    changed = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in changed:
            print(f"{path.name} is out of date; use python docs/generate.py")
        return int(bool(changed))
    for path in changed:
        path.write_text(pages[path])
        print(path)
    return 0


def results() -> pd.DataFrame:
    """Return the rows of all_methods.csv in their order."""
    return pd.read_csv(DOCS / "results" / "all_methods.csv")


def table(rows: pd.DataFrame, names: tuple[str, ...], metrics: tuple[str, ...]) -> str:
    """Return a Markdown table with one line per name and one column per metric."""
    cells = {(row.row, row.metric): cell(row) for row in rows.itertuples()}
    lines = [["row", *metrics], ["---", *(["---:"] * len(metrics))]]
    for name in names:
        label = name if name in UNMERGED else f"`{name}`"
        lines.append([label, *(cells[name, metric] for metric in metrics)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(row) -> str:
    """Format a mean with its interval, or with its separation from the direct merge."""
    mean = f"{row.mean:.3f}"
    if pd.notna(row.low):
        return f"{mean} [{row.low:.2f}, {row.high:.2f}]"
    return f"{mean} ~" if row.separated == "no" else f"**{mean}** ({row.difference:+.3f})"


def with_excerpt(page: str) -> str:
    """Return README.md with the excerpt of the results between its markers."""
    head, rest = page.split(START)
    tail = rest.split(END)[1]
    return head + START + table(results(), EXCERPT_ROWS, EXCERPT_METRICS) + END + tail


def results_page() -> str:
    rows = results()
    names, metrics = tuple(dict.fromkeys(rows.row)), tuple(dict.fromkeys(rows.metric))
    return (DOCS / "results" / "page.md").read_text().replace("{table}\n", table(rows, names, metrics))


if __name__ == "__main__":
    sys.exit(main())
