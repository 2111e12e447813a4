"""Tests of the expectation files and committed tables of this project. Run by ctest, as test_reproduce.py."""
import unittest

from test_reproduce import quiet  # which finds the folders of the imports below

import reproduce  # noqa: E402  (plots/reproduce.py)
from subquad_reproduce import catalog, committed, running  # noqa: E402


class Shipped(unittest.TestCase):
    def test_every_expectation_file_is_well_formed_and_has_its_config(self):
        read = catalog.find("all")
        self.assertGreaterEqual(len(read), 15)
        for each in read:
            if each.config is not None:
                self.assertTrue(each.config.exists(), each.config)
            if each.script is not None:
                self.assertTrue(each.script.exists(), each.script)

    def test_committed_tables_follow_from_their_results(self):
        faults = [fault for each in catalog.find("all") for fault in committed.check(each)]
        self.assertEqual(faults + committed.page_fault(), [])

    def test_an_unknown_paper_names_the_nearest(self):
        status, _, err = quiet(reproduce.main, ["linear_transformer", "--results", "x"])
        self.assertEqual(status, 2)
        self.assertIn('did you mean "linear_transformers"', err)

    def test_the_scale_of_a_paper_falls_back_to_that_of_a_laptop(self):
        each = next(found for found in catalog.find("all")
                    if found.config and "paper" not in found.scales)
        self.assertEqual(running.scale_of(each, "paper")[0], "laptop")


if __name__ == "__main__":
    unittest.main()
