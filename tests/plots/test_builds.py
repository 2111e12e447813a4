"""Rows that must not stand together: of several builds, or of a build that is no release build."""
import unittest

from test_plots import UserError, WithDirectory, rows_of


class Builds(WithDirectory):
    def test_rows_of_two_builds_are_refused(self):
        self.write(rows_of("dense", 256, [1.0]) + rows_of("dense", 512, [1.0], build_id="other"))
        with self.assertRaisesRegex(UserError, "2 builds"):
            self.load()
        self.assertEqual(len(self.load(allow_mixed=True).frame), 2)

    def test_rows_of_a_debug_build_are_refused(self):
        self.write(rows_of("dense", 256, [1.0], build="Debug x"))
        with self.assertRaisesRegex(UserError, "not a release build"):
            self.load()
        self.assertEqual(len(self.load(allow_mixed=True).frame), 1)


if __name__ == "__main__":
    unittest.main()
