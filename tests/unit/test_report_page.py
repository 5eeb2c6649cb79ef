"""The pictures and the page: axes are labelled, colours are right, nothing escapes and nothing is loaded."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradstab.events import Records, Series, layer_tags
from gradstab.measure.verdict import Finding, Remedy, Verdict
from gradstab.report import curves, figures, multiples, page, style, table
from gradstab.report.digest import Curve, Digest, digest, heatmap
from gradstab.report.profiles import Profiles
from gradstab.report.runs import Run
from gradstab.report.sheets import sheets
from gradstab.wording import printable

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Strict(HTMLParser):
    """Collects tags and texts; fails on tags that do not close what is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def made_run(n_layers: int = 4, steps: int = 20, *, broken: bool = False, name: str = "run") -> Run:
    """A run with everything that pictures show."""
    rng = np.random.default_rng(n_layers)
    every, some = np.arange(steps), np.arange(0, steps, 5)
    run = Run(Path(name), name, {"status": "completed", "test_accuracy": 0.5})
    run.layers = layer_tags(["hidden"] * (n_layers - 1) + ["output"])

    def norms(at: np.ndarray, width: int) -> Series:
        values = np.exp(rng.normal(size=(len(at), width), scale=3))
        if broken:
            values[-1], values[:, 0], values[0, -1] = math.nan, 0.0, math.inf
        return Series(at, values)

    vectors = {"grad_norm": norms(every, n_layers), "signal_grad_norm": norms(some, n_layers)}
    if n_layers > 1:
        for quantity in ("activation_std", "activation_mean", "dead_fraction", "saturated_fraction"):
            vectors[quantity] = Series(some, rng.random((len(some), n_layers - 1)))
    tags = ("train/loss", "test/loss", "test/accuracy", "global_grad_norm/pre_clip", "global_grad_norm/post_clip")
    scalars = {tag: Series(every, rng.random(steps)) for tag in (*tags, "clip/triggered")}
    if broken:
        scalars["train/loss"].values[-1] = math.nan
    run.records = Records(scalars, vectors, run.layers)
    run.theory = {"signal_grad_norm": np.linspace(0.1, 1, n_layers - 1).tolist()} if n_layers > 1 else {}
    return run


def _all_figures(run: Run) -> dict[str, Figure]:
    return {drawing.key: drawing.figure for drawing in page.drawings(digest(run), run)}


@pytest.mark.parametrize(("layers", "steps"), [(1, 1), (2, 3), (4, 20), (301, 6)])
@pytest.mark.parametrize("broken", [False, True])
def test_every_chart_has_labels_on_its_axes_and_a_legend(layers: int, steps: int, broken: bool) -> None:
    drawn = _all_figures(made_run(layers, steps, broken=broken))
    assert set(drawn) == {"heatmap", "depth_profile", "loss_accuracy", "clipping"} | (
        {"activations"} if layers > 1 else set()
    )
    for key, figure in drawn.items():
        assert all(axes.get_ylabel() for axes in figure.axes), key
        charts = [axes for axes in figure.axes if axes.get_subplotspec() is not None]
        assert charts[-1].get_xlabel() in ("step", "layer (0 is nearest the input)"), key
        labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        if key == "heatmap":
            # A run without any finite norm has no scale.
            nothing = broken and layers == steps == 1
            assert figure.axes[-1].get_ylabel() == ("layer" if nothing else "log₁₀ ‖∂L/∂W‖")
            assert set(labels) == ({"0", "inf", "NaN"} if broken and steps > 2 and layers > 1 else set(labels))
        else:
            assert labels, key
        if broken and key == "depth_profile":
            assert "inf or NaN" in labels
        if not broken and layers > 1 and key == "depth_profile":
            assert "theory, step 0" in labels
        ET.fromstring(style.inline(figure, "p", "label"))


