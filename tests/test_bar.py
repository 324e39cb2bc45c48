"""The progress bar: it appears with the first progress and ends at 100 %."""

from __future__ import annotations

import pytest
from rank_jobs import fine, item

from lorabench.engine.bar import Bar
from lorabench.engine.job import Make


def test_it_appears_with_first_work_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(4.0) as bar:
        bar.start("merge", [Make(None, (item(number, fine),)) for number in range(2)])  # pyright: ignore[reportArgumentType]
        bar.advance(0, 0)
        assert capsys.readouterr().err == ""
        bar.complete(0)
        assert "merge 0/2" in capsys.readouterr().err
        bar.complete(1)
        bar.reach(3.0)
        bar.reach(2.0)  # late news
        bar.finish()
        assert bar.bar is not None and bar.bar.n == 4.0
    last = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert last.startswith("report ") and "100%" in last and "left" in last


def test_error_before_any_work_has_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), Bar(1.0, "merge"):
        raise ValueError
    assert capsys.readouterr().err == ""
