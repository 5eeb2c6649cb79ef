"""Layers on the page: names that stay apart, all of them in full, and gaps where no gradient came."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gradstab.events import EventWriter, Records, Series, layer_tags
from gradstab.measure.depth import depth_factor
from gradstab.report import figures, layer_names, multiples, page, table
from gradstab.report.digest import Digest, digest, heatmap
from gradstab.report.history import History, Pictures
from gradstab.report.runs import Run

GPT = layer_tags(
    ["transformer.wte", "transformer.wpe"]
    + [f"transformer.h.{block}.{part}" for block in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")]
    + ["lm_head"]
)
PARTS = ("attention.self.query", "attention.self.key", "attention.output.dense", "output.dense")
BERT = layer_tags([f"bert.encoder.layer.{block}.{part}" for block in (0, 1) for part in PARTS])


@pytest.mark.parametrize("tags", [GPT, BERT, layer_tags(["projection_of_the_queries", "projection_of_the_values"])])
@pytest.mark.parametrize("room", [16, 17, 22])
def test_shortened_names_are_unlike_without_their_numbers(tags: list[str], room: int) -> None:
    short = layer_names.shortened(tags, room)
    assert all(len(text) <= room for text in short)
    assert len({text.partition("_")[2] for text in short}) == len(tags)
    for text, tag in zip(short, tags, strict=True):
        # What is shown stands in the name, in this order.
        assert re.search(".*".join(re.escape(letter) for letter in text.replace("…", "")), tag), (text, tag)


@pytest.mark.parametrize(
    ("tags", "room", "expected"),
    [
        (["00_hidden", "01_output"], 9, ["00_hidden", "01_output"]),
        # Whole parts go from the front, as long as what is left is one layer's alone.
        (["00_a.0.attn.c_proj", "01_a.0.mlp.c_proj"], 17, ["00_…0.attn.c_proj", "01_a.0.mlp.c_proj"]),
        (["00_a.0.attn.c_proj", "01_a.0.mlp.c_proj"], 14, ["00_…a.c_proj", "01_…mlp.c_proj"]),
        # Then the middle, as far as parts beside one another stay apart; a block's number and the last part stay.
        (["00_net.0.attention.proj", "01_net.1.attention.proj"], 15, ["00_…0.a.proj", "01_…1.a.proj"]),
        (["00_b.0.query_projection.w", "01_b.0.quick_projection.w"], 13, ["00_…que.w", "01_…qui.w"]),
        # Then whichever end is one layer's alone.
        (["00_the_first_projection", "01_the_second_projection"], 14, ["00_the_first_…", "01_the_second…"]),
        (["1234567_hidden", "1234568_hidden"], 9, ["1234567_…", "1234568_…"]),
        (["00_first_projection_of_all", "01_other_projection_of_all"], 12, ["00_first_pr…", "01_other_pr…"]),
        (["00_projection_of_the_first", "01_projection_of_the_second"], 12, ["00_…he_first", "01_…e_second"]),
        (["00_x", ""], 17, ["00_x", ""]),
    ],
)
def test_names_are_shortened_where_they_tell_least(tags: list[str], room: int, expected: list[str]) -> None:
    assert layer_names.shortened(tags, room) == expected


def test_the_list_has_every_layers_index_and_full_name() -> None:
    tags = ["00_stem", "01_hidden", "02_hidden", "03_hidden", "7_odd", "no number"]
    lines = [(line.index, line.name, line.note) for line in layer_names.listed(tags, [3])]
    assert lines == [
        ("0", "stem", ""),
        ("1–2", "hidden", ""),
        ("3", "hidden", "no gradient"),
        ("4", "7_odd", ""),
        ("5", "no number", ""),
    ]
    assert layer_names.listed([]) == ()


def _run(values: np.ndarray, grads: np.ndarray, losses: list[float], tags: list[str], name: str = "run") -> Run:
    """A watched run; the global norm is that of its layers, at every step."""
    steps = np.arange(len(values))
    scalars = {"global_grad_norm/pre_clip": Series(steps, np.sqrt((grads**2).sum(axis=1)))}
    scalars["train/loss"] = Series(steps, np.array(losses))
    vectors = {"grad_norm": Series(steps, grads), "signal_grad_norm": Series(steps, values)}
    run = Run(Path(name), name, {"status": "completed", "watched": "Net"}, layers=tags)
    run.records = Records(scalars, vectors, tags)
    return run


def _section(run: Run) -> page.Section:
    return page.section(run, digest(run), 0, (), detailed=True)


def _marks(figure: Figure, axes: int = 0) -> set[tuple[str, float]]:
    return {
        (str(line.get_marker()), float(x))
        for line in figure.axes[axes].lines
        if line.get_marker() in ("x", "v")
        for x in np.atleast_1d(line.get_xdata())
    }


NAN = math.nan
FROZEN = np.array([[NAN, NAN, 1.0], [NAN, NAN, 2.0]])


def _profile(data: Digest) -> Figure:
    assert data.depth is not None
    return figures.depth_profile(data.depth, data.theory)


@pytest.mark.parametrize(
    ("values", "grads", "losses", "marked"),
    [
        # A frozen backbone: a gap, and nothing broke.
        (FROZEN, np.array([[0.0, 0.0, 3.0]] * 2), [1.0, 1.0], set()),
        # The run broke at its second step: what had a gradient before is marked, what never had one is not.
        (
            np.array([[NAN, 1.0, 1.0], [NAN, NAN, math.inf]]),
            np.array([[0.0, 1.0, 1.0], [0.0, NAN, NAN]]),
            [1.0, NAN],
            {("x", 1.0), ("x", 2.0)},
        ),
        # The gradient alone broke, at the first step already.
        (FROZEN[:1], np.array([[NAN, NAN, 3.0]]), [1.0], {("x", 0.0), ("x", 1.0)}),
        # Thawed after the first step; and an infinite signal is one at any step.
        (np.array([[NAN, 1.0, 1.0], [1.0, math.inf, 1.0]]), np.ones((2, 3)), [1.0, 1.0], {("x", 1.0)}),
        # Nothing came through, rather than nothing at all.
        (np.array([[0.0, 1.0, 1.0]]), np.ones((1, 3)), [1.0], {("v", 0.0)}),
    ],
)
def test_a_layer_without_a_gradient_leaves_a_gap_and_a_broken_one_is_marked(
    values: np.ndarray, grads: np.ndarray, losses: list[float], marked: set[tuple[str, float]]
) -> None:
    run = _run(values, grads, losses, layer_tags(["stem", "block", "head"]))
    data = digest(run)
    figure = _profile(data)
    assert _marks(figure) == marked
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("inf or NaN" in legend) == any(marker == "x" for marker, _ in marked)
    low, high = figure.axes[0].get_xlim()
    assert low < 0
    assert high > 2
    # Side by side, and in TensorBoard while the run lasts.
    small = multiples.Drawer(multiples.scales([data])).draw(data)
    assert {mark for mark in _marks(small, 1) if mark[0] == "x"} == {mark for mark in marked if mark[0] == "x"}
    history = History(run.layers)
    for step in range(len(values)):
        scalars = {tag: float(series.values[step]) for tag, series in run.records.scalars.items()}
        history.observe(step, scalars, {tag: series.values[step] for tag, series in run.records.vectors.items()})
    assert _marks(figures.depth_profile(history.profiles())) == marked


def test_what_was_sound_is_kept_with_a_checkpoint(tmp_path: Path) -> None:
    tags = layer_tags(["stem", "head"])
    writer = EventWriter(tmp_path, tags)
    seen = []
    for kept in (False, True):
        pictures = [Pictures(writer, tags, None, math.inf) for _ in range(2)]
        at = 0
        for step, loss in enumerate((NAN, 1.0)):
            vectors = {"signal_grad_norm": np.array([NAN, 1.0 if step else NAN])}
            pictures[at].observe(step, {"train/loss": loss}, vectors)
            if kept and not step:
                pictures[1].load_state_dict(pictures[0].state_dict())
                at = 1
        seen.append(_marks(figures.depth_profile(pictures[at]._history.profiles())))
    writer.close()
    # The first layer never had a gradient; the second lacked it where the loss was not finite.
    assert seen == [{("x", 1.0)}] * 2


def test_the_page_lists_all_layers_and_says_which_got_no_gradient() -> None:
    tags = layer_tags([f"layer{i // 4}.{i % 4}.conv" for i in range(20)] + ["aux", "fc"])
    values = np.ones((1, 22))
    values[0, 20] = NAN
    run = _run(values, np.where(np.isnan(values), 0.0, 1.0), [1.0], tags)
    text = page.render("title", [_section(run)], (), Markup(), detailed=True)
    (found,) = re.findall(
        r'<details><summary><h2>Layers</h2></summary>\s*<ul class="layers">(.*?)</ul>', text, re.DOTALL
    )
    lines = re.findall(r"<li><span>(\d+)</span><code>(.*?)</code>(.*?)</li>", found)
    assert [f"{int(index):02d}_{name}" for index, name, _ in lines] == tags
    assert [name for _, name, note in lines if "no gradient" in note] == ["aux"]
    assert "leave a gap" in text
    css = (Path(page.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    # No colour of its own, so that it is read in the dark too, and as many columns as a screen has room for.
    rules = re.findall(r"^\.layers[^{]*\{([^}]*)\}", css, re.MULTILINE)
    assert not any(re.search(r"#[0-9a-f]{3}", rule) for rule in rules)
    assert "columns:" in rules[0]


def test_of_several_runs_each_list_of_layers_is_shown_once() -> None:
    ones = np.ones((1, 3))
    names = [*(["a", "b", "c"],) * 4, *([f"only_{i}", "b", "c"] for i in range(page.LISTS + 2))]
    runs = [_run(ones, ones, [1.0], layer_tags(own), f"run {i}") for i, own in enumerate(names)]
    sections = [page.section(run, digest(run), i, (), detailed=False) for i, run in enumerate(runs)]
    text = page.render("title", sections, (), Markup(), detailed=False)
    assert text.count('<ul class="layers">') == page.LISTS
    assert text.count("<code>a</code>") == 1
    assert "run 0, run 1, run 2 and 1 more" in text
    assert "Of 3 more networks" in text


@pytest.mark.parametrize("count", [1, 9, 12])
def test_names_have_room_beside_a_heatmap(count: int) -> None:
    tags = layer_tags([f"transformer.h.{i}.attention.c_proj" for i in range(count)])
    fig = figures.heatmap(heatmap(Series(np.arange(9) * 12_345, np.ones((9, count))), tags, "grad_norm"))
    FigureCanvasAgg(fig).draw()
    names = fig.axes[0].get_yticklabels()
    label = fig.axes[0].yaxis.label.get_window_extent()
    assert all(label.x1 <= name.get_window_extent().x0 for name in names)
    low, high = fig.axes[0].get_xlim()
    steps = [step for step in fig.axes[0].get_xticklabels() if low <= step.get_position()[0] <= high]
    shown = [step.get_window_extent() for step in steps]
    assert len(shown) >= 2
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(shown))
    assert [name.get_text().partition("_")[0] for name in names] == [f"{i:02d}" for i in range(count)]


@pytest.mark.parametrize(
    ("tags", "title", "caption"),
    [
        (("train/loss",), "Loss", "Training loss at each step."),
        (("train/loss", "test/loss"), "Loss", "Training loss at each step; test loss."),
        (("test/accuracy",), "Accuracy", "Test accuracy."),
        (("train/loss", "test/accuracy"), "Loss and accuracy", "Training loss at each step; test accuracy."),
        (
            ("train/loss", "test/loss", "test/accuracy"),
            "Loss and accuracy",
            "Training loss at each step; test loss and accuracy.",
        ),
    ],
)
def test_the_losses_caption_says_what_is_drawn(tags: tuple[str, ...], title: str, caption: str) -> None:
    run = Run(Path("r"), "r")
    run.records = Records({tag: Series(np.arange(3), np.ones(3)) for tag in tags}, {}, [])
    (drawing,) = page.drawings(digest(run), run)
    assert (drawing.title, drawing.caption) == (title, caption)
    legend = {text.get_text() for text in drawing.figure.legends[0].get_texts()}
    assert legend == {tag.replace("/", " ") for tag in tags}


def test_a_thinned_curve_says_what_line_and_band_are() -> None:
    run = Run(Path("r"), "r", records=Records({"train/loss": Series(np.arange(5000), np.ones(5000))}, {}, []))
    (drawing,) = page.drawings(digest(run), run)
    assert drawing.caption.endswith("step. Line: mean of each bin; band: its smallest and largest value.")


@pytest.mark.parametrize(
    ("depth", "values"),
    [
        (["00_a", "01_b"], [[1.0, 2.0, 4.0]]),
        (["00_a", "01_b", "02_c"], [[1.0, 2.0, 3.0]]),
        # One of three has no gradient, or lost it: the line goes through two.
        (["00_a", "01_b", "02_c"], [[NAN, 2.0, 4.0]]),
        (["00_a", "01_b", "02_c"], [[1.0, 2.0, 3.0], [0.0, 2.0, 4.0]]),
        # The last step that had a line counts.
        (["00_a", "01_b", "02_c"], [[1.0, 2.0, 3.0], [NAN, NAN, 4.0]]),
        (None, [[1.0, 2.0, 4.0]]),
        (None, [[1.0, 2.0, 3.0, 5.0]]),
    ],
)
def test_how_straight_a_line_through_two_layers_was_is_not_told(
    depth: list[str] | None, values: list[list[float]]
) -> None:
    array = np.array(values)
    run = _run(array, np.ones_like(array), [1.0] * len(array), layer_tags("abcd"[: array.shape[1]]))
    run.record |= {"hidden_layers": array.shape[1] - 1, "depth_factor": 0.5, "depth_factor_r2": 0.875}
    if depth is not None:
        run.record["depth_layers"] = depth
    hidden = array[:, : len(depth) if depth else -1].tolist()
    (*_, last) = (line for profile in hidden if (line := depth_factor(profile)) is not None)
    section = _section(run)
    assert (dict(section.facts)["depth factor"] == "0.5 per layer (R² 0.88)") == (last.layers > 2)
    assert "R²" in dict(section.facts)["depth factor"] or "over two layers" in dict(section.facts)["depth factor"]
    cell = section.row.cells[table.RESULTS.index("R²")]
    assert (cell.text, cell.sort) == (("0.875", "0.875") if last.layers > 2 else (table.ABSENT, ""))


@pytest.mark.parametrize(("entries", "shown"), [({"depth_layers": ["00_a", "01_b"]}, False), ({}, True)])
def test_without_records_the_list_of_layers_tells_how_many_they_were(entries: dict[str, object], shown: bool) -> None:
    record = {"depth_factor": 0.5, "depth_factor_r2": 1.0, **entries}
    run = Run(Path("r"), "r", record, layers=["00_a", "01_b", "02_c", "03_d", "04_e"])
    assert ("R²" in dict(_section(run).facts)["depth factor"]) == shown


def test_layers_that_were_passed_over_at_a_step_leave_a_gap_in_the_activations() -> None:
    std = np.array([[1.0, NAN, 1.0], [1.0, 1.0, NAN], [1.0, NAN, NAN]])
    run = _run(np.ones((3, 4)), np.ones((3, 4)), [1.0, 1.0, NAN], layer_tags("abcd"))
    run.records.vectors["activation_std"] = Series(np.arange(3), std)
    figure = figures.activations(digest(run).activations)
    assert figure is not None
    assert _marks(figure) == {("x", 1.0), ("x", 2.0)}
    run.records.scalars["train/loss"].values[2] = 1.0
    figure = figures.activations(digest(run).activations)
    assert figure is not None
    assert _marks(figure) == set()