def test_the_heatmaps_pixels_are_its_values() -> None:
    values = np.array([[1e-4, 1.0, math.nan], [1e4, 0.0, math.inf]])
    data = heatmap(Series(np.arange(2), values), ["a", "b", "c"], "grad_norm")
    image = figures.rgba(data, (-4, 4))
    colours = mpl.colormaps["viridis"]
    np.testing.assert_allclose(image[0, 0], colours(0.0))
    np.testing.assert_allclose(image[0, 1], colours(1.0))
    np.testing.assert_allclose(image[1, 0], colours(0.5), atol=0.01)
    assert tuple(image[1, 1]) == to_rgba(style.ZERO)
    assert tuple(image[2, 0]) == to_rgba(style.NAN)
    assert tuple(image[2, 1]) == to_rgba(style.INF)
    (axes, _) = figures.heatmap(data).axes
    np.testing.assert_allclose(axes.images[0].get_array(), figures.rgba(data, data.range))
    assert list(axes.images[0].get_extent()) == [-0.5, 1.5, -0.5, 2.5]


def test_the_theorys_line_meets_the_measured_top_layer() -> None:
    run = made_run(6)
    data = digest(run)
    assert data.depth is not None
    (axes,) = figures.depth_profile(data.depth, data.theory).axes
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--" and line.get_color() == style.INK]
    assert line.get_ydata()[-1] == pytest.approx(run.records.vectors["signal_grad_norm"].values[0, 4])
    assert line.get_ydata()[0] == pytest.approx(0.1 * line.get_ydata()[-1])


def test_a_spike_reaches_the_top_of_the_curve() -> None:
    run = made_run(2, 5000)
    run.records.scalars["train/loss"].values[1234] = 1e6
    fig = curves.loss(digest(run).curves)
    assert fig is not None
    assert fig.axes[0].get_ylim()[1] >= 1e6


def _rendered(*runs: Run, keys: tuple[str, ...] = ()) -> str:
    digests = [digest(run) for run in runs]
    pairs = enumerate(zip(runs, digests, strict=True))
    sections = [page.section(run, data, i, keys, detailed=True) for i, (run, data) in pairs]
    bar = page.add_small_multiples(sections, digests) if len(runs) > 1 else Markup()
    return page.render("title", sections, keys, bar, detailed=True)


@pytest.fixture(scope="module")
def pages() -> dict[bool, str]:
    """The page of one run and, under True, that of two."""
    one = made_run()
    return {False: _rendered(one), True: _rendered(made_run(3, name="a"), made_run(3, broken=True, name="b"))}


HOSTILE = "</script><script>alert(1)</script>\"'&<b>$\\frac{$\x00\x1b[31m\udc80"


def _hostile() -> Run:
    run = made_run(name="hostile")
    run.name = run.record["status"] = run.record["reason"] = HOSTILE
    run.settings = {HOSTILE: HOSTILE, "model": HOSTILE, "act": "relu"}
    run.layers = [printable(HOSTILE + str(i)) for i in range(4)]
    run.records.layers = run.layers
    run.notes = [HOSTILE]
    run.theory = {"reason": HOSTILE}
    finding = Finding(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,) * 5, 0, 1, 2, math.nan, 2.0, HOSTILE, HOSTILE, HOSTILE)
    run.verdict = Verdict(3, (finding,), (Remedy((HOSTILE,), HOSTILE, 0.5),))
    return run


@pytest.mark.parametrize("several", [False, True])
def test_names_from_configuration_stay_text(several: bool) -> None:
    runs = (_hostile(), Run(Path(), "bare")) if several else (_hostile(),)
    text = _rendered(*runs, keys=(HOSTILE,) if several else ())
    text.encode()
    parsed = Strict(text)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 1
    assert not any(tag == "b" for tag, _ in parsed.tags)
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    assert any("</script><script>alert(1)" in content for where, content in parsed.texts if where != "script")
    assert "\x00" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("several", [False, True])
