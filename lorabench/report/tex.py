"""table.tex: the table for a paper, to be read with \\input; it needs the package booktabs and nothing else."""

from __future__ import annotations

import re

from lorabench.report.layout import Block, Line, blocks, notes
from lorabench.report.published import MARK
from lorabench.report.table import Table

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "~": r"$\sim$", MARK: r"$\hookrightarrow$",
    "[": "{[}", "]": "{]}", "*": "{*}",  # the first two words after \\ would be its arguments
}  # fmt: skip
NUMBER = re.compile(r"[+-]?\d+(?: \d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")  # 1 571 840 is one
UNKNOWN = re.compile(r"[^\x20-\x7e\xa0-\xff]")  # LaTeX without further packages knows Latin 1


def write_latex(table: Table) -> str:
    """A tabular of all blocks, one below the other, and the footnotes as a paragraph of small print."""
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
    """Head and rows; a rule between frames and methods, and a title of its own for all but the first block."""
    title = [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(block.title)}}}}} \\"] if block.title else []
    head = [] if block.title else [row([escape(name) for name in block.head], width), r"\midrule"]
    lines: list[str] = []
    for before, line in zip([None, *block.lines], block.lines, strict=False):
        if before and (before.kind == "frame") != (line.kind == "frame"):
            lines.append(r"\midrule")
        lines.append(row(texts(line), width))
    return "\n".join([*title, *head, *lines])


def texts(line: Line) -> list[str]:
    """The cells of a line; what others report is set in italics."""
    name, *numbers = (escape(cell) for cell in line.cells)
    cells = [name, *map(typeset, numbers)]
    return [rf"\textit{{{cell}}}" if cell else "" for cell in cells] if line.kind == "reported" else cells


def row(cells: list[str], width: int) -> str:
    return " & ".join([*cells, *[""] * (width - len(cells))]) + r" \\"


def typeset(cell: str) -> str:
    """Numbers in math mode, where a minus is one.

    >>> typeset("-0.01 {[}-0.02, +0.1{]}")
    '$-0.01$ {[}$-0.02$, $+0.1${]}'
    """
    return NUMBER.sub(lambda found: "$" + found.group().replace(" ", r"\,") + "$", cell)


def escape(text: str) -> str:
    """Plain text that LaTeX prints as it is; what it has no letter for becomes a question mark.

    >>> escape("50 % of a_b & c")
    '50 \\\\% of a\\\\_b \\\\& c'
    """
    known = (ESCAPES.get(letter, UNKNOWN.sub("?", letter)) for letter in " ".join(text.split()))
    return "".join(known)
