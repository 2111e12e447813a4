"""The page of 5,000 rows in a real browser: browser.py [FOLDER for screenshots]. Status 77, and a
loud line, where there is no Chromium (Debian's package chromium). Run by ctest, label browser."""

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "plots"))
sys.path.insert(0, str(HERE.parents[1] / "plots"))
sys.dont_write_bytecode = True

import chromium  # noqa: E402
import pages  # noqa: E402

SKIPPED = 77
ROWS = 5000
faults = []


def expect(what, found, wanted):
    if found != wanted:
        faults.append(f"{what}: {found!r}, expected {wanted!r}")


def text(browser, selector):
    return browser.evaluate(f"document.querySelector({selector!r}).textContent.trim()")


def click(browser, selector):
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def count(browser, selector):
    return browser.evaluate(f"document.querySelectorAll({selector!r}).length")


def check_theme(browser):
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.size(1440, 900, dark=False)
    light = browser.evaluate(colour)
    browser.size(1440, 900, dark=True)
    dark = browser.evaluate(colour)
    if light == dark:
        faults.append(f"theme: {light} in both schemes of the system")
    click(browser, "#theme")  # auto -> light
    expect("theme: light on a dark system", browser.evaluate(colour), light)
    click(browser, "#theme")  # dark
    browser.size(1440, 900, dark=False)
    expect("theme: dark on a light system", browser.evaluate(colour), dark)
    click(browser, "#theme")  # auto again


def check_width(browser):
    for width in (390, 1440):
        browser.size(width, 900)
        wide = browser.evaluate("document.documentElement.scrollWidth")
        if wide > width:
            faults.append(f"{width} px: the page is {wide} px wide")


def check_figures(browser, drawn):
    expect("figures", count(browser, "figure svg"), drawn)
    expect("figures without a size", browser.evaluate(
        "[...document.querySelectorAll('figure svg')].filter(each => each.getBoundingClientRect().height < 80)"
        ".length"), 0)
    expect("letters and marks that are missing", browser.evaluate(
        "[...document.querySelectorAll('svg use')].map(each => each.getAttribute('href')).filter("
        "each => !document.getElementById(each.slice(1))).length"), 0)
    expect("ids that stand twice", browser.evaluate(
        "(all => all.length - new Set(all).size)([...document.querySelectorAll('[id]')].map(e => e.id))"), 0)
    click(browser, ".enlarge")
    expect("enlarged", browser.evaluate("document.querySelector('dialog').open"), True)
    browser.press("Escape")
    expect("closed by Escape", browser.evaluate("document.querySelector('dialog').open"), False)


def check_rows(browser):
    lines = "#rows tbody tr"
    expect("rows of a page", count(browser, lines), 50)
    expect("all rows", text(browser, "#found"), f"Rows 1 to 50 of {ROWS:,}")
    click(browser, "#last")
    expect("last page", text(browser, "#page"), f"Page {ROWS // 50} of {ROWS // 50}")
    began = time.monotonic()
    head = "[...document.querySelectorAll('#rows thead button')].find(e => e.textContent === 'time_s')"
    browser.evaluate(f"{head}.click()")
    print(f"sorting {ROWS} rows took {time.monotonic() - began:.2f} s")
    sort = "document.querySelector('#rows [aria-sort]')"
    expect("sorted", browser.evaluate(f"{sort}.textContent + {sort}.ariaSort"), "time_sascending")
    browser.press("Enter")  # the heading has the focus: the other way, by the keyboard
    expect("sorted by the keyboard", browser.evaluate(f"{sort}.ariaSort"), "descending")
    times = "[...document.querySelectorAll('#rows tbody tr')].map(e => Number(e.cells[7].title))"
    expect("from large to small", browser.evaluate(
        f"(t => t[0] > 0 && t.every((x, i) => i === 0 || x <= t[i - 1]))({times})"), True)
    click(browser, "#rows .open")
    expect("a row in full", count(browser, "#rows .detail"), 1)
    click(browser, "#rows .open")


def choose(browser, name, value):
    """Only this value of a filter."""
    click(browser, f".filter[data-column={name}] .none")
    click(browser, f".filter[data-column={name}] input[value={value}]")


