"""`python docs/generate.py` writes docs/results.md, docs/methods.md and the table in README.md.

Results come from the files in docs/results/, methods from conf/method/ and the component classes. `--check` writes
nothing and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from lorabench.base import CONF  # noqa: E402
from lorabench.merging import presets  # noqa: E402
from lorabench.merging.method import load  # noqa: E402

EXCERPT_ROWS = (
    "base",
    "content_only",
    "style_only",
    "direct",
    "ziplora",
    "duolora",
    "klora",
    "ties",
    "blora",
    "oracle",
)
EXCERPT_METRICS = ("dino/content", "csd/style", "clip_t")
START, END = "<!-- generated: excerpt -->\n", "<!-- end -->"
UNMERGED = ("base", "content_only", "style_only", "oracle")


def main() -> int:
    """Write the pages that have changed, or with --check only name them."""
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
    """Return docs/results.md: the page with its table."""
    rows = results()
    names, metrics = tuple(dict.fromkeys(rows.row)), tuple(dict.fromkeys(rows.metric))
    return (DOCS / "results" / "page.md").read_text().replace("{table}\n", table(rows, names, metrics))


def methods_page() -> str:
    """Return docs/methods.md: presets with their components, then the options of each component."""
    lines = [["method", "description", *presets.GROUPS, "one LoRA file"], ["---"] * 6]
    for name in presets.presets():
        chosen = presets.choices(name)
        components = [f"`{chosen[group]}`" for group in presets.GROUPS]
        lines.append([f"`{name}`", title(name), *components, "yes" if load(name).is_file else "no"])
    text = (DOCS / "methods.template.md").read_text()
    return text.replace("{table}\n", "".join(f"| {' | '.join(line)} |\n" for line in lines)).replace(
        "{ablations}\n", ablations_table()
    )


def title(preset: str) -> str:
    """Return the first comment of a preset's yaml file, with links to arXiv."""
    first = (CONF / "method" / f"{preset}.yaml").read_text().partition("\n")[0].removeprefix("# ")
    return re.sub(r"\(arXiv ([\d.]+)\)", r"([\1](https://arxiv.org/abs/\1))", first)


def ablations_table() -> str:
    """Return the table of all ablations with their settings and presets."""
    lines = [["ablation", "changes", "fits"], ["---"] * 3]
    for name in presets.ablations()[1:]:
        values = ", ".join(f"`{key}={value}`" for key, value in presets.ablation_values(name).items())
        fitting = presets.fitting_presets(name)
        every = len(fitting) == len(presets.presets())
        lines.append([f"`{name}`", values, "all" if every else ", ".join(f"`{each}`" for each in fitting)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
