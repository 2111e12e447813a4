"""Tests of the figures and tables over a made-up results.csv. Run by ctest; alone:

    /usr/bin/python3 -m unittest discover -s tests/plots
"""
import contextlib
import csv
import io
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "plots"))
sys.dont_write_bytecode = True

import pandas as pd  # noqa: E402

import plot  # noqa: E402  (plots/plot.py)
import synthetic  # noqa: E402
import table  # noqa: E402  (plots/table.py)
from subquad_plots import (bound, bounds, budget, crossover, fit, load, matrix_error, training,  # noqa: E402
                           views)
from subquad_plots.errors import UserError  # noqa: E402


def quiet(function, *arguments):
    """The value, what was printed to stdout, and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        value = function(*arguments)
    return value, out.getvalue(), err.getvalue()


def rows_of(method, n, times, task="gaussian", **fields):
    """One row per round with exactly these times."""
    rows = []
    for number, seconds in enumerate(times):
        row = dict.fromkeys(synthetic.columns(), "")
        row.update(cell_id=f"{method}{n}{task}", round=number, attempt=1, status="ok", method=method,
                   label=method, task=task, approximates="softmax", oracle=0, causal=1, batch=1,
                   heads=1, n=n, n_kv=n, d_k=64, d_v=64, scale=0.125, threads=1, seed=1, cpu="test",
                   host="test", build="Release x", build_id="b", time_s=seconds, **{"pass": "forward"})
        row.update(fields)
        rows.append(row)
    return rows


class WithDirectory(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name)

    def write(self, rows, torn=""):
        synthetic.write(self.directory, rows, torn)

    def load(self, *arguments, **options):
        return quiet(lambda: load.load(self.directory, *arguments, **options))[0]


class Exponents(unittest.TestCase):
    def test_the_exponent_of_a_power_law_is_its_power(self):
        n = [256, 512, 1024, 2048, 4096]
        for power in (1, 1.5, 2):
            slope = fit.exponent(n, [3e-9 * x**power for x in n])
            value = slope[0] if isinstance(slope, tuple) else slope.value
            self.assertAlmostEqual(value, power, places=6)


class Crossovers(unittest.TestCase):
    def test_a_scale_that_pandas_reads_one_bit_off_is_the_same(self):
        text = "0.08838834764831843"  # 1 / sqrt(128)
        self.assertTrue(crossover.same(text, float(pd.to_numeric(pd.Series([text]))[0])))
        self.assertTrue(crossover.same(text, float(text)))
        self.assertFalse(crossover.same(text, 0.0884))


class Loading(WithDirectory):
    def test_the_last_row_of_a_cell_and_round_counts(self):
        rows = rows_of("dense", 256, [1.0])
        again = rows_of("dense", 256, [2.0])
        rows[0]["status"] = "interrupted"
        self.write(rows + again)
        self.assertEqual(list(self.load().frame["time_s"]), [2.0])

    def test_failed_and_unstable_rows_are_left_out_unless_asked_for(self):
        good = rows_of("dense", 256, [1.0])
        shaky = rows_of("dense", 512, [2.0], status="unstable", reason="spread")
        failed = rows_of("dense", 1024, [""], status="oom", reason="no memory")
        self.write(good + shaky + failed)
        self.assertEqual(sorted(self.load().frame["n"]), [256])
        self.assertEqual(sorted(self.load(include_unstable=True).frame["n"]), [256, 512])

    def test_a_torn_last_line_is_ignored(self):
        self.write(rows_of("dense", 256, [1.0]), torn="abc,0,1,ok")
        self.assertEqual(len(self.load().frame), 1)

    def test_rows_of_two_machines_are_refused(self):
        self.write(rows_of("dense", 256, [1.0]) + rows_of("dense", 512, [1.0], cpu="other"))
        with self.assertRaises(UserError):
            self.load()
        self.assertEqual(len(self.load(allow_mixed=True).frame), 2)


class Tables(WithDirectory):
    def text(self, *arguments):
        status, out, err = quiet(table.main, [*arguments, str(self.directory)])
        self.assertEqual(status, 0, err)
        return out

    def setUp(self):
        super().setUp()
        self.write(rows_of("dense", 256, [0.003, 0.001, 0.002]) +
                   rows_of("dense", 512, [0.008, 0.008, 0.009]) +
                   rows_of("some_method", 256, [0.004, 0.004, 0.004]) +
                   rows_of("some_method", 512, [0.004, 0.004, 0.0045]) +
                   rows_of("fails", 256, [""], status="timeout"))

    def test_cells_are_medians_over_the_rounds(self):
        rows = {(r["label"], r["n"]): float(r["value"])
                for r in csv.DictReader(io.StringIO(self.text("--format=csv"))) if r["value"]}
        self.assertAlmostEqual(rows["dense", "256"], 0.002)
        self.assertAlmostEqual(rows["some_method", "512"], 0.004)

    def test_the_share_of_the_peak_is_a_plain_number(self):
        self.write(rows_of("dense", 256, [1.0, 1.0], fraction_of_peak=0.8123))
        status, out, err = quiet(table.main, [str(self.directory), "--value", "fraction_of_peak"])
        self.assertEqual(status, 0, err)
        self.assertIn("0.812", out)
        self.assertIn("multiply-add peak", out)

    def test_a_speed_up_is_formed_within_each_round(self):
        rows = {(r["label"], r["n"]): float(r["value"])
                for r in csv.DictReader(io.StringIO(self.text("--format=csv", "--value=speedup")))
                if r["value"]}
        self.assertAlmostEqual(rows["some_method", "256"], 0.5)  # median of 3/4, 1/4, 2/4
        self.assertAlmostEqual(rows["some_method", "512"], 2.0)

    def test_markdown_names_what_failed_and_the_machine(self):
        text = self.text()
        self.assertIn("timeout", text)
        self.assertIn("test", text.splitlines()[-1])

    def test_latex_escapes_underscores(self):
        text = self.text("--format=latex", "--best")
        self.assertIn(r"some\_method", text)
        self.assertIn(r"\toprule", text)

    def test_mistakes_are_one_line_and_status_2(self):
        for arguments in (["--value=tme_s", str(self.directory)], [str(self.directory / "none")],
                          ["--task=nothing", str(self.directory)]):
            status, _, err = quiet(table.main, arguments)
            self.assertEqual(status, 2)
            self.assertTrue(err.strip().splitlines()[-1].startswith("table.py: "))


def train_row(method, seed, rate, validation, test, n=64, floors="1 / pairs (accuracy)=0.25"):
    row = rows_of(method, n, [0.01], task="mqar")[0]
    row.update(cell_id=f"{method}{seed}{rate}{n}", seed=seed, train_params=f"learning_rate={rate};steps=100",
               validation_accuracy=validation, accuracy=test, loss=1 - test, validation_loss=1 - validation,
               floors=floors, **{"pass": "train"})
    return row


class Training(WithDirectory):
    # Rate 1 is best on validation over both seeds, rate 2 for one seed alone and on the test split.
    ROWS = [train_row("dense", 1, 1, 0.9, 0.8), train_row("dense", 2, 1, 0.9, 0.7),
            train_row("dense", 1, 2, 0.95, 0.99), train_row("dense", 2, 2, 0.1, 0.99),
            train_row("linear", 1, 1, 0.4, 0.5), train_row("linear", 2, 1, 0.4, 0.3)]

    def cells(self, **options):
        made = table.table.make(self.load(), value="accuracy", **options)
        self.assertEqual(len(made), 1)
        return made[0]

    def test_the_best_setting_on_validation_counts_and_seeds_are_averaged(self):
        self.write(self.ROWS)
        made = self.cells()
        self.assertAlmostEqual(made.cells["dense", 64].value, 0.75)
        self.assertAlmostEqual(made.cells["dense", 64].low, 0.7)
        self.assertAlmostEqual(made.cells["linear", 64].value, 0.4)
        self.assertIn("dense: learning_rate 1", made.note)
        self.assertIn("mean of 2 seeds", made.note)

    def test_floors_stand_below_the_methods_and_are_never_best(self):
        self.write([train_row("dense", 1, 1, 0.1, 0.1), train_row("linear", 1, 1, 0.2, 0.2)])
        made = self.cells()
        self.assertEqual(made.rows[-1], "floor: 1 / pairs")
        self.assertAlmostEqual(made.cells["floor: 1 / pairs", 64].value, 0.25)
        text = table.table.markdown([made], best=True)
        self.assertIn("**0.200**", text)
        self.assertNotIn("**0.250**", text)

    def test_lengths_are_chosen_one_by_one(self):
        self.write(self.ROWS + [train_row("dense", 1, 1, 0.1, 0.11, n=128),
                                train_row("dense", 1, 2, 0.2, 0.22, n=128)])
        self.assertAlmostEqual(self.cells().cells["dense", 128].value, 0.22)

    def test_figures_of_training_are_written(self):
        self.write(self.ROWS)
        (self.directory / "curves.csv").write_text(
            "cell_id,round,step,validation_loss,validation_accuracy\n" + "".join(
                f"{row['cell_id']},0,{step},{1 / step},{step / 10}\n"
                for row in self.ROWS for step in (1, 5)))
        code, out, _ = quiet(plot.main, [str(self.directory)])
        self.assertEqual(code, 0, out)
        for name in ("accuracy-mqar-train.png", "curves-mqar-train.svg"):
            self.assertGreater((self.directory / "figures" / name).stat().st_size, 1000)

    def test_an_overview_shows_what_a_training_run_has(self):
        at_length = [train_row("dense", 1, 1, 0.9, 0.8, n=n) for n in (64, 128)]
        for rows, there in ((self.ROWS, {"quality", "learning"}),
                            (at_length, {"quality", "time", "speed-up", "memory"})):
            self.write(rows)
            code, out, err = quiet(plot.main, [str(self.directory), "--format", "svg"])
            self.assertEqual(code, 0, out + err)
            text = (self.directory / "figures" / "overview.svg").read_text()
            self.assertEqual({title for title in ("quality", "learning", "time", "speed-up", "memory",
                                                  "error") if f"<!-- {title} -->" in text}, there)


class Floors(WithDirectory):
    def test_a_language_model_is_shown_in_bits_as_its_floors_are(self):
        rows = pd.DataFrame({"accuracy": [0.4], "bits": [2.8], "loss": [1.9],
                             "floors": ["unigram (bits_per_token)=4.7"]})
        self.assertEqual(training.main_quality(rows), "bits")
        for quality, floor in (("bits", 3), ("loss", 3 * 0.6931471805599453), ("perplexity", 8)):
            rows["floors"] = "unigram (bits_per_token)=3"
            self.assertAlmostEqual(training.floors(rows, quality)["unigram"], floor)
        self.assertEqual(training.floors(rows, "accuracy"), {})
        rows["floors"] = "majority class (accuracy)=0.5"
        self.assertEqual(training.main_quality(rows), "accuracy")

    def test_names_that_would_touch_share_a_text_at_the_upper_line(self):
        found = {"c": 0.5, "a": 0.0, "b": 0.03}
        self.assertEqual(training.floor_lines(found, 1, room=0.04), [("a, b", 0.03), ("c", 0.5)])
        self.assertEqual(training.floor_lines(found, 1),
                         [("a", 0.0), ("b", 0.03), ("c", 0.5)])

    def test_they_are_named_below_a_figure_without_room_and_beside_their_lines_in_another(self):
        for methods, below in ((8, False), (9, True)):
            self.write([train_row(f"m{i}", 1, 1, 0.5, 0.5) for i in range(methods)])
            code, out, err = quiet(plot.main, [str(self.directory), "--format", "svg"])
            self.assertEqual(code, 0, out + err)
            text = (self.directory / "figures" / "accuracy-mqar-train.svg").read_text()
            self.assertEqual("dashed: 1 / pairs 0.250" in text, below)
            self.assertIn("1 / pairs", text)


class Figures(WithDirectory):
    def test_every_kind_of_figure_is_written(self):
        self.write(synthetic.sweep(), torn="x,y")
        status, _, err = quiet(plot.main, [str(self.directory), "--format", "png"])
        self.assertEqual(status, 0, err)
        figures = self.directory / "figures"
        for kind in ("time", "speedup", "memory", "error", "pareto", "peak", "overview"):
            files = list(figures.glob(f"{kind}*.png"))
            self.assertTrue(files, kind)
            self.assertTrue(all(f.stat().st_size > 5000 for f in files), kind)
        self.assertIn("time", (figures / "index.md").read_text())

    def test_bounds_are_drawn_where_they_hold(self):
        # An oracle at two budgets, a method that it bounds, and a panel of its own for each oracle.
        matrix = dict(matrix_rows=512, heads=1, oracle=1)
        rows = []
        for n in (256, 512):
            for budget, error in ((16, 0.5), (64, 0.2)):
                rows += rows_of("topk_exact", n, [1.0], label=f"top {budget}", family="oracle",
                                keys_per_query=budget, row_tv=error, bounds_in="row_tv",
                                cell_id=f"t{n}{budget}", **matrix)
                rows += rows_of("svd_rank", n, [1.0], label=f"rank {budget}", family="oracle",
                                keys_per_query=budget, matrix_error=error, cell_id=f"s{n}{budget}",
                                bounds_in="matrix_error", **matrix)
            rows += rows_of("window", n, [1.0], keys_per_query=64, row_tv=0.4, matrix_rows=64,
                            bounded_by="topk_exact")
            rows += rows_of("features", n, [1.0], keys_per_query=32, matrix_error=0.7,
                            matrix_rows=n, bounded_by="svd_rank;block_rank_causal")
            # Judged on a sample of rows: no bound on its Frobenius error.
            rows += rows_of("sampled", n, [1.0], keys_per_query=16, matrix_error=0.1,
                            matrix_rows=64, bounded_by="svd_rank")
        self.write(rows)
        results = self.load()
        view = views.views(results)[0]
        found = {one.oracle: one for one in bounds.find(view)}
        self.assertEqual(sorted(found), ["svd_rank", "topk_exact"])
        self.assertEqual(found["topk_exact"].of_others(), {"window"})
        self.assertEqual(found["svd_rank"].of_others(), {"features"})
        self.assertEqual(bounds.one_budget(found["topk_exact"])[:2], (64, "top 64"))
        self.assertEqual(bounds.one_budget(found["svd_rank"])[2], ["features"])
        self.assertEqual(bound.panels(view), 2)
        self.assertEqual(matrix_error.panels(view), 2)
        status, _, err = quiet(plot.main, [str(self.directory), "--format", "png"])
        self.assertEqual(status, 0, err)
        for kind in ("bound", "matrix_error"):
            files = list((self.directory / "figures").glob(f"{kind}*.png"))
            self.assertTrue(files and all(f.stat().st_size > 5000 for f in files), kind)

    def test_without_an_oracle_there_is_no_figure_of_bounds(self):
        self.write(rows_of("window", 256, [1.0], keys_per_query=64, row_tv=0.4, matrix_rows=64,
                           bounded_by="topk_exact"))
        view = views.views(self.load())[0]
        self.assertFalse(bound.applies(view))
        self.assertFalse(matrix_error.applies(view))

    def test_settings_that_differ_in_numbers_make_one_curve_over_the_budget(self):
        rows = rows_of("dense", 512, [2.0], rel_error=1e-7, keys_per_query=512)
        rows += rows_of("uniform", 512, [0.1], rel_error=0.5, keys_per_query=1,
                        approximates="nothing")
        for k in (4, 16, 64):
            for name in ("searched", "evenly spaced"):
                rows += rows_of("conv_basis", 512, [0.01 * k], label=f"{name}, {k}",
                                cell_id=f"{name}{k}", keys_per_query=k, rel_error=1 / k)
        self.write(rows)
        view = views.views(self.load())[0]
        self.assertEqual(budget.drawable(view), {"searched", "evenly spaced"})
        points = budget.points_of(view).set_index("series")
        self.assertEqual(points.loc["searched, 16", "error"], 1 / 16)
        status, _, err = quiet(plot.main, [str(self.directory), "--format", "png"])
        self.assertEqual(status, 0, err)
        self.assertTrue(list((self.directory / "figures").glob("budget*.png")))
        self.write(rows[:2])
        self.assertFalse(budget.applies(views.views(self.load())[0]))

    def test_one_point_and_missing_columns_do_not_crash(self):
        self.write(rows_of("dense", 256, [1.0]))
        status, _, err = quiet(plot.main, [str(self.directory), "--format", "png"])
        self.assertEqual(status, 0, err)

    def test_an_empty_selection_says_so(self):
        self.write(rows_of("dense", 256, [1.0]))
        status, _, err = quiet(plot.main, [str(self.directory), "--task", "nothing"])
        self.assertEqual(status, 2)
        self.assertIn("nothing", err)


if __name__ == "__main__":
    unittest.main()
