"""The report in a real browser: nothing is wider than the page, on a desk, a phone and paper."""

import re
import shutil
import subprocess

import pytest
from test_compare import make_baselines, make_sweep, make_test_set

from hpc_ecg.comparison.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.docs,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]
MEASURE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("table, svg, pre, p")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1);
  document.title = `${document.documentElement.scrollWidth} of ${innerWidth}: `
    + wide.map(e => e.id || e.tagName).join(" ");
})</script></body>"""


LABELS = ("Atrial fibrillation", "Left ventricular ejection fraction below 40 %")


@pytest.fixture(scope="module", params=[("afib_5y",), LABELS], ids=["one label", "several"])
def page(request, tmp_path_factory):
    folder, labels = tmp_path_factory.mktemp("sweep"), request.param
    test_set = make_test_set(labels=labels)
    names = (
        "ssl_probe_then_finetune+gradual_unfreezing",
        "afib_keep_head",
        "afib_recalibrate_only",
    )
    names += ("random_frozen_stem", "ssl_new_head,label_fraction=0.01", "ssl_linear_probe")
    qualities = {name: 0.3 * k for k, name in enumerate(names)}
    task = "binary" if len(labels) == 1 else "multilabel"
    make_sweep(folder, qualities, test_set=test_set, task=task)
    make_baselines(folder, test_set, 0.5)
    (folder / names[3] / "seed-1" / "finished.json").unlink()
    return write_report(folder, replicates=50).page


def browse(*options):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [1280, 500])
def test_no_table_and_no_figure_is_wider_than_the_window(page, tmp_path, width):
    copy = tmp_path / "measured.html"
    text = page.read_text().replace("There was no protocol", f"{'7' * 64} is its SHA-256", 1)
    assert "7777" in text
    copy.write_text(text.replace("</body>", MEASURE))
    dom = browse(f"--window-size={width},900", "--dump-dom", copy.as_uri())
    title = re.search("<title>(.*?)</title>", dom).group(1)
    scroll, inner, wide = re.fullmatch(r"(\d+) of (\d+): ?(.*)", title).groups()
    assert int(inner) == width, title
    assert int(scroll) <= int(inner) and not wide, title


def test_the_page_can_be_printed(page, tmp_path):
    pdf = tmp_path / "page.pdf"
    browse("--no-pdf-header-footer", f"--print-to-pdf={pdf}", page.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 50_000
