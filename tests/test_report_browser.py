"""The page of `jaxscape.report` in a browser: it draws, its path is switched, and it fits on a phone."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import jaxscape as js
from tests.test_report import bowl, everything

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (390, 1200)

# It runs before the page's own scripts and keeps what they complain of.
LISTEN = """<script>
var complaints = [];
window.addEventListener("error", function (e) { complaints.push(e.message); });
console.error = function () { complaints.push(Array.from(arguments).join(" ")); };
</script>"""
# It runs after them: it reads the pictures, switches the path off and on, and tells the page around it.
ASK = """<script>
window.addEventListener("load", function () {
  setTimeout(function () {
    function shown() {
      return Array.from(document.querySelectorAll(".plot")).flatMap(function (plot) {
        return plot.data.flatMap(function (t, i) { return t.meta === "path" ? [plot._fullData[i].visible] : []; });
      });
    }
    var box = document.querySelector(".switch input"), states = [shown()];
    box.click(); states.push(shown());
    box.click(); states.push(shown());
    var contour = Array.from(document.querySelectorAll("figure")).find(function (figure) {
      return figure.querySelector("figcaption").textContent === "bowl: surface";
    }).querySelector(".plot");
    parent.postMessage(JSON.stringify({
      width: window.innerWidth,
      scroll: document.documentElement.scrollWidth,
      wide: Array.from(document.querySelectorAll("main *:not(svg *)")).filter(function (e) {
        return !e.closest(".wide") && !e.closest(".plot") && e.getBoundingClientRect().right > window.innerWidth + 1;
      }).map(function (e) { return e.outerHTML.slice(0, 80); }),
      drawn: document.querySelectorAll(".plot .main-svg").length > 0,
      plots: document.querySelectorAll(".plot").length,
      z: Array.from(contour._fullData[0].z, function (row) { return Array.from(row); }),
      states: states,
      complaints: complaints,
    }), "*");
  }, 500);
});
</script>"""
FRAMES = """<!DOCTYPE html><body><script>
window.addEventListener("message", function (e) {
  var told = document.createElement("pre");
  told.textContent = e.data;
  document.body.appendChild(told);
});
</script>%s</body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: `apt-get install chromium`")
def test_the_page_in_a_browser(tmp_path):
    path = js.report({"bowl": everything()}, tmp_path / "page.html")
    text = path.read_text()
    (tmp_path / "asked.html").write_text(
        text.replace("<head>", "<head>" + LISTEN, 1).replace("</body>", ASK + "</body>")
    )
    frames = "".join(f'<iframe src="asked.html" width="{w}" height="800" style="border:0"></iframe>' for w in WIDTHS)
    (tmp_path / "frames.html").write_text(FRAMES % frames)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader"]
    options += ["--enable-unsafe-swiftshader", "--virtual-time-budget=30000", "--window-size=1700,1000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120)
    told = [json.loads(html.unescape(each)) for each in re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)]
    assert sorted(each["width"] for each in told) == sorted(WIDTHS), done.stderr[-2000:]
    for each in told:
        assert each["complaints"] == []
        assert each["scroll"] <= each["width"]
        assert each["wide"] == []
        assert each["drawn"]
        assert each["plots"] == 8
        np.testing.assert_allclose(each["z"], bowl().loss.values.T)
        assert each["states"] == [[True, True], [False, False], [True, True]]
