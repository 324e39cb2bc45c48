"""`python docs/generate.py` writes docs/results.md, docs/methods.md, and the figures in README.md and other pages.

    python docs/generate.py                            # write the pages that have changed
    python docs/generate.py --check                    # write nothing; exit with 1 if a page or its text is out of date
    python docs/generate.py --from outputs/tuning      # copy a finished experiment into docs/results/ first; that of
                                                       # all_methods gives the figure in README.md too

Results come from the files in docs/results/ (result_files.py), figures in prose too (figures.py), methods from
conf/method/ and the component classes. Text that interprets a result has the commit of its measurement in a comment,
`<!-- text on all_methods: 3727787 -->`, or `unmeasured` if it is on an earlier one. After a new measurement the text is
named as out of date until it is read again and the comment is changed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
sys.path.insert(0, str(DOCS))

import grid  # noqa: E402
import result_files  # noqa: E402
from figures import with_figures  # noqa: E402

from lorabench.base import CONF  # noqa: E402
from lorabench.merging import presets  # noqa: E402
from lorabench.merging.method import load  # noqa: E402
from lorabench.report import planned  # noqa: E402

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
EXCERPT_METRICS = ("both", "truth/content", "truth/style", "dino/content", "csd/style")
# Metrics of tables that have `both`
SHOWN = (*EXCERPT_METRICS, "both_similarity", "copy/content", "diversity", "clip_t")
START, END = "<!-- generated: excerpt -->\n", "<!-- end -->"
INDEX, PAGE, RESULTS = DOCS / "results" / "README.md", DOCS / "results" / "page.md", DOCS / "results.md"
PLACE = re.compile(r"^\{(\w+)\}\n", re.MULTILINE)  # place of a result in page.md
STATE = re.compile(r"<!-- state of (\w+) -->.*?<!-- end -->")
TEXT = re.compile(r"<!-- text on (\w+): (\S+) -->")
UNMEASURED = "unmeasured"
UNMERGED = ("base", "content_only", "style_only", "oracle")


def main(words: list[str] | None = None) -> int:
    """Write the pages that have changed, or with --check only name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="finished experiment to copy first")
    parser.add_argument("--command", help="the command that made it; default: python run.py experiments=<its name>")
    args = parser.parse_args(words)
    if args.source:
        print(copied := result_files.copy(args.source, args.command))
        if copied.name == grid.NAME:
            print(grid.draw(args.source))
    changed = {path: text for path, text in pages().items() if not path.is_file() or path.read_text() != text}
    for path, text in changed.items():
        if args.check:
            print(f"{path.name} is out of date; use python docs/generate.py")
        else:
            path.write_text(text)
            print(path)
    old = outdated_texts()
    print("".join(f"{line}\n" for line in old), end="")
    return int(args.check and bool(changed or old))


def pages() -> dict[Path, str]:
    """Return the text of every page that has generated parts."""
    whole = {RESULTS: results_page(), DOCS / "methods.md": methods_page(), INDEX: index()}
    prose = {path: path.read_text() for path in written() if path not in whole and "template" not in path.name}
    prose[DOCS.parent / "README.md"] = with_excerpt(prose[DOCS.parent / "README.md"])
    return whole | {path: STATE.sub(state, with_figures(text)) for path, text in prose.items()}


def written() -> list[Path]:
    """Return the pages with text."""
    return [DOCS.parent / "README.md", DOCS.parent / "experiments" / "README.md", *sorted(DOCS.glob("*.md"))]


def outdated_texts() -> list[str]:
    """Return a line for each text that interprets another measurement of an experiment than that in docs/results/."""
    found = []
    for path in [PAGE, *(path for path in written() if path != RESULTS)]:
        for name, commit in TEXT.findall(path.read_text()):
            now = (result_files.made(name) or {"commit": UNMEASURED})["commit"]
            if commit != now:
                found.append(f"{path.name}: the text on {name} is of {commit}; read it again and write {now} there")
    return found


def state(place: re.Match[str]) -> str:
    """Return whether an experiment has been measured, with a link, between the markers of its place."""
    made = result_files.made(place[1])
    text = "not measured with this base model yet"
    if made is not None:
        text = f"[measured](../docs/results.md#{place[1]}) on {made['base'].partition(', weights')[0]}"
    return f"<!-- state of {place[1]} -->{text}<!-- end -->"


