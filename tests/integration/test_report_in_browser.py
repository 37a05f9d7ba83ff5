"""The report in a real headless Chromium: everything is drawn, nothing is requested, nothing complains."""

import base64
import json
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

from probes.dynamics.published import pythia
from probes.report.compare_page import write_comparison
from probes.report.html import write_report
from tests.support.synthetic_run import write_synthetic_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")
NUM_FIGURES = 18

# Measured in the page at a given width: an iframe, since Chromium's own window is never narrower than 500 pixels.
MEASURE = """<!doctype html><body style="margin:0">
<iframe src="FILE" style="width:WIDTHpx;height:3000px;border:0"></iframe><pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument;
  const view = document.querySelector("iframe").contentWindow;
  const outside = (node) => node.getBoundingClientRect().right > view.innerWidth + 1;
  const before = [...page.querySelectorAll(".xtick")].map((tick) => tick.textContent).join();
  page.querySelector("button[data-axis=linear]").click();
  setTimeout(() => {
    document.getElementById("found").textContent = JSON.stringify({
      scroll: page.documentElement.scrollWidth, width: view.innerWidth,
      plots: page.querySelectorAll(".js-plotly-plot .main-svg:first-child").length,
      outside: [...page.querySelectorAll("figure, .tiles, nav, h1")].filter(outside).length,
      labelsCut: [...page.querySelectorAll("figure")].filter((figure) =>
        [...figure.querySelectorAll(".annotation-text")].some((text) =>
          text.getBoundingClientRect().right > figure.getBoundingClientRect().right)).length,
      pressed: page.querySelector("button[aria-pressed=true]").dataset.axis,
      switched: [...page.querySelectorAll(".xtick")].map((tick) => tick.textContent).join() !== before,
      requests: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    });
  }, 500);
}, 500));
</script></body>"""


# In a comparison: one button places all domains on another axis, one hides a run in all figures; both by keyboard.
COMPARE = """<!doctype html><body style="margin:0">
<iframe src="FILE" style="width:WIDTHpx;height:6000px;border:0"></iframe><pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument;
  const view = document.querySelector("iframe").contentWindow;
  const outside = (node) => node.getBoundingClientRect().right > view.innerWidth + 1;
  const domains = [...page.querySelectorAll("#domains .plot")];
  const ticks = () => domains.map((plot) => plot.querySelector(".xtitle").textContent);
  const shown = () => domains.map((plot) => plot.querySelectorAll(".scatterlayer .trace").length);
  const before = { ticks: ticks(), shown: shown() };
  const flops = page.querySelector("button[data-x=flops]");
  const run = page.querySelector("button[data-run]");
  flops.click(); run.click();
  setTimeout(() => {
    document.getElementById("found").textContent = JSON.stringify({
      scroll: page.documentElement.scrollWidth, width: view.innerWidth,
      outside: [...page.querySelectorAll("figure, .tiles, nav, h1, .legend, .scroll")].filter(outside).length,
      before: before.ticks[0], after: [...new Set(ticks())],
      pressed: [...page.querySelectorAll("button[data-x][aria-pressed=true]")].map((button) => button.dataset.x),
      hidden: [...new Set(page.querySelectorAll(`button[data-run="${run.dataset.run}"][aria-pressed=false]`))].length,
      fewer: shown().every((count, index) => count < before.shown[index]),
      focusable: [flops, run, ...page.querySelectorAll(".scroll, summary")].every((node) => node.tabIndex === 0),
      requests: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    });
  }, 700);
}, 700));
</script></body>"""


