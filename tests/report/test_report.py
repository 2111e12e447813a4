"""Tests of the page of a results directory, without a browser: what is in it, what it may not hold,
and that no text leaves its place. Run by ctest; alone:

    /usr/bin/python3 -m unittest discover -s tests/report
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "plots"))
sys.path.insert(0, str(HERE.parents[1] / "plots"))
sys.dont_write_bytecode = True

import pages  # noqa: E402
import report  # noqa: E402  (plots/report.py)
import synthetic  # noqa: E402
from subquad_plots import figures, load, overview, views  # noqa: E402
from subquad_report import data, drawing  # noqa: E402

VOID = {"meta", "link", "input", "img", "br", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """Elements with their attributes, the text of all of them, and what is left open."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.texts, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in VOID:
            raise AssertionError(f"</{tag}> closes {self.open[-3:]}")

    def handle_data(self, text):
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.texts).append(text)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return "".join(self.texts)

    @property
    def data(self):
        return json.loads(self.scripts[-2] if self.scripts[-1].strip() else self.scripts[-3])


def values(column):
    if "values" in column:
        return column["values"]
    return [column["dict"][place] for place in column["index"]]


def quiet(*arguments):
    """(status, stdout, stderr) of the script."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = report.main(list(map(str, arguments)))
    return status, out.getvalue(), err.getvalue()


class WithDirectory(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.directory = Path(folder.name) / "run"

    def sweep(self, **options):
        options = {"tasks": ("gaussian",), "passes": ("forward",), "lengths": [256, 512, 1024],
                   "rounds": 2, **options}
        return synthetic.sweep(synthetic.QUICKSTART, **options)

    def page(self, rows, *options, torn=""):
        """Without figures unless asked for: drawing takes most of the time."""
        synthetic.write(self.directory, rows, torn)
        status, _, notices = quiet("--no-figures", *options, self.directory)
        self.assertEqual(status, 0, notices)
        return Page((self.directory / "report.html").read_text()), notices


class Whole(unittest.TestCase):
    """One page with everything in it; each test looks at another part."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.directory = Path(cls.folder.name)
        cls.rows = synthetic.sweep(synthetic.QUICKSTART, tasks=("gaussian", "mqar"),
                                   passes=("forward",), rounds=2)
        pages.add_machine(synthetic.write(cls.directory, cls.rows,
                                          crossovers=synthetic.CROSSOVERS))
        (cls.directory / "config.resolved.yaml").write_text("name: example\n")
        path, cls.drawn = pages.write(cls.directory)
        cls.source = path.read_text()
        cls.page = Page(cls.source)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_every_row_and_every_column_with_a_value_is_there(self):
        found = self.page.data
        self.assertEqual(found["rows"], len(self.rows))
        columns = {column["name"]: values(column) for column in found["columns"]}
        for name in synthetic.columns():
            wanted = sorted(str(row[name]) for row in self.rows)
            if any(wanted) and name != "line_crc":
                self.assertEqual(sorted(columns[name]), wanted, name)
        self.assertEqual(sum(found["superseded"]),
                         sum(row["status"] == "interrupted" for row in self.rows))

    def test_every_figure_of_plot_is_there(self):
        results = load.load(self.directory, stream=io.StringIO())
        found = views.views(results)
        wanted = sum(kind.applies(view) for view in found for kind in figures.FIGURES)
        wanted += overview.choose(found) is not None
        self.assertGreater(wanted, 8)
        self.assertEqual(self.drawn, wanted)
        self.assertEqual(len(self.page.all("figure")), wanted)
        drawings = [svg for svg in self.page.all("svg") if svg.get("role") == "img"]
        self.assertEqual(len(drawings), wanted)
        self.assertTrue(all(svg["aria-label"] for svg in drawings))

    def test_letters_marks_and_clips_of_figures_are_there_once(self):
        ids = [attributes["id"] for _, attributes in self.page.elements if "id" in attributes]
        self.assertEqual(len(ids), len(set(ids)))
        asked = {use["href"][1:] for use in self.page.all("use")}
        asked |= set(re.findall(r"url\(#([^)]+)\)", self.source))
        self.assertGreater(len(asked), 30)
        self.assertEqual(asked - set(ids), set())

    def test_curves_know_their_method(self):
        labels = {attributes["data-label"] for tag, attributes in self.page.elements
                  if tag == "g" and "data-label" in attributes}
        self.assertEqual(labels, {model.method for model in synthetic.QUICKSTART})

    def test_nothing_is_loaded_from_elsewhere(self):
        self.assertNotRegex(self.source, r"https?:|//[a-z]+\.|@import")
        for tag, attributes in self.page.elements:
            self.assertNotIn("src", attributes, tag)
            self.assertRegex(attributes.get("href") or "#", r"^(#|data:,$)", tag)
        self.assertEqual(set(re.findall(r"url\((.)", self.source)), {"#"})
        policy = next(meta for meta in self.page.all("meta") if meta.get("http-equiv"))
        self.assertIn("default-src 'none'", policy["content"])

    def test_failures_flags_machine_and_config_are_there(self):
        for text in ("needs more than the limit of 256 MiB", "spread 0.31 above 0.1", "16 GiB",
                     "Example CPU @ 2.50GHz", "name: example"):
            self.assertIn(text, self.page.text)
        found = data.problems(data.read(self.directory))
        wanted = sum(row["status"] not in ("ok", "interrupted") for row in self.rows)
        self.assertEqual(sum(each["rows"] for each in found), wanted)
        self.assertEqual([each["status"] for each in found][0], "oom")

    def test_filters_have_every_method_task_and_pass(self):
        boxes = {attributes["value"] for attributes in self.page.all("input")
                 if attributes.get("type") == "checkbox" and "value" in attributes}
        self.assertEqual(boxes, {model.method for model in synthetic.QUICKSTART}
                         | {"gaussian", "mqar", "forward"})

    def test_controls_have_names_and_tables_have_headings(self):
        for button in re.findall(r"<button([^>]*)>(.*?)</button>", self.source):
            self.assertTrue("aria-label" in button[0] or re.sub("<[^>]*>", "", button[1]).strip(),
                            button)
        for found in re.findall(r"<table.*?</table>", self.source, re.DOTALL):
            self.assertIn("<caption", found)
        for found in re.findall(r'<table class="sortable.*?</table>', self.source, re.DOTALL):
            self.assertIn('scope="col"', found)
            self.assertIn('scope="row"', found)
        self.assertEqual([tag for tag, _ in self.page.elements if tag == "h1"], ["h1"])
        self.assertEqual(self.page.all("html")[0]["lang"], "en")

    def test_numbers_of_a_table_are_medians_over_rounds(self):
        times = sorted(float(row["time_s"]) for row in self.rows
                       if row["method"] == "linear" and row["task"] == "mqar" and row["n"] == 1024)
        cells = [float(attributes["data-v"]) for attributes in self.page.all("td")
                 if attributes.get("data-v")]
        self.assertTrue(any(abs(value - sum(times) / 2) < 1e-12 for value in cells))