def test_the_page_loads_nothing_and_every_id_is_its_own(pages: dict[bool, str], several: bool) -> None:
    text = pages[several]
    parsed = Strict(text)
    ids = [attrs["id"] for _, attrs in parsed.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attrs in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            target = attrs.get(name) or "#"
            assert target.startswith(("#", "data:image/png;base64,")), (tag, target)
            if target.startswith("#") and target != "#":
                assert target[1:] in ids
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert not re.search(r"https?:|@import|//cdn|url\((?!#)", text)
    assert not any(tag in ("link", "iframe", "object", "img") for tag, _ in parsed.tags)


def test_a_finding_shows_rule_layers_steps_value_threshold_and_remedies() -> None:
    run = made_run()
    tags = tuple(f"{i:02d}_hidden" for i in range(16))
    finding = Finding(
        "vanishing", "depth_span", "signal_grad_norm", tags, 5, 250, 7, 11.97, 2.0, "verdict.k", "why", "expects it"
    )
    run.verdict = Verdict(250, (finding,), (Remedy(("init=critical", "act=tanh"), "at the edge", 0.987),))
    words = " ".join(content for _, content in Strict(_rendered(run)).texts)
    for expected in ("depth_span", "signal_grad_norm", "00_hidden … 15_hidden (16 layers)", "5 to 250", "11.97"):
        assert expected in words
    for expected in ("threshold 2", "verdict.k", "why", "expects it", "init=critical act=tanh", "0.987", "held at 7"):
        assert expected in words


def test_the_summary_counts_every_label_of_every_run() -> None:
    runs = [made_run(3, name=name) for name in ("a", "b")]
    for run, kinds in zip(runs, (("vanishing", "dead_units"), ("dead_units",)), strict=True):
        text = ("rule", "quantity", (), 0, 1, 1, 1.0, 1.0, "key", "why", "theory")
        run.verdict = Verdict(1, tuple(Finding(kind, *text) for kind in kinds), ())
    sections = [page.section(run, digest(run), i, (), detailed=False) for i, run in enumerate(runs)]
    text = page.render("title", sections, (), Markup(), detailed=False)
    assert any("2 completed; 2 dead units, 1 vanishing" in content for _, content in Strict(text).texts)


def test_a_column_says_how_many_steps_it_shows_the_largest_of() -> None:
    run = made_run(steps=1441)
    first, *_ = page.drawings(digest(run), run)
    assert first.caption.endswith("the largest of 4 recorded steps.")


def test_unevenly_spaced_steps_each_have_a_column_that_is_seen_and_named() -> None:
    run, steps = made_run(), np.array([0, 1, 2, 10, 11, 500, 501, 502, 10_000])
    run.records.vectors["grad_norm"] = Series(steps, np.ones((9, 4)))
    data = digest(run)
    first, *_ = page.drawings(data, run)
    axes = first.figure.axes[0]
    assert axes.images[0].get_extent()[:2] == [-0.5, 8.5]
    name = axes.xaxis.get_major_formatter()
    assert [name(at, 0) for at in (-1, *range(9), 9)] == ["", *(f"{step:,}" for step in steps), ""]
    assert "unevenly spaced" in first.caption
    assert "unevenly spaced" in axes.get_xlabel()
    assert "largest of" not in first.caption
    small = multiples.Drawer(multiples.scales([data])).draw(data).axes[0]
    assert small.get_xlim() == (-0.5, 8.5)


def test_in_the_page_every_colour_is_a_variable_that_both_modes_define(pages: dict[bool, str]) -> None:
    text = pages[False] + pages[True]
    css = (Path(page.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark")
    for variable in style.VARIABLES.values():
        assert f"{variable}:" in light
        assert f"{variable}:" in dark
    svgs = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"(?<!&)#[0-9a-f]{6}\b", svgs)) == set()


def test_all_text_of_charts_is_in_the_pages_font(pages: dict[bool, str]) -> None:
    texts = re.findall(r"<text[^>]*>", "".join(re.findall(r"<svg.*?</svg>", pages[False] + pages[True], re.DOTALL)))
    assert len(texts) > 50
    assert all("var(--font)" in text for text in texts)
    assert "'DejaVu Sans'" not in pages[False] + pages[True]


def test_of_a_watched_loop_nobody_says_that_it_does_not_clip() -> None:
    run = made_run()
    del run.records.scalars["global_grad_norm/post_clip"]
    for tag in [tag for tag in (*run.records.scalars, *run.records.vectors) if "clip" in tag and "pre" not in tag]:
        run.records.scalars.pop(tag, None)
        run.records.vectors.pop(tag, None)
    captions = []
    for record in ({}, {"watched": True}):
        run.record = record
        (drawing,) = [d for d in page.drawings(digest(run), run) if d.key == "clipping"]
        captions.append(drawing.caption)
    assert "no clipping was configured" in captions[0]
    assert "no clipping" not in captions[1]


def test_marks_of_spreads_that_are_zero_are_explained() -> None:
    run = made_run()
    run.records.vectors["activation_std"].values[:, 0] = 0.0
    labels = [text.get_text() for text in _all_figures(run)["activations"].legends[0].get_texts()]
    assert labels[-1] == "0"


def test_a_run_on_its_way_shows_what_was_recorded_last() -> None:
    run = made_run()
    run.record = {"status": "running"}
    cells = dict(zip(table.RESULTS, table.row(run, 0, [], 0.25).cells, strict=True))
    last = {tag: series.values[-1] for tag, series in run.records.scalars.items()}
    assert float(cells["train loss"].sort) == last["train/loss"]
    assert float(cells["test accuracy"].sort) == last["test/accuracy"]
    assert cells["clipped"].text == "25.00 %"
    assert ("train loss", f"{table.number(last['train/loss'])}, as recorded last") in table.facts(run)
    # What run.json says of the whole run goes before, also where the end of the records is lost.
    run.record = {"status": "completed", "train_loss": 7.0, "clipped_steps": 10, "steps": 100}
    cells = dict(zip(table.RESULTS, table.row(run, 0, [], 0.25).cells, strict=True))
    assert (cells["train loss"].text, cells["clipped"].text, cells["steps done"].text) == ("7", "10.00 %", "100")


def test_names_in_any_script_are_drawn_without_a_warning() -> None:
    run = made_run(4)
    run.layers = ["层一", "слой", "שכבה", "層" * 40]
    data = digest(run)
    assert data.heatmap is not None
    figure = figures.heatmap(data.heatmap)
    assert "层一" in style.inline(figure, "p", "label")
    assert style.picture(figure, "png", "層").startswith(b"\x89PNG")


def test_small_multiples_share_their_axes() -> None:
    digests = [digest(made_run(5)), digest(made_run(9)), Digest()]
    shared = multiples.scales(digests)
    drawer = multiples.Drawer(shared)
    seen = []
    for data in digests[:2]:
        axes = drawer.draw(data).axes
        seen.append([one.get_ylim() for one in axes[1:]])
        assert len(axes[0].images) == 1
        assert [one.get_xlabel() for one in axes] == ["step", "layer", "step"]
        assert all(one.get_ylabel() for one in axes)
    assert seen[0] == seen[1]
    empty = drawer.draw(digests[2])
    assert [text.get_text() for one in empty.axes for text in one.texts] == [
        "no gradient norms recorded",
        "no profile",
        "no loss",
    ]
    made = list(sheets([*digests, *[Digest()] * 23], ["x"] * 26))
    assert [len(sheet.axes) for sheet in made] == [24 * 3 + 1, 2 * 3 + 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 25])
