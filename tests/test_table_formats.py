"""Tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made_run import make_runs, make_table, read_table

from lorabench.report import write_joint_report
from lorabench.report.layout import blocks
from lorabench.report.tex import escape, write_latex
from lorabench.report.text import write_csv, write_markdown


def test_csv_has_every_number(tmp_path: Path) -> None:
    of = make_table(tmp_path, "direct", "duolora")
    (tmp_path / "table.csv").write_text(write_csv(of))
    found = read_table(tmp_path)
    for line in of.lines.to_dict("records"):
        for part in ("mean", "low", "high", "bca_low", "bca_high", "difference", "p", "p_holm", "rank", "rank_high"):
            name = line["metric"] if part == "mean" else f"{line['metric']}_{part}"
            assert found.loc[line["label"], name] == pytest.approx(line[part], rel=1e-5, nan_ok=True)
    assert found.loc[["direct", "duolora"], "dino/content_rank"].tolist() == [2, 1]
    assert np.isnan(found.loc["base", "dino/content_rank"])


def test_markdown_shows_value_difference_and_rank(tmp_path: Path) -> None:
    of = make_table(tmp_path, "direct", "ziplora", "duolora")
    text = write_markdown(of)
    _, differences, *orders, ranks = blocks(of)
    assert text.startswith("| method |") and "**Difference to direct**" in text and "**Rank**" in text
    assert [line.cells[0] for line in differences.lines] == ["ziplora", "duolora"]
    assert re.fullmatch(r"\+0\.\d{3} \[\+0\.\d{3}, \+0\.\d{3}\]", differences.lines[1].cells[1])
    assert [line.cells[1] for line in ranks.lines if line.cells[0] == "duolora"] == ["1 [1, 1]"]
    assert [block.title for block in orders] == [
        f"Orders published by {name} (first row ahead)" for name in ("DuoLoRA", "ZipLoRA")
    ]
    assert all(len(line.cells) == len(block.head) for block in blocks(of) for line in block.lines)
    assert min(of.lines["mean"] - of.lines["bca_low"]) > 0 and min(of.lines["bca_high"] - of.lines["mean"]) > 0
    single = blocks(make_table(tmp_path / "single", "duolora"))
    assert len(single) == 1  # nothing to compare with


def document(body: str) -> str:
    return "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\\end{document}\n"


def test_latex_is_whole(tmp_path: Path) -> None:
    """Braces and environments are closed, every row has all cells, nothing is left that LaTeX would read as its own."""
    text = write_latex(make_table(tmp_path, "direct", "duolora no_cycle", "duolora"))
    for symbol in ("{}", "$"):
        plain = re.sub(r"\\[{}$]", "", text)
        assert plain.count(symbol[0]) == plain.count(symbol[-1]) and (symbol != "$" or plain.count("$") % 2 == 0)
    for kind in ("begin", "end"):
        assert re.findall(rf"\\{kind}{{(\w+)}}", text) == ["tabular"]
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    [columns] = re.findall(r"\\begin{tabular}{(l?r+)}", text)
    rows = [line for line in body.splitlines() if line.endswith(r"\\") and r"\multicolumn" not in line]
    assert rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    assert r"duolora no\_cycle" in text and "_" not in re.sub(r"\\_", "", text)
    assert "\\textit{$\\hookrightarrow$ reported: arXiv 2504.13206, table ablation" in text
    assert r"\emph{Difference to direct}" in text and "95 \\%" in text and text.isascii()
    assert not re.search(r"\\\\\s*[\[*]", text)  # would be an argument of the line break


def test_latex_escapes_everything() -> None:
    hostile = '\\input{x} $a$ & #1 %c _d ^e ~ <f> | "g" [h]* {i} 漢 ü \x07\n'
    text = escape(hostile)
    left = re.sub(r"\\(textbackslash|textasciicircum|textless|textgreater|textbar)\{\}|\\[{}$&#%_]|\$\\sim\$", "", text)
    assert not set('\\$&#%_^~<>|"\n') & set(left) and "?" in left and "ü" in left


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    write_joint_report(make_runs(tmp_path, "direct", "duolora no_cycle", "duolora"), tmp_path / "joint")
    (tmp_path / "main.tex").write_text(
        document("\\input{joint/table}\n" + escape("\\ & % $ # _ { } ~ ^ < > | [ ] * ü é"))
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