class Hostile(WithDirectory):
    def test_no_text_leaves_its_place(self):
        pages.hostile(self.directory)
        path, drawn = pages.write(self.directory)
        self.assertGreater(drawn, 3)
        page = Page(path.read_text())
        self.assertEqual(page.open, [])
        self.assertEqual(len(page.all("script")), 2)
        self.assertEqual(page.all("img"), [])
        for tag, attributes in page.elements:
            self.assertFalse([name for name in attributes if name.startswith("on")], tag)
        self.assertGreater(page.text.count(pages.EVIL), 3)
        columns = {column["name"]: values(column) for column in page.data["columns"]}
        self.assertEqual(set(columns["command"]), {pages.EVIL})
        labels = {attributes.get("data-label") for tag, attributes in page.elements if tag == "g"}
        self.assertIn(f"linear{pages.EVIL}", labels)


class Doubts(WithDirectory):
    def test_a_torn_line_rows_of_the_plan_and_machines_are_noticed(self):
        rows = self.sweep(faults=False)
        rows[0]["cpu"] = "Another CPU"
        self.directory.mkdir()
        (self.directory / "plan.json").write_text(json.dumps(
            {"cells": sorted({row["cell_id"] for row in rows}) + ["ffff"], "rounds": 2}))
        page, printed = self.page(rows, torn="0123456789abcdef,2,1,ok,,den")
        for text in ("The last line of results.csv has no end", "2 rows of the plan are not there",
                     "Rows of 2 CPU models: Another CPU, Example CPU", "There is no machine.json",
                     "No figures and tables"):
            self.assertIn(text, page.text)
            self.assertIn(text, printed)
        self.assertEqual(page.data["rows"], len(rows))
        page, _ = self.page(rows, "--allow-mixed")
        self.assertNotIn("No figures and tables", page.text)

    def test_an_edited_number_is_noticed(self):
        rows = self.sweep(faults=False)
        rows[3]["line_crc"] = "12345678"
        page, _ = self.page(rows)
        self.assertRegex(page.text, r"results\.csv:5: the line does not match its checksum")

    def test_a_run_in_which_everything_failed_has_a_page(self):
        rows = [synthetic.fail(row, "timeout", "no answer within 1 s")
                for row in self.sweep(faults=False)]
        page, _ = self.page(rows)
        self.assertEqual(page.data["rows"], len(rows))
        self.assertEqual(page.all("figure"), [])
        self.assertIn("no answer within 1 s", page.text)

    def test_reasons_that_differ_in_numbers_are_one_kind_and_all_are_there(self):
        rows = self.sweep(faults=False)
        for number, row in enumerate(row for row in rows if row["method"] == "linear"):
            row.update(status="unstable", reason=f"spread 0.{number + 2} above 0.1", flags="spread")
        page, _ = self.page(rows)
        found = data.problems(data.read(self.directory))
        self.assertEqual([(each["label"], each["rows"]) for each in found], [("linear", 6)])
        for number in range(6):
            self.assertIn(f"spread 0.{number + 2} above 0.1", page.text)

    def test_statuses(self):
        self.assertEqual(quiet(self.directory)[0], 2)
        synthetic.write(self.directory, self.sweep(faults=False))
        self.assertEqual(quiet("--no-figures", "--out", "/proc/nowhere/page.html",
                               self.directory)[0], 3)
        self.assertFalse((self.directory / "report.html").exists())

    def test_an_old_file_without_new_columns_has_a_page(self):
        text = synthetic.to_csv(self.sweep(faults=False)).splitlines()
        self.directory.mkdir()
        (self.directory / "results.csv").write_text(
            "\n".join(",".join(line.split(",")[:60]) for line in text) + "\n")
        status, _, notices = quiet("--no-figures", self.directory)
        self.assertEqual(status, 0, notices)