def table(rows: pd.DataFrame, names: tuple[str, ...], metrics: tuple[str, ...]) -> str:
    """Return a Markdown table with one line per name and one column per metric."""
    cells = {(row.row, row.metric): cell(row) for row in rows.itertuples()}
    lines = [["row", *metrics], ["---", *(["---:"] * len(metrics))]]
    for name in names:
        label = name if name in UNMERGED else f"`{name}`"
        lines.append([label, *(cells.get((name, metric), "") for metric in metrics)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(row) -> str:
    """Format a mean with its interval, or with its separation from the direct merge."""
    mean = f"{row.mean:.3f}"
    if row.separated in ("yes", "no"):
        return f"{mean} ~" if row.separated == "no" else f"**{mean}** ({row.difference:+.3f})"
    return f"{mean} [{row.low:.2f}, {row.high:.2f}]" if pd.notna(row.low) else mean


def with_excerpt(page: str) -> str:
    """Return README.md with the excerpt of the results between its markers."""
    head, rest = page.split(START)
    tail = rest.split(END)[1]
    rows = pd.read_csv(result_files.FOLDER / "all_methods" / result_files.SCORES)
    shown, metrics = set(rows["row"]), set(rows["metric"])
    names = tuple(name for name in EXCERPT_ROWS if name in shown)
    return head + START + table(rows, names, tuple(each for each in EXCERPT_METRICS if each in metrics)) + END + tail


def results_page() -> str:
    """Return docs/results.md: the page, with each result in its place."""
    text = PAGE.read_text()
    return with_figures(PLACE.sub(lambda place: result(place[1]), text))


def result(name: str) -> str:
    """Return the heading and the tables of a result with its command, base model and commit."""
    title, made = f"### `{name}`\n\n", result_files.made(name)
    if made is None:
        return f"{title}Not measured yet: `python run.py experiments={name}`.\n"
    parts = [f"{title}`{made['command']}`; base model: {made['base']}; commit {made['commit']}, {made['date']}.\n"]
    for file in sorted((result_files.FOLDER / name).iterdir()):
        part = file.name.removesuffix(result_files.SCORES).rstrip(".")
        heading = f"#### {part.replace('_', ' ')}\n\n" if part and part != file.name else ""
        if file.name.endswith(result_files.SCORES):
            rows = pd.read_csv(file)
            parts.append(heading + table(rows, tuple(dict.fromkeys(rows["row"])), shown(rows)))
            all_scores = f"All scores: [{file.name}](results/{name}/{file.name})."
            parts.append(f"{legend(rows, made.get('reference', ''))} {all_scores}\n")
            others = file.with_name(file.name.replace(result_files.SCORES, result_files.COMPARISONS))
            parts += comparisons(pd.read_csv(others)) if others.is_file() else []
        elif file.suffix == ".md":
            parts.append(re.sub(r"^#", "####", file.read_text(), flags=re.MULTILINE).rstrip() + "\n")
    return "\n".join(parts)


def legend(rows: pd.DataFrame, reference: str) -> str:
    """Return the sentence below a table: the number of pairs, and what its marks mean."""
    least, most = int(rows["pairs"].min()), int(rows["pairs"].max())
    text = f"Means over {least if least == most else f'{least} to {most}'} pairs with 95 % intervals."
    if rows["separated"].isin(("yes", "no")).any():
        text += f" Bold: separated from `{reference}`, with the difference; `~`: not separated."
    return text


def shown(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the metrics in the table of a report: the main ones if it has `both`, else all."""
    metrics = tuple(dict.fromkeys(rows["metric"]))
    return tuple(each for each in SHOWN if each in metrics) if "both" in metrics else metrics


def comparisons(lines: pd.DataFrame) -> list[str]:
    """Return a table per family of planned comparisons: the differences with their intervals."""
    parts, metrics = [], shown(lines)
    for family, own in lines.groupby("family", sort=False):
        rows = [["comparison", *metrics], ["---", *(["---:"] * len(metrics))]]
        for (label, against), of_rows in own.groupby(["label", "against"], sort=False):
            cells = {line.metric: compared(line) for line in of_rows.itertuples()}
            rows.append([f"`{label}` - `{against}`", *(cells.get(metric, "") for metric in metrics)])
        parts.append(f"{planned.title(str(family))}:\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return parts


def compared(line) -> str:
    """Format a difference with its interval; a tilde marks one that is not separated from zero."""
    if pd.isna(line.difference):
        return ""
    mark = "" if line.separated is True or str(line.separated) == "True" else " ~"
    return f"{line.difference:+.3f} [{line.difference_low:+.2f}, {line.difference_high:+.2f}]{mark}"


def index() -> str:
    """Return docs/results/README.md: the command, the base model and the commit of each folder."""
    lines = [["folder", "command", "base model", "commit", "date"], ["---"] * 5]
    for folder in sorted(path for path in result_files.FOLDER.iterdir() if path.is_dir()):
        made = result_files.made(folder.name) or {}
        lines.append([f"`{folder.name}/`", f"`{made['command']}`", made["base"], made["commit"], made["date"]])
    rows = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        "Result files behind [docs/results.md](../results.md), copied by `python docs/generate.py --from "
        f"outputs/<name>`; `scores.csv` has one line per row and metric.\n\n{rows}"
    )


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
