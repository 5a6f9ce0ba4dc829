"""Plots: a PNG with a panel for each thing compared, and styles that tell strategies apart."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emoe.core.errors import InvalidRequestError
from emoe.eval.plots import Line, Panel, draw_panels, import_pyplot, styles_of

PNG = b"\x89PNG\r\n\x1a\n"


def panels() -> list[list[Panel]]:
    lines = (Line(label="emoe", points=((0.4, 1.1), (0.2, 1.3))), Line(label="random", points=((0.2, 7.0), (0.4, 3.0))))
    return [[Panel(title="one", lines=lines, level=1.0, leaving=frozenset({"random"}), shares_along=True)] * 2] * 2


def test_a_png_is_written(tmp_path: Path) -> None:
    draw_panels(panels(), tmp_path / "plot.png", title="a title")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert not import_pyplot().get_fignums()


def test_rows_of_panels_may_differ_in_length(tmp_path: Path) -> None:
    first, second = panels()
    draw_panels([first, second[:1]], tmp_path / "plot.png", title="")
    assert (tmp_path / "plot.png").exists()


def test_kin_share_colour_and_marker_and_differ_in_line() -> None:
    labels = ["random", "emoe", "emoe-shuffled", "emoe-calibrated", "emoe-kept"]
    styles = styles_of(labels)
    kin = [styles[label] for label in labels[1:]]
    assert len({(style["color"], style["marker"]) for style in kin}) == 1
    assert len({(style["linestyle"], style["linewidth"]) for style in kin}) == 4
    assert styles["random"]["color"] != styles["emoe"]["color"]


def test_a_label_keeps_its_colour_whoever_else_is_drawn() -> None:
    order = ["emoe", "oracle"]
    alone, beside = styles_of(["oracle"], order), styles_of(["random", "oracle", "emoe"], order)
    assert alone["oracle"] == beside["oracle"]
    assert len({style["color"] for style in beside.values()}) == 3


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="no-folder"):
        draw_panels(panels(), tmp_path / "no-folder" / "plot.png", title="")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidRequestError, match=r"emoe\[eval\]"):
        import_pyplot()