def test_all_that_a_sheet_says_is_on_it_and_nothing_lies_on_another(count: int) -> None:
    caption = "act=sigmoid, init=critical, init.sigma_b2=0.0, clip=adaptive, model.norm=layer"
    for sheet in sheets([digest(made_run())] * count, [caption] * count):
        canvas = FigureCanvasAgg(sheet)
        sheet.set_dpi(200)
        canvas.draw()
        *captions, legend = (text.get_window_extent() for text in sheet.texts)
        colours = sheet.axes[-1].get_tightbbox(canvas.get_renderer())
        assert colours is not None
        assert not legend.overlaps(colours)
        for box in (*captions, legend, colours):
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= sheet.bbox.x1
            assert box.y1 <= sheet.bbox.y1
        # A caption ends before the next column begins.
        columns = sheet.bbox.x1 / (3.1 * 200)
        assert all(box.width <= 0.84 * sheet.bbox.x1 / columns for box in captions)
        charts = [axes.get_tightbbox(canvas.get_renderer()) for axes in sheet.axes[:-1]]
        assert not any(box.overlaps(chart) for chart in charts if chart for box in (legend, colours))


def test_losses_share_a_scale_that_the_typical_start_fits_and_what_is_above_is_marked() -> None:
    spike = np.ones(5)
    spike[4] = 1e9
    starts = (spike, np.full(5, 10.0), np.full(5, 1e12))
    digests = [Digest(curves={"train/loss": _curve(values)}) for values in starts]
    shared = multiples.scales(digests)
    assert shared.loss == pytest.approx((0, math.log10(100 * 10)))
    marks = []
    for data in digests:
        *_, loss = multiples.Drawer(shared).draw(data).axes
        marks.append([line.get_xdata().tolist() for line in loss.lines if line.get_marker() == "x"])
    assert marks == [[[4]], [], [[0, 1, 2, 3, 4]]]


