"""How the scripts of plots/ end: by the same statuses, with a line on stderr."""
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PLOTS = Path(__file__).resolve().parents[2] / "plots"


def run(name, folder, **environment):
    return subprocess.run([sys.executable, str(PLOTS / f"{name}.py"), folder], capture_output=True,
                          text=True, env={**os.environ, **environment})


class Script(unittest.TestCase):
    def test_a_missing_library_is_status_2_and_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for library in ("matplotlib", "pandas"):
                place = Path(folder, library)
                place.mkdir()
                (place / f"{library}.py").write_text(f"raise ImportError('no {library}')\n")
            for name, library in (("plot", "matplotlib"), ("attention", "matplotlib"), ("report", "matplotlib"),
                                  ("reproduce", "pandas"), ("table", "pandas")):
                done = run(name, folder, PYTHONPATH=str(Path(folder, library)))
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertRegex(done.stderr, rf"^{name}\.py: no {library}; install .*python3-{library}")

    def test_mistakes_are_status_2_and_unreadable_files_status_3(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, status in (("plot", 2), ("table", 2), ("report", 2), ("attention", 3)):
                done = run(name, folder)
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertRegex(done.stderr, rf"^{name}\.py: ")


if __name__ == "__main__":
    unittest.main()