class Drawing(unittest.TestCase):
    def test_labels_keep_their_digits(self):
        svg = drawing.inlined('<svg viewBox="0 0 9 9"><g id="series-0"><path d="M 12.345678 1"/></g></svg>', "f0-",
                              "a", {"series-0": "favor eps=0.00001 scale=1.23456"}, drawing.Glyphs())
        self.assertIn('data-label="favor eps=0.00001 scale=1.23456"', svg)
        self.assertIn('d="M 12.35 1"', svg)

    def test_a_factor_keeps_its_digits_and_a_place_gets_shorter(self):
        text = re.sub(r"-?\d+\.\d{4,}", drawing.shorter, "M 123.456789 0 scale(0.015625 -0.067)")
        self.assertEqual(text, "M 123.46 0 scale(0.01562 -0.067)")


@unittest.skipUnless(os.environ.get("SUBQUAD"), "needs the built program: SUBQUAD=build/subquad")
class Command(WithDirectory):
    def test_the_command_writes_the_page_and_the_crossovers(self):
        synthetic.write(self.directory, self.sweep(faults=False))
        target = self.directory / "elsewhere" / "page.html"
        found = subprocess.run([os.environ["SUBQUAD"], "report", self.directory, "--out", target,
                                "--no-figures"], capture_output=True, text=True, timeout=120)
        self.assertEqual(found.returncode, 0, found.stderr)
        self.assertIn("30 rows, 0 figures", found.stdout)
        self.assertIn("Lengths from which a method beats dense", target.read_text())


if __name__ == "__main__":
    unittest.main()
