"""table.tex: the table as LaTeX source for \\input; it needs only the package booktabs."""

from __future__ import annotations

import re

from lorabench.report.layout import Block, Line, blocks, notes
from lorabench.report.published import MARK
from lorabench.report.table import Table

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "~": r"$\sim$", MARK: r"$\hookrightarrow$",
    "[": "{[}", "]": "{]}", "*": "{*}",  # [ and * after \\ would be parsed as its arguments
}  # fmt: skip
NUMBER = re.compile(r"[+-]?\d+(?: \d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")  # 1 571 840 is one number
UNKNOWN = re.compile(r"[^\x20-\x7e\xa0-\xff]")  # without further packages, LaTeX supports Latin 1 only


def write_latex(table: Table) -> str:
    """Return a tabular with all blocks, followed by the notes in small print."""
    parts = blocks(table)
    width = max(len(block.head) for block in parts)
    body = [section(block, width) for block in parts]
    print_below = r"\par ".join(escape(note) for note in notes(table))
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begingroup",
            r"\begin{tabular}{l" + "r" * (width - 1) + "}",
            r"\toprule",
            "\n\\midrule\n".join(body),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\footnotesize\noindent {print_below}\par",
            r"\endgroup",
            "",
        ]
    )


def section(block: Block, width: int) -> str:
    """Return head and rows; a rule separates baseline and oracle rows from methods, later blocks have a title."""
    title = [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(block.title)}}}}} \\"] if block.title else []
    head = [] if block.title else [row([escape(name) for name in block.head], width), r"\midrule"]
    lines: list[str] = []
    for before, line in zip([None, *block.lines], block.lines, strict=False):
        if before and (before.kind == "frame") != (line.kind == "frame"):
            lines.append(r"\midrule")
        lines.append(row(texts(line), width))
    return "\n".join([*title, *head, *lines])


def texts(line: Line) -> list[str]:
    """Return the cells of a line; numbers that publications report are set in italics."""
    name, *numbers = (escape(cell) for cell in line.cells)
    cells = [name, *map(typeset, numbers)]
    return [rf"\textit{{{cell}}}" if cell else "" for cell in cells] if line.kind == "reported" else cells


def row(cells: list[str], width: int) -> str:
    """Return a row of a LaTeX table, filled up to `width` cells."""
    return " & ".join([*cells, *[""] * (width - len(cells))]) + r" \\"


def typeset(cell: str) -> str:
    """Set numbers in math mode, so that a hyphen becomes a minus sign.

    >>> typeset("-0.01 {[}-0.02, +0.1{]}")
    '$-0.01$ {[}$-0.02$, $+0.1${]}'
    """
    return NUMBER.sub(lambda found: "$" + found.group().replace(" ", r"\,") + "$", cell)


def escape(text: str) -> str:
    """Escape plain text for LaTeX; unsupported characters become question marks.

    >>> escape("50 % of a_b & c")
    '50 \\\\% of a\\\\_b \\\\& c'
    """
    known = (ESCAPES.get(letter, UNKNOWN.sub("?", letter)) for letter in " ".join(text.split()))
    return "".join(known)