# Saves the first and the last figure in both formats: what would have become files is read instead.
SAVE = """<!doctype html><body style="margin:0">
<iframe src="FILE" style="width:1200px;height:3000px;border:0"></iframe><pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument;
  const view = document.querySelector("iframe").contentWindow;
  const files = [];
  let blob;
  const address = view.URL.createObjectURL.bind(view.URL);
  view.URL.createObjectURL = (made) => { blob = made; return address(made); };
  view.HTMLAnchorElement.prototype.click = function () {
    const reader = new FileReader(), name = this.download;
    reader.onload = () => files.push({ name, address: reader.result });
    reader.readAsDataURL(blob);
  };
  const figures = [...page.querySelectorAll("figure")];
  const buttons = [figures[0], figures.at(-1)].flatMap((figure) => [...figure.querySelectorAll("button[data-save]")]);
  buttons.reduce((before, button) => before.then(() => new Promise((done) => {
    button.click(); setTimeout(done, 800);
  })), Promise.resolve()).then(() => {
    document.getElementById("found").textContent = JSON.stringify({
      files, buttons: page.querySelectorAll("button[data-save]").length, plots: figures.length,
      requests: view.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith("blob:")), // of the page's own making
    });
  });
}, 700));
</script></body>"""


@dataclass
class Visit:
    output: str
    console: list[str]
    requested: list[str]


def visit(page: Path, folder: Path, *flags: str) -> Visit:
    """Opens a page with a fresh profile and returns what was printed, complained about and requested."""
    folder.mkdir()
    log = folder / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            "--allow-file-access-from-files", "--enable-logging=stderr", "--hide-scrollbars",
            "--virtual-time-budget=15000", f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}",
            *flags, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    requested = sorted({url for line in log.read_text().splitlines() if (url := _requested_by_page(line))})
    return Visit(output=done.stdout, console=console, requested=requested)


def _requested_by_page(line: str) -> str | None:
    """The address in a line of Chromium's network log; None for its own traffic, which has no origin."""
    found = re.search(r'"initiator":"([^"]*)".*"url":"(https?://[^"]+)"', line)
    return found[2] if found and found[1] != "not an origin" else None


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_synthetic_run(tmp_path_factory.mktemp("report") / "demo")
    return write_report(run, run / "report.html")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = pythia(deduped=False, num_fewshot=0).select(runs=["pythia-410m", "pythia-1b-bf16", "pythia-1.4b"])
    return write_comparison(table, tmp_path_factory.mktemp("comparison") / "comparison.html")


def test_every_figure_is_drawn_and_nothing_is_requested_or_complained_about(page: Path, tmp_path: Path) -> None:
    found = visit(page, tmp_path / "chromium", "--dump-dom", "--window-size=1280,2000")
    assert f'data-figures-drawn="{NUM_FIGURES}"' in found.output
    assert len(re.findall(r'class="plot js-plotly-plot"', found.output)) == NUM_FIGURES
    assert found.output.count('class="main-svg"') >= NUM_FIGURES
    assert found.console == []
    assert found.requested == []


def test_a_request_or_a_complaint_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/pixel.png"><script>console.error("broken")</script>')
    found = visit(page, tmp_path / "chromium", "--dump-dom")
    assert found.requested == ["http://127.0.0.1:9/pixel.png"]
    assert any("broken" in line for line in found.console)


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_fits_its_window_and_switches_its_axis(page: Path, tmp_path: Path, width: int) -> None:
    frame = page.with_name(f"frame-{width}.html")
    frame.write_text(MEASURE.replace("FILE", page.name).replace("WIDTH", str(width)))
    found = visit(frame, tmp_path / "chromium", "--dump-dom", "--window-size=1700,3100")
    measured = json.loads(re.search(r'<pre id="found">(.*?)</pre>', found.output, re.DOTALL)[1])
    assert measured.pop("requests") == []
    assert measured == {
        "scroll": width, "width": width, "plots": NUM_FIGURES, "outside": 0, "labelsCut": 0,
        "pressed": "linear", "switched": True,
    }  # fmt: skip
    assert found.console == []


def test_a_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    visit(page, tmp_path / "chromium", f"--screenshot={shot}", "--window-size=1280,1000")
    content = shot.read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1280, 1000)
    assert len(content) > 50_000  # A blank page of this size is about 6 kB.