def check_filters(browser, rows):
    choose(browser, "task", "mqar")
    of_task = sum(row["task"] == "mqar" for row in rows)
    expect("rows of a task", text(browser, "#found"), f"Rows 1 to 50 of {of_task:,} (of {ROWS:,} in all)")
    expect("figures of other tasks", browser.evaluate(
        "[...document.querySelectorAll('.view')].filter(e => !e.hidden && e.dataset.task !== 'mqar').length"), 0)
    choose(browser, "label", "linear")
    wanted = sum(row["task"] == "mqar" and row["method"] == "linear" for row in rows)
    expect("rows of a task and a method", text(browser, "#found"),
           f"Rows 1 to 50 of {wanted:,} (of {ROWS:,} in all)")
    expect("curves of others that are not faint", browser.evaluate(
        "[...document.querySelectorAll('svg [data-label]:not(.faint)')].filter(e => e.dataset.label"
        " !== 'linear').length"), 0)
    expect("faint curves", browser.evaluate("document.querySelectorAll('svg .faint').length > 100"), True)
    expect("table rows of others", browser.evaluate(
        "[...document.querySelectorAll('.pivot tr[data-label]')].filter(e => !e.hidden && "
        "e.dataset.label !== 'linear').length"), 0)
    click(browser, "#reset")
    expect("all rows again", text(browser, "#found"), f"Rows 1 to 50 of {ROWS:,}")
    failed = sum(row["status"] == "oom" for row in rows)
    click(browser, ".count[data-status=oom]")
    expect("failed rows", text(browser, "#found").split(" (")[0], f"Rows 1 to {min(50, failed)} of {failed:,}")
    click(browser, "#reset")
    began = time.monotonic()
    browser.evaluate("(e => { e.value = 'needs more than'; e.dispatchEvent(new Event('input')); })"
                     "(document.querySelector('#search'))")
    while "of 5,000 in all" not in text(browser, "#found") and time.monotonic() < began + 10:
        time.sleep(0.02)
    expect("rows found by their text", text(browser, "#found").split(" (")[0],
           f"Rows 1 to {min(50, failed)} of {failed:,}")
    click(browser, "#reset")


def check_tables(browser):
    shown = "[...document.querySelectorAll('.quantity')].filter(e => !e.hidden).map(e => e.dataset.quantity).join()"
    expect("tables at first", browser.evaluate(shown), "time_s")
    click(browser, "input[name=quantity][value=rel_error]")
    expect("tables chosen", browser.evaluate(shown), "rel_error")
    table = "document.querySelector('.quantity[data-quantity=rel_error] table')"
    browser.evaluate(f"{table}.querySelectorAll('thead button')[1].click()")
    expect("a sorted table", browser.evaluate(
        f"(t => t.every((x, i) => i === 0 || x >= t[i - 1]))([...{table}.tBodies[0].rows].map(e => "
        "Number(e.cells[1].dataset.v)))"), True)
    expect("controls without a name", browser.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter(e => !(e.textContent.trim() || "
        "e.ariaLabel || e.labels?.length)).length"), 0)


def screenshots(browser, page, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in ((390, 844), (1440, 900)):
        for dark in (False, True):
            browser.size(width, height, dark)
            browser.open(page)
            for place in ("main", "problems", "figures", "tables", "rows-section", "machine"):
                browser.evaluate(f"document.getElementById('{place}').scrollIntoView()")
                browser.screenshot(folder / f"{width}-{'dark' if dark else 'light'}-{place}.png")


def main(arguments):
    program = chromium.find()
    if program is None:
        print("SKIPPED: no chromium; the page was NOT looked at in a browser")
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder, chromium.Chromium(program) as browser:
        directory = Path(folder) / "large"
        rows = pages.large(directory, ROWS)
        page, drawn = pages.write(directory)
        browser.size(1440, 900)
        began = time.monotonic()
        browser.open(page)
        print(f"{page.stat().st_size / 1e6:.1f} MB, {drawn} figures; opened in {time.monotonic() - began:.1f} s")
        check_rows(browser)
        check_filters(browser, rows)
        check_tables(browser)
        check_figures(browser, drawn)
        check_theme(browser)
        check_width(browser)
        hostile, _ = pages.write(pages.hostile(Path(folder) / "hostile"))
        browser.open(hostile)
        expect("strings that ran as a script", browser.evaluate("typeof window.hacked"), "undefined")
        if arguments:
            screenshots(browser, page, Path(arguments[0]))
        expect("errors of the console", browser.errors, [])
        expect("requests beyond the page", sorted({url for url in browser.requests
                                                   if url not in (page.as_uri(), hostile.as_uri())
                                                   and not url.startswith("data:")}), [])
    for fault in faults:
        print(f"browser.py: {fault}", file=sys.stderr)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