def _of_norms(*values: float) -> Digest:
    array = np.array([values])
    depth = Profiles("signal_grad_norm", [0], array, layer_tags("ab"[: len(values)]))
    return Digest(heatmap=heatmap(Series(np.arange(1), array), depth.layers, "grad_norm"), depth=depth)


def test_a_run_that_exploded_or_vanished_far_does_not_flatten_the_others() -> None:
    plain, huge, tiny = _of_norms(0.1, 10.0), _of_norms(1.0, 1e40), _of_norms(1e-40, 1.0)
    assert multiples.scales([plain, _of_norms(1e-9, 1e4)]).norms == pytest.approx((-9, 4))
    assert multiples.scales([plain, _of_norms(1e-9, 1e4)]).beyond == "neither"
    for others, limits, beyond in (
        ([huge], (-1, 6), "max"),
        ([tiny], (-12, 1), "min"),
        ([huge, tiny], (-12, 6), "both"),
    ):
        shared = multiples.scales([*others, plain])
        assert (shared.norms, shared.depth, shared.beyond) == (
            pytest.approx(limits),
            pytest.approx(limits),
            beyond,
        )
        _, depth, _ = multiples.Drawer(shared).draw(others[0]).axes
        (mark,) = (line for line in depth.lines if line.get_marker() in "xv")
        assert (mark.get_marker(), mark.get_xdata().tolist()) == (("x", [1]) if others[0] is huge else ("v", [0]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("low", "high"), [(1e-5, 1.7e308), (5e-324, 1.7e308), (1e307, 1.7e308), (5e-324, 5e-324), (1e-320, 1e-300)]
)
def test_charts_reach_as_far_as_numbers_do(low: float, high: float) -> None:
    data = Profiles("signal_grad_norm", [0], np.array([[low, high]]), ["a", "b"])
    values = {"train/loss": _curve(np.array([low, high])), "global_grad_norm/pre_clip": _curve(np.array([low, high]))}
    others = {"train/loss": _curve(np.array([-high, high]))}
    norms = heatmap(Series(np.arange(1), data.values), data.layers, "grad_norm")
    drawn = [
        figures.depth_profile(data, [low, high]),
        figures.heatmap(norms),
        curves.loss(values),
        curves.loss(others),
        curves.clipping(Digest(curves=values)),
        *sheets([Digest(heatmap=norms, depth=data, curves=values), Digest(curves=others)], ["a", "b"]),
    ]
    for figure in drawn:
        assert figure is not None
        assert style.picture(figure, "png").startswith(b"\x89PNG")
    ticks = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]  # type: ignore[union-attr]
    assert len([text for text in ticks if text]) >= 2