def test_a_hostile_run_is_shown_as_text(tmp_path: Path) -> None:
    run = write_synthetic_run(tmp_path / "run", done=30)
    hostile = "<img src=x onerror=document.title='owned'><a href='https://example.org'>x</a>"
    for name in ("probes.jsonl", "events.jsonl"):
        text = (
            (run / name)
            .read_text()
            .replace('"piqa"', json.dumps(hostile))
            .replace('"SIGTERM <node-3>"', json.dumps(hostile))
        )
        (run / name).write_text(text)
    found = visit(write_report(run, run / "report.html"), tmp_path / "chromium", "--dump-dom")
    assert "<title>demo – training report</title>" in found.output
    assert "<img" not in found.output and 'xlink:href="https' not in found.output
    assert found.console == [] and found.requested == []


def test_every_figure_of_a_comparison_is_drawn_and_nothing_is_requested_or_complained_about(
    comparison: Path, tmp_path: Path
) -> None:
    expected = comparison.read_text().count('<div class="plot"')
    assert expected > 12
    found = visit(comparison, tmp_path / "chromium", "--dump-dom", "--window-size=1280,3000")
    assert f'data-figures-drawn="{expected}"' in found.output
    assert len(re.findall(r'class="plot js-plotly-plot"', found.output)) == expected
    assert found.console == [] and found.requested == []


@pytest.mark.parametrize("width", [360, 1280])
def test_a_comparison_fits_its_window_switches_its_axis_and_hides_runs(
    comparison: Path, tmp_path: Path, width: int
) -> None:
    frame = comparison.with_name(f"frame-{width}.html")
    frame.write_text(COMPARE.replace("FILE", comparison.name).replace("WIDTH", str(width)))
    found = visit(frame, tmp_path / "chromium", "--dump-dom", "--window-size=1400,6100")
    measured = json.loads(re.search(r'<pre id="found">(.*?)</pre>', found.output, re.DOTALL)[1])
    assert measured == {
        "scroll": width, "width": width, "outside": 0, "before": "tokens", "after": ["training FLOPs"],
        "pressed": ["flops"], "hidden": 3, "fewer": True, "focusable": True, "requests": [],
    }  # fmt: skip
    assert found.console == []


def test_a_comparison_prints_white_and_whole(comparison: Path, tmp_path: Path) -> None:
    paper = tmp_path / "comparison.pdf"
    visit(comparison, tmp_path / "chromium", f"--print-to-pdf={paper}")
    content = paper.read_bytes()
    assert content.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12


def test_every_figure_can_be_saved_as_png_and_svg_without_a_request(page: Path, tmp_path: Path) -> None:
    frame = page.with_name("frame-save.html")
    frame.write_text(SAVE.replace("FILE", page.name))
    found = visit(frame, tmp_path / "chromium", "--dump-dom", "--window-size=1300,3100")
    saved = json.loads(re.search(r'<pre id="found">(.*?)</pre>', found.output, re.DOTALL)[1])
    assert saved["plots"] == NUM_FIGURES and saved["buttons"] == 2 * NUM_FIGURES and saved["requests"] == []
    assert [file["name"] for file in saved["files"]] == [
        "loss-and-abilities-side-by-side.png", "loss-and-abilities-side-by-side.svg",
        "data-tokens-per-source.png", "data-tokens-per-source.svg",
    ]  # fmt: skip
    for file in saved["files"]:
        content = base64.b64decode(file["address"].partition(",")[2])
        if file["name"].endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 5_000
        else:
            drawing = xml.etree.ElementTree.fromstring(content)
            assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
            texts = ["".join(text.itertext()) for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
            assert any(text.startswith(("Loss and abilities", "Data")) for text in texts), "the title is in the figure"
    assert found.console == [] and found.requested == []
