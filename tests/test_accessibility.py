"""No page that the package writes has a problem that axe-core knows, or is wider than the window.

axe.min.js is a tool of developers and no part of the package: HPC_ECG_AXE is its path, or
`npm install --prefix build/axe axe-core@4.10.3` puts it where it is found.
"""

import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from recorded import copy_of_0_1
from test_sites import write_site

from hpc_ecg.cli import main
from hpc_ecg.comparison.report import write_report
from hpc_ecg.inference import explain
from hpc_ecg.inference.map_checks import check_maps
from hpc_ecg.reporting.html import render_page
from hpc_ecg.shards.inspection import inspect_shards, write_page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[1]
AXE = Path(
    os.environ.get("HPC_ECG_AXE", ROOT / "build/axe/node_modules/axe-core/axe.min.js")
).absolute()
pytestmark = [
    pytest.mark.docs,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
    pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core: {AXE} is missing"),
]
TEMPLATES = {  # kind of page -> its template
    "quality": "quality_report",
    "inspection": "inspection",
    "sweep": "sweep_report",
    "run": "sweep_report",
    "errors": "errors",
    "across": "across",
    "explanation": "explain",
    "explanation without a map": "explain",
}
SCHEMES = {"light": 1, "dark": 0}
WIDTHS = (420, 1600, 1100)
RUN_AXE = """<script>addEventListener("load", async () => {
  const found = {scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, widths = {}, script = page.createElement("script");
    for (frame.width of WIDTHS) widths[frame.width] = page.documentElement.scrollWidth;
    script.src = "AXE";
    await new Promise(done => { script.onload = done; page.head.append(script); });
    const {violations, passes} = await frame.contentWindow.axe.run(page);
    const where = v => v.nodes.slice(0, 3).map(n => `${n.target}: ${n.html.slice(0, 150)}`);
    const problems = violations.map(v => [v.id, ...where(v)]);
    found[frame.title] = {widths, problems, rules: passes.length};
  }
  const said = document.createElement("pre");
  said.id = "found";
  said.textContent = JSON.stringify(found);
  document.body.replaceChildren(said);
})</script>"""


def write_pages(folder, shards):
    """A page of each kind."""
    pages = {"quality": shards / "quality.html", "inspection": folder / "inspection.html"}
    inspection = inspect_shards(shards, verify=False)
    inspection.facts["lacks"] = ["split valid has no positive record"]
    inspection.facts["labels"][0]["prevalence"] = 0.0  # a highlighted row
    write_page(pages["inspection"], inspection, num_plots=2)
    sites = [write_site(folder / name, k, num_patients=150) for k, name in enumerate("abc")]
    assert main(["report", "--across", *sites, "--out", str(folder / "across")]) == 0
    pages["across"] = folder / "across" / "index.html"
    old = copy_of_0_1(folder)
    sweep = old / "sweeps" / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(old)
        pages["sweep"] = write_report(sweep, replicates=20).page
        pages["run"] = write_report(sweep / "random" / "seed-0", replicates=20).page
    pages["errors"] = pages["sweep"].with_name("errors.html")
    words = [str(sweep), str(old / "cohort" / "records" / "r001.hea")]
    words += ["--strategy", "random", "--label", "af", "--out"]
    for name, is_passed in (("explanation", True), ("explanation without a map", False)):
        pages[name] = folder / f"{name}.html"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(old)
            patch.setattr(explain, "check_maps", checks_that_end(is_passed))
            assert main(["explain", *words, str(pages[name])]) == (0 if is_passed else 3)
    return pages


def checks_that_end(is_passed):
    def check(*args):
        passed = dict.fromkeys(("weights", "deletion", "seeds"), is_passed)
        return check_maps(*args) | {"passed": passed, "has_map": is_passed}

    return check


@pytest.fixture(scope="module")
def findings(shards, tmp_path_factory):
    """What axe says about each page, by scheme: all of them in one window, folded parts open."""
    folder = tmp_path_factory.mktemp("pages")
    frames = ""
    for kind, path in write_pages(folder, shards).items():
        text = path.read_text().replace("<details", "<details open")
        frames += f'<iframe title="{kind}" height="900" srcdoc="{escape(text)}"></iframe>'
    script = RUN_AXE.replace("WIDTHS", str(list(WIDTHS))).replace("AXE", AXE.as_uri())
    window = folder / "window.html"
    window.write_text(f"<!doctype html><title>x</title><body>{frames}{script}</body></html>")
    return {scheme: run_axe(window, folder / scheme, number) for scheme, number in SCHEMES.items()}


def run_axe(window, profile, scheme):
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
    ]
    options += ["--disable-component-update", "--disable-sync", "--no-first-run"]
    options += [f"--user-data-dir={profile}", f"--blink-settings=preferredColorScheme={scheme}"]
    options += ["--virtual-time-budget=120000", "--dump-dom", window.as_uri()]
    done = subprocess.run(
        [BROWSER, *options], capture_output=True, text=True, timeout=120, check=False
    )
    said = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert done.returncode == 0 and said, done.stderr[-2000:]
    return json.loads(unescape(said[1]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", TEMPLATES)
def test_axe_finds_no_problem(findings, kind, scheme):
    found = findings[scheme]
    assert found["scheme"] == scheme and found[kind]["rules"] > 15
    assert found[kind]["problems"] == []


@pytest.mark.parametrize("kind", TEMPLATES)
def test_no_page_is_wider_than_the_window(findings, kind):
    for scheme in SCHEMES:
        assert findings[scheme][kind]["widths"] == {str(width): width for width in WIDTHS}


def test_each_template_of_a_page_is_checked():
    folder = Path(render_page.__code__.co_filename).parent / "templates"
    extends = [
        p.name.split(".")[0] for p in folder.glob("*.html.jinja") if "{% extends" in p.read_text()
    ]
    assert set(TEMPLATES.values()) == set(extends)