def test_ticks_are_powers_of_ten_within_the_chart() -> None:
    fig = figures.depth_profile(Profiles("signal_grad_norm", [0], np.array([[1e-9, 1e3]]), ["a", "b"]))
    FigureCanvasAgg(fig).draw()
    low, high = fig.axes[0].get_ylim()
    ticks = {
        label.get_text(): where
        for label, where in zip(fig.axes[0].get_yticklabels(), fig.axes[0].get_yticks(), strict=True)
        if low <= where <= high
    }
    assert ticks == pytest.approx({"10⁻⁹": 1e-9, "10⁻⁶": 1e-6, "10⁻³": 1e-3, "10⁰": 1.0, "10³": 1e3})


def test_layers_that_feed_no_activation_are_left_out_and_broken_ones_are_marked() -> None:
    tags = layer_tags("abcd")
    std = np.array([[math.nan, 1.0, math.nan, 1.0], [math.nan, 1.0, math.nan, math.nan]])
    for losses, unmeasured, marked in (([2.0, math.nan], [0, 2], [3]), ([math.nan, math.nan], [], [0, 2, 0, 2, 3])):
        vectors = {"activation_std": Series(np.array([0, 5]), std)}
        scalars = {"train/loss": Series(np.array([0, 5]), np.array(losses))}
        data = digest(Run(Path("r"), "r", layers=tags, records=Records(scalars, vectors, tags)))
        profile = data.activations["activation_std"]
        assert profile.unmeasured == unmeasured
        fig = figures.activations(data.activations)
        assert fig is not None
        marks = [
            int(x) for line in fig.axes[0].lines if line.get_marker() == "x" for x in np.atleast_1d(line.get_xdata())
        ]
        assert marks == marked
        assert np.isfinite(fig.axes[0].lines[0].get_ydata()).sum() == 2


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("03_hidden", "03_hidden"),
        ("05_encoder.layers.1.self_attn", "05_…1.self_attn"),
        ("a-name-without-a-number", "…without-a-number"),
    ],
)
def test_long_names_of_layers_keep_their_ends(tag: str, shown: str) -> None:
    data = heatmap(Series(np.arange(1), np.ones((1, 2))), [tag, "01_b"], "grad_norm")
    fig = figures.heatmap(data)
    FigureCanvasAgg(fig).draw()
    names = fig.axes[0].get_yticklabels()
    assert [name.get_text() for name in names] == [shown, "01_b"]
    label = fig.axes[0].yaxis.label.get_window_extent()
    assert all(label.x1 <= name.get_window_extent().x0 for name in names)
    assert label.x0 >= 0


def _ink(figure: Figure, axes: Axes, colour: str) -> int:
    """How many pixels within these axes have this colour, or nearly."""
    return int(_inked(figure, axes, colour).sum())


