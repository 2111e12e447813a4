"""Tests of expectation files and verdicts over made-up results. Run by ctest; alone:

    /usr/bin/python3 -m unittest discover -s tests/reproduce
"""
import contextlib
import io
import json
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "plots"))
sys.path.insert(0, str(HERE.parents[1] / "plots"))
sys.dont_write_bytecode = True

import reproduce  # noqa: E402  (plots/reproduce.py)
import synthetic  # noqa: E402  (tests/plots/synthetic.py)
from subquad_plots.errors import UserError  # noqa: E402
from subquad_reproduce import (catalog, committed, evaluate, expectation, integrity,  # noqa: E402
                               render, running)

HEAD = """title: "made up"
source: "nowhere, Table 1"
hardware: "none"
minutes: 1
scales: {smoke: {}}
"""


def quiet(function, *arguments):
    """The value, what was printed to stdout, and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        value = function(*arguments)
    return value, out.getvalue(), err.getvalue()


def rows_of(method, times, rounds=3, **fields):
    """Rows of one method: n -> seconds, a round every percent apart."""
    rows = []
    for n, seconds in times.items():
        for number in range(rounds):
            row = dict.fromkeys(synthetic.columns(), "")
            identity = f"{method} {n} {fields}".encode()
            row.update(cell_id=f"{zlib.crc32(identity):016x}", round=number,
                       attempt=1, status="ok", method=method, label=method, task="gaussian",
                       approximates="softmax", oracle=0, causal=1, batch=1, heads=1, n=n, n_kv=n,
                       d_k=64, d_v=64, scale=0.125, threads=1, seed=1, cpu="test", host="test",
                       build="Release x", build_id="b", time_s=seconds * (1 + 0.01 * number),
                       peak_bytes=1000 * n, rel_error=0.1, **{"pass": "forward"})
            row.update(fields)
            rows.append(row)
    return rows


def power(rate, exponent, lengths=(512, 1024, 2048, 4096)):
    return {n: rate * n**exponent for n in lengths}


DENSE = rows_of("dense", power(1e-9, 2))
LINEAR = rows_of("linear", power(2e-8, 1))


class WithFiles(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def expectation(self, body, head=HEAD):
        path = self.folder / "paper" / "table.expect.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(head + body, encoding="utf-8")
        return expectation.read(path)

    def results(self, rows, plan=True):
        directory = self.folder / "run"
        directory.mkdir(exist_ok=True)
        text = synthetic.to_csv(rows).splitlines()
        place = text[0].split(",").index("line_crc")
        lines = [text[0]]
        for line in text[1:]:
            fields = next(integrity.csv.reader([line]))
            fields[place] = integrity.checksum(fields, place)
            lines.append(",".join(integrity.field(value) for value in fields))
        (directory / "results.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if plan:
            cells = sorted({row["cell_id"] for row in rows})
            rounds = 1 + max(row["round"] for row in rows)
            (directory / "plan.json").write_text(json.dumps({"cells": cells, "rounds": rounds}))
        return directory

    def judge(self, body, rows, **options):
        return evaluate.evaluate(self.expectation(body), self.results(rows), **options)

    def outcome(self, check, rows, **options):
        """State and texts of one claim."""
        found = self.judge(f'claims:\n  - {{text: "t", paper: "p", check: {check}}}\n', rows,
                           **options)
        return found.claims[0][1], found


class Kinds(WithFiles):
    def test_an_exponent_holds_inside_its_interval_and_fails_outside(self):
        check = "{exponent: {value: time_s, of: dense, within: [1.9, 2.1]}}"
        self.assertEqual(self.outcome(check, DENSE)[0].state, "holds")
        cubic, found = self.outcome(check, rows_of("dense", power(1e-12, 3)))
        self.assertEqual(cubic.state, "fails")
        self.assertIn("0.900 above 2.10", cubic.detail)
        self.assertEqual(found.verdict, evaluate.NOT_REPRODUCED)

    def test_an_exponent_needs_three_lengths(self):
        two = rows_of("dense", power(1e-9, 2, (512, 1024)))
        outcome, found = self.outcome("{exponent: {value: time_s, of: dense, within: [1, 2]}}", two)
        self.assertEqual(outcome.state, "missing")
        self.assertEqual(found.verdict, evaluate.MISSING_CELLS)

    def test_an_order_is_judged_at_every_length(self):
        check = "{order: {value: time_s, of: [linear, dense]}}"
        self.assertEqual(self.outcome(check, DENSE + LINEAR)[0].state, "holds")
        crossing = rows_of("linear", {512: 1.0, 1024: 1e-9, 2048: 1e-9, 4096: 1e-9})
        outcome, _ = self.outcome(check, DENSE + crossing)
        self.assertEqual(outcome.state, "fails")
        self.assertIn("n = 512", outcome.detail)
        self.assertNotIn("1k", outcome.detail)

    def test_equal_numbers_are_no_order(self):
        same = rows_of("linear", power(1e-9, 2))
        outcome, _ = self.outcome("{order: {value: time_s, of: [linear, dense]}}", DENSE + same)
        self.assertEqual(outcome.state, "fails")

    def test_a_ratio_is_formed_within_rounds(self):
        slow = rows_of("linear", power(2e-9, 2))  # both drift alike, so the ratio is 2 exactly
        outcome, _ = self.outcome(
            "{ratio: {value: time_s, of: linear, to: dense, where: {n: 512}, within: [2, 2.001]}}",
            DENSE + slow)
        self.assertEqual(outcome.state, "holds")
        self.assertEqual(outcome.ours, "2.00")

    def test_one_stable_round_of_three_decides_nothing_about_times(self):
        shaky = [dict(row, status="unstable" if row["round"] else "ok") for row in LINEAR]
        outcome, _ = self.outcome("{order: {value: time_s, of: [linear, dense]}}", DENSE + shaky)
        self.assertEqual(outcome.state, "missing")
        self.assertIn("1 of 3 rounds is stable", outcome.detail)
        outcome, _ = self.outcome("{value: {value: rel_error, of: linear, within: [0, 1]}}", shaky)
        self.assertEqual(outcome.state, "holds")

    def test_a_ratio_between_two_lengths_of_one_method(self):
        check = ("{ratio: {value: time_s, of: {label: dense, n: max}, to: {label: dense, n: min}, "
                 "within: [63.9, 64.1]}}")
        self.assertEqual(self.outcome(check, DENSE)[0].state, "holds")

    def test_a_value_beyond_its_bound_says_by_how_much(self):
        check = "{value: {value: rel_error, of: dense, where: {n: 512}, within: [null, 0.05]}}"
        outcome, _ = self.outcome(check, DENSE)
        self.assertEqual(outcome.state, "fails")
        self.assertIn("above 0.0500", outcome.detail)

    def test_a_number_that_is_not_there_is_missing_not_held(self):
        for number in ("", "nan"):
            rows = rows_of("dense", {512: 1.0}, rel_error=number)
            outcome, _ = self.outcome(
                "{value: {value: rel_error, of: dense, within: [null, 1]}}", rows)
            self.assertEqual(outcome.state, "missing")

    def test_a_trend_goes_along_a_parameter(self):
        rows = [row for k, error in ((1, 0.5), (4, 0.3), (16, 0.31), (64, 0.1))
                for row in rows_of("conv", {512: 1.0}, label=f"k {k}", method_params=f"k={k}",
                                   rel_error=error)]
        check = "{trend: {value: rel_error, of: {method: conv}, over: k, direction: falls%s}}"
        outcome, _ = self.outcome(check % "", rows)
        self.assertEqual(outcome.state, "fails")
        self.assertIn("from k = 4 to 16", outcome.detail)
        self.assertEqual(self.outcome(check % ", slack: 0.1", rows)[0].state, "holds")
        self.assertEqual(self.outcome(check.replace("falls", "rises") % "", rows)[0].state, "fails")
        self.assertEqual(self.outcome(check.replace("falls", "flat") % "", rows)[0].state, "fails")

    def test_a_constant_neither_falls_nor_rises(self):
        rows = [row for k in (1, 4) for row in rows_of("conv", {512: 1.0}, label=f"k {k}",
                                                       method_params=f"k={k}")]
        for direction, state in (("falls", "fails"), ("rises", "fails"), ("flat", "holds")):
            check = f"{{trend: {{value: rel_error, of: {{method: conv}}, over: k, direction: {direction}}}}}"
            self.assertEqual(self.outcome(check, rows)[0].state, state)

    def test_a_metric_of_the_method_is_a_value_too(self):
        rows = rows_of("zeta", {512: 1.0}, method_metrics="pool_recall=0.6;past_recall=0.5")
        check = "{value: {value: metric.pool_recall, of: zeta, within: [0.55, 0.65]}}"
        self.assertEqual(self.outcome(check, rows)[0].state, "holds")

    def test_a_row_of_a_table_may_have_a_value_of_its_own(self):
        rows = rows_of("sea", {512: 1.0}, method_metrics="share_a=0.6;share_b=0.3")
        body = ("tables:\n  - {title: t, value: metric.share_a, %s rows: [sea, {name: b, where: "
                "{label: sea}, value: metric.share_b}], columns: {n: [512]}}\nclaims:\n"
                '  - {text: "a", paper: "p", not_comparable: "no"}\n')
        numbers = self.judge(body % "", rows).tables[0].numbers
        self.assertEqual([numbers[name, 512].ours.value for name in ("sea", "b")], [0.6, 0.3])
        with self.assertRaisesRegex(UserError, "to: ratios are of one value"):
            self.expectation(body % "to: sea,")

    def test_a_crossover_comes_from_crossover_csv(self):
        rows = DENSE + LINEAR
        body = ('claims:\n  - {text: "t", paper: "p", check: {crossover: {of: linear, '
                'within: [%s]}}}\n')
        read = self.expectation(body % "300, 400")
        directory = self.results(rows)
        missing = evaluate.evaluate(read, directory).claims[0][1]
        self.assertEqual(missing.state, "missing")
        self.assertIn("crossover.csv", missing.detail)
        (directory / "crossover.csv").write_text(
            synthetic.crossover_csv(rows, {"linear": ("crossover", 358, 341, 402)}))
        self.assertEqual(evaluate.evaluate(read, directory).claims[0][1].state, "holds")
        read = self.expectation(body % "400, 500")
        outcome = evaluate.evaluate(read, directory).claims[0][1]
        self.assertEqual(outcome.state, "fails")
        self.assertIn("42.0 below 400", outcome.detail)

    def test_accuracy_is_that_of_the_best_setting_on_the_validation_split(self):
        rows = [row for rate, valid, test in ((1, 0.5, 0.99), (2, 0.9, 0.8))
                for row in rows_of("dense", {64: 1.0}, 1, train_params=f"learning_rate={rate}",
                                   validation_accuracy=valid, accuracy=test, **{"pass": "train"})]
        for number, row in enumerate(rows):
            row["cell_id"] = f"{number:016x}"
        check = "{value: {value: accuracy, of: dense, within: [0.79, 0.81]}}"
        self.assertEqual(self.outcome(check, rows)[0].state, "holds")

    def test_accuracy_of_decoding_counts_and_doubts_about_its_time_do_not_matter(self):
        rows = (rows_of("dense", {64: 1.0}, 1, accuracy=0.9, **{"pass": "decode"}) +
                rows_of("window", {64: 1.0}, 1, accuracy=0.5, status="unstable",
                        reason="steal", **{"pass": "decode"}))
        check = "{order: {value: accuracy, of: [window, dense]}}"
        self.assertEqual(self.outcome(check, rows)[0].state, "holds")
        check = "{order: {value: time_s, of: [window, dense]}}"
        self.assertEqual(self.outcome(check, rows)[0].state, "missing")


class Verdicts(WithFiles):
    CLAIM = '  - {text: "a", paper: "p", check: {order: {value: time_s, of: [linear, dense]}}}\n'
    TABLE = ("tables:\n  - {title: t, value: time_s, to: dense, rows: [dense, linear], "
             "columns: {n: [4096]}, paper: {linear: [%s]}, %s}\n")

    def test_reproduced_when_claims_hold_and_numbers_are_within_tolerance(self):
        ours = 2e-8 / (1e-9 * 4096)
        found = self.judge(self.TABLE % (1.1 * ours, "tolerance: 0.2") + "claims:\n" + self.CLAIM,
                           DENSE + LINEAR)
        self.assertEqual(found.verdict, evaluate.REPRODUCED)
        self.assertFalse(found.surprising)

    def test_in_shape_when_only_the_numbers_are_off(self):
        found = self.judge(self.TABLE % (0.001, "tolerance: 0.2") + "claims:\n" + self.CLAIM,
                           DENSE + LINEAR)
        self.assertEqual(found.verdict, evaluate.IN_SHAPE)
        self.assertIn("0 of 1 numbers", found.reason)
        self.assertIn(", no)", render.text(found))

    def test_in_shape_when_the_paper_measured_something_else(self):
        found = self.judge(self.TABLE % (9, 'not_comparable: "a GPU"') + "claims:\n" + self.CLAIM,
                           DENSE + LINEAR)
        self.assertEqual(found.verdict, evaluate.IN_SHAPE)
        self.assertIn("a GPU", render.text(found))

    def test_in_shape_when_a_minor_claim_fails(self):
        minor = ('  - {text: "b", paper: "p", essential: false, check: {order: {value: peak_bytes, '
                 'of: [linear, dense]}}}\n')
        found = self.judge("claims:\n" + self.CLAIM + minor, DENSE + LINEAR)
        self.assertEqual(found.verdict, evaluate.IN_SHAPE)
        self.assertIn("1 of 2 claims hold", found.reason)

    def test_not_reproduced_when_an_essential_claim_fails(self):
        found = self.judge("claims:\n" + self.CLAIM, DENSE + rows_of("linear", power(1e-8, 2)))
        self.assertEqual(found.verdict, evaluate.NOT_REPRODUCED)
        self.assertTrue(found.surprising)

    def test_a_contradiction_that_the_file_knows_of_is_no_surprise(self):
        known = self.CLAIM.replace("check:", 'contradicted: true, because: "so", check:')
        found = self.judge("claims:\n" + known, DENSE + rows_of("linear", power(1e-8, 2)))
        self.assertEqual(found.verdict, evaluate.NOT_REPRODUCED)
        self.assertFalse(found.surprising)

    def test_not_comparable_when_nothing_can_be_asked(self):
        found = self.judge('claims:\n  - {text: "a", paper: "p", not_comparable: "no licence"}\n',
                           DENSE)
        self.assertEqual((found.verdict, found.reason), (evaluate.NOT_COMPARABLE, "no licence"))

    def test_claims_of_a_larger_scale_are_not_asked(self):
        found = self.judge("claims:\n" + self.CLAIM, DENSE + rows_of("linear", power(1e-8, 2)),
                           scale="smoke")
        self.assertEqual(found.verdict, evaluate.NOT_COMPARABLE)

    def test_missing_when_a_method_is_not_there(self):
        found = self.judge("claims:\n" + self.CLAIM, DENSE)
        self.assertEqual(found.verdict, evaluate.MISSING_CELLS)
        self.assertTrue(found.surprising)

    def test_missing_when_every_row_failed_or_is_unstable(self):
        for status in ("oom", "timeout", "unstable"):
            rows = DENSE + rows_of("linear", power(1e-8, 1), status=status, reason="why not")
            found = self.judge("claims:\n" + self.CLAIM, rows)
            self.assertEqual(found.verdict, evaluate.MISSING_CELLS)
            self.assertIn("why not", found.reason)
        self.assertEqual(self.judge("claims:\n" + self.CLAIM, rows, include_unstable=True).verdict,
                         evaluate.REPRODUCED)

    def test_missing_when_no_row_at_all_counts(self):
        rows = rows_of("dense", power(1, 1), status="oom", time_s="")
        self.assertEqual(self.judge("claims:\n" + self.CLAIM, rows).verdict, evaluate.MISSING_CELLS)

    def test_a_method_that_is_wrong_is_not_reproduced(self):
        for status in ("wrong", "crash", "error"):
            rows = DENSE + rows_of("linear", power(1e-8, 1), status=status, reason="NaN at 3")
            found = self.judge("claims:\n" + self.CLAIM, rows)
            self.assertEqual(found.verdict, evaluate.NOT_REPRODUCED)
            self.assertIn("NaN at 3", found.reason)

    def test_a_selection_of_several_settings_is_an_error(self):
        with self.assertRaisesRegex(UserError, r"table\.expect\.yaml:7: .*several settings.*heads"):
            self.judge("claims:\n" + self.CLAIM,
                       DENSE + LINEAR + rows_of("linear", power(1e-8, 1), heads=2))


class Figures(WithFiles):
    def test_only_the_figures_that_the_file_asks_for_are_drawn(self):
        read = self.expectation("figures: [memory]\nclaims:\n" + Verdicts.CLAIM)
        directory = self.results(DENSE + LINEAR)
        options = reproduce.parse(["x"])
        quiet(reproduce.draw, read, directory, directory / "figures", ["svg"], options, False)
        self.assertEqual([path.name for path in (directory / "figures").iterdir()],
                         ["memory-gaussian-forward.svg"])


class Running(unittest.TestCase):
    def test_a_script_gets_paths_of_the_project_and_others_as_they_are(self):
        inside = catalog.ROOT / "results" / "reproduce" / "x"
        self.assertEqual(running.from_root(inside), Path("results/reproduce/x"))
        self.assertEqual(running.from_root("/elsewhere/x"), Path("/elsewhere/x"))


class Integrity(WithFiles):
    BODY = "claims:\n" + Verdicts.CLAIM

    def test_an_edited_number_is_noticed(self):
        directory = self.results(DENSE + LINEAR)
        path = directory / "results.csv"
        path.write_text(path.read_text().replace(",0.1,", ",0.2,", 1))
        with self.assertRaisesRegex(integrity.Damaged, r"results\.csv:2: .*checksum"):
            evaluate.evaluate(self.expectation(self.BODY), directory)

    def test_a_removed_row_is_noticed(self):
        directory = self.results(DENSE + LINEAR)
        path = directory / "results.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        found = evaluate.evaluate(self.expectation(self.BODY), directory)
        self.assertEqual(found.verdict, evaluate.MISSING_CELLS)
        self.assertIn("1 row of the plan is not there", found.reason)

    def test_rows_of_two_machines_are_refused(self):
        rows = DENSE + rows_of("linear", power(2e-8, 1), cpu="another")
        with self.assertRaisesRegex(UserError, "2 CPU models"):
            self.judge(self.BODY, rows)

    def test_checksums_are_those_of_the_runner(self):
        text = (HERE / "runner_row.csv").read_text()  # written by `subquad run`
        header, fields = integrity.csv.reader(text.splitlines())
        place = header.index("line_crc")
        self.assertEqual(integrity.checksum(fields, place), fields[place])


class Malformed(WithFiles):
    def fault(self, body, head=HEAD):
        with self.assertRaises(UserError) as caught:
            self.expectation(body, head)
        return str(caught.exception)

    def test_an_unknown_key_names_line_and_nearest(self):
        text = self.fault("claims:\n  - {text: a, papr: b, check: {}}\n")
        self.assertRegex(text, r'table\.expect\.yaml:7:15: claims\[0\]: unknown key "papr"; '
                               r'did you mean "paper"\?')
        self.assertRegex(text, r'expected one of exponent')  # all faults at once

    def test_a_wrong_type_says_what_was_expected(self):
        body = "claims:\n  - {text: a, paper: b, check: {value: {value: time_s, of: x, within: %s}}}\n"
        for given, expected in (("3", "expected a list"), ("[1]", r"expected \[low, high\]"),
                                ("[a, 2]", "expected a number"), ("[3, 2]", "lower end first"),
                                ("[null, null]", "one of the two"), ("[.nan, 1]", "a number"),
                                ("[true, 1]", "expected a number")):
            self.assertRegex(self.fault(body % given), rf":7:\d+: claims\[0\].*{expected}")

    def test_an_unknown_column_names_the_nearest(self):
        text = self.fault("claims:\n  - {text: a, paper: b, check: {value: {value: tme_s, of: x, "
                          "within: [0, 1]}}}\n")
        self.assertIn('no column "tme_s"; did you mean "time_s"?', text)

    def test_what_is_missing_is_named(self):
        self.assertIn('"claims" is missing', self.fault("tables: []\n"))
        self.assertIn('"source" is missing',
                      self.fault("claims:\n" + Verdicts.CLAIM, HEAD.replace("source", "# source")))
        self.assertIn("either check, or not_comparable",
                      self.fault("claims:\n  - {text: a, paper: b}\n"))
        self.assertIn("asks for because", self.fault(
            "claims:\n" + Verdicts.CLAIM.replace("check:", "contradicted: true, check:")))

    def test_an_unknown_figure_names_the_nearest(self):
        text = self.fault("figures: [tim]\nclaims:\n" + Verdicts.CLAIM)
        self.assertRegex(text, r':6:11: figures\[0\]: "tim" is unknown; did you mean "time"')

    def test_numbers_of_the_paper_fit_the_table(self):
        body = ("claims:\n" + Verdicts.CLAIM + "tables:\n  - {title: t, value: time_s, rows: [a, b], "
                "columns: {n: [1, 2]}, paper: %s}\n")
        self.assertIn('no row "c"', self.fault(body % "{c: [1, 2]}, tolerance: 1"))
        self.assertIn("got 1 values, expected 2", self.fault(body % "{a: [1]}, tolerance: 1"))
        self.assertIn("either tolerance, or not_comparable", self.fault(body % "{a: [1, 2]}"))

    def test_yaml_faults_have_a_place(self):
        self.assertRegex(self.fault("claims: [\n"), r"table\.expect\.yaml:\d+:\d+: ")
        self.assertRegex(self.fault("title: again\n"), r':6:1: key "title" stands twice')
        self.assertRegex(self.fault("", ""), r":1:1: nothing in it")
        self.assertRegex(self.fault("", "- a\n"), r":1:1: got a list, expected a map")


class Committed(WithFiles):
    BODY = "claims:\n" + Verdicts.CLAIM

    def publish(self):
        read = self.expectation(self.BODY)
        directory = self.results(DENSE + LINEAR)
        root = self.folder / "committed"
        committed.publish(evaluate.evaluate(read, directory), directory, root)
        return read, root

    def test_committed_results_are_published_anew_in_place(self):
        read, root = self.publish()
        place = committed.place(read, root)
        before = (place / "results.csv").read_bytes()
        (place / committed.TABLE).unlink()
        committed.publish(committed.judge(read, place), place, root)
        self.assertEqual((place / "results.csv").read_bytes(), before)
        self.assertTrue((place / committed.TABLE).exists())

    def test_what_was_published_holds(self):
        read, root = self.publish()
        self.assertEqual(committed.check(read, root=root), [])

    def test_a_changed_table_is_found(self):
        read, root = self.publish()
        path = root / "paper" / "table" / "table.md"
        path.write_text(path.read_text().replace("holds", "fails"))
        self.assertRegex(" ".join(committed.check(read, root=root)),
                         r"table\.md:\d+: does not follow from results\.csv")

    def test_a_changed_expectation_is_found(self):
        _, root = self.publish()
        read = self.expectation(self.BODY.replace("[linear, dense]", "[dense, linear]"))
        self.assertEqual(len(committed.check(read, root=root)), 1)

    def test_another_column_is_found(self):
        read, root = self.publish()
        path = root / "paper" / "table" / "results.csv"
        path.write_text(path.read_text().replace("attempt", "atempt", 1))
        self.assertIn("column 3 is atempt, expected attempt",
                      " ".join(committed.check(read, root=root)))

    def test_an_edited_result_is_found(self):
        read, root = self.publish()
        path = root / "paper" / "table" / "results.csv"
        path.write_text(path.read_text().replace(",0.1,", ",0.2,", 1))
        self.assertIn("checksum", " ".join(committed.check(read, root=root)))
        with self.assertRaises(UserError) as raised:  # and it is this file, not a copy
            committed.page([read], root)
        self.assertIn(str(path), str(raised.exception))

    def test_the_page_has_every_claim_once_and_is_replaced_whole(self):
        read, root = self.publish()
        page = committed.page([read], root)
        self.assertEqual(page.count("| a | p | holds |"), 1)
        self.assertIn("**reproduced**", page)
        text = committed.with_page("# Results\n\nbefore\n", page)
        self.assertEqual(committed.with_page(text, page), text)
        self.assertTrue(text.startswith("# Results\n\nbefore\n"))

    def test_without_a_run_the_page_says_so(self):
        page = committed.page([self.expectation(self.BODY)], self.folder / "nowhere")
        self.assertIn("| a | p | not run | no committed run |", page)


if __name__ == "__main__":
    unittest.main()