def _inked(figure: Figure, axes: Axes, colour: str) -> NDArray[np.bool_]:
    """Which pixels within these axes have this colour, or nearly; the uppermost row first."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    box = axes.get_window_extent()
    inside = image[image.shape[0] - int(box.y1) : image.shape[0] - int(box.y0), int(box.x0) : int(box.x1)]
    wanted = [round(255 * part) for part in to_rgba(colour)[:3]]
    close: NDArray[np.bool_] = np.abs(inside - wanted).max(-1) < 40
    return close


def _curve(values: np.ndarray) -> Curve:
    steps = np.arange(len(values), dtype=float)
    return Curve(steps, values, values, values, steps[~np.isfinite(values)], 1)


def test_a_single_finite_point_among_many_is_seen() -> None:
    values = np.full(101, math.nan)
    values[50] = 1.0
    losses = {"train/loss": _curve(values)}
    fig = curves.loss(losses)
    assert fig is not None
    assert _ink(fig, fig.axes[0], style.BLUE) > 5
    profile = Profiles("signal_grad_norm", [0], values[None], [str(i) for i in range(101)])
    fig = figures.depth_profile(profile)
    assert _ink(fig, fig.axes[0], style.SEQUENCE[0]) > 5
    data = Digest(depth=profile, curves=losses)
    _, depth, loss = multiples.Drawer(multiples.scales([data])).draw(data).axes
    assert _ink(depth.figure, depth, style.SEQUENCE[0]) > 5
    assert _ink(loss.figure, loss, style.BLUE) > 5


def test_charts_of_one_step_and_one_hidden_layer_show_it() -> None:
    one = np.ones(1)
    norms = {f"global_grad_norm/{side}_clip": _curve(one) for side in ("pre", "post")}
    fig = curves.clipping(Digest(curves=norms, clipped=_curve(one / 2), has_clipping=True))
    assert fig is not None
    assert _ink(fig, fig.axes[1], style.RED) > 5
    fig = figures.depth_profile(Profiles("signal_grad_norm", [0], np.array([[1.0, 100.0]]), ["a", "b"]), [10.0])
    assert _ink(fig, fig.axes[0], style.INK) > 5


def test_the_layer_nearest_the_input_is_the_lowest_row() -> None:
    fig = figures.heatmap(heatmap(Series(np.arange(1), np.array([[0.0, 1.0, math.nan]])), ["a", "b", "c"], "grad_norm"))
    for colour, row in ((style.RED, 1 / 6), (style.GREY, 5 / 6)):
        rows = np.flatnonzero(_inked(fig, fig.axes[0], colour).any(1))
        assert rows.mean() / fig.axes[0].bbox.height == pytest.approx(row, abs=0.05)


def test_a_heatmap_of_one_value_has_the_middle_of_the_colours() -> None:
    for values in (np.full((3, 2), 7.0), 7 * 10 ** np.array([[0.0, 0.01], [0.01, 0.0]])):
        (axes, _) = figures.heatmap(heatmap(Series(np.arange(len(values)), values), ["a", "b"], "grad_norm")).axes
        drawn = np.asarray(axes.images[0].get_array()).reshape(-1, 4)
        np.testing.assert_allclose(drawn, [mpl.colormaps["viridis"](0.5)] * len(drawn), atol=0.05)


def test_shares_are_drawn_in_per_cent() -> None:
    run = made_run()
    run.records.scalars["clip/triggered"] = Series(np.arange(4), np.array([0.0, 1.0, 1.0, 0.0]))
    drawn = _all_figures(run)
    for axes in (drawn["loss_accuracy"].axes[1], *drawn["activations"].axes[2:]):
        assert "%" in axes.get_ylabel()
        assert axes.yaxis.get_major_formatter().format_ticks([0, 0.5, 1]) == ["0", "50", "100"]
    share = drawn["clipping"].axes[1]
    assert share.lines[0].get_ydata().tolist() == [0, 100, 100, 0]
    assert share.collections[0].get_paths()[0].get_extents().ymax == 100
    assert "%" in share.get_ylabel()


@pytest.mark.parametrize(("largest", "scale"), [(19.0, "linear"), (21.0, "log")])
def test_a_loss_over_more_than_a_factor_of_20_gets_a_logarithmic_axis(largest: float, scale: str) -> None:
    fig = curves.loss({"train/loss": _curve(np.array([largest, 3.0, 1.0]))})
    assert fig is not None
    assert fig.axes[0].get_yscale() == scale


def test_lines_without_gaps_get_no_dots() -> None:
    fig = curves.loss({"train/loss": _curve(np.linspace(1, 2, 101))})
    assert fig is not None
    assert {line.get_marker() for line in fig.axes[0].lines} <= {"", "None"}


def test_small_multiples_have_short_titles_and_the_whole_one_at_hand() -> None:
    runs = [made_run(3, name=name) for name in ("a", "b")]
    keys = ("model.depth", "optimizer.lr", "optimizer.momentum", "model.width", "optimizer.weight_decay")
    for lr, run in enumerate(runs):
        run.settings = dict.fromkeys(keys, 1) | {"optimizer.lr": lr}
    parsed = Strict(_rendered(*runs, keys=keys))
    whole = ", ".join(f"{key}={runs[1].settings[key]}" for key in keys)
    assert ("a", "depth=1, lr=1, momentum=1, width=1, weight_decay=1") in parsed.texts
    assert {"href": "#run-1", "title": whole}.items() <= next(
        attrs.items() for tag, attrs in parsed.tags if tag == "a" and attrs.get("title") == whole
    )
