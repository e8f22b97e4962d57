"""compare.html in a browser: what is there, that it can be sorted, and that it asks nobody for anything."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import PROGRAM, Browser
from written_runs import config, figure, metrics, result, write_evaluation, write_gallery, write_run

from ddpm_cli.comparison import command
from ddpm_cli.comparison.page import page
from ddpm_cli.comparison.table import compare

needs_a_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")

HOSTILE = "x</td><script>window.taken=1</script><img src=http://127.0.0.1:9/ onerror=window.taken=1>\"'&\x1b[2J"


OURS = {
    *("html", "head", "meta", "title", "style", "body", "section", "h1", "h2", "h3", "p", "div", "span", "small"),
    *("ul", "li", "table", "thead", "tbody", "tr", "th", "td", "button", "figure", "figcaption", "img", "details"),
    *("summary", "pre", "svg", "g", "line", "text", "path", "circle", "script"),
}


class Tags(HTMLParser):
    """The names of a page's elements, and the values of their attributes."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()
        self.attributes: dict[str, list[str]] = {}

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)


def hostile(home: Path) -> None:
    """Runs whose every text would like to be part of the page."""
    for i in (0, 1):
        run = write_run(
            home / f"{i}<script>window.taken=1<" / "script><b onclick=",
            config(optimizer__lr=f"{HOSTILE}{i}", data__note=HOSTILE),
            [*metrics([1.0, 0.5 + i]), {"step": 5, f"eval/{HOSTILE}": 1.0}, {"step": 6, f"eval/{HOSTILE}": 2.0}],
            result=result([f"optimizer.lr={HOSTILE}"], error=HOSTILE),
            begun_in=f"/{HOSTILE}",
        )
        write_evaluation(run, "a", [figure(HOSTILE[:90], 1.0 + i, n=7, **{"class": HOSTILE})], sampler=HOSTILE)
        write_evaluation(run, "b", [figure(HOSTILE[:90], 1.0 + i, n=7, fingerprint=f"{HOSTILE[:60]}{i}")])
        (run / "eval" / "c.json").write_text(f'{{"format": "{"<b>"}"}}')


def test_a_page_holds_nothing_from_elsewhere_and_no_text_that_is_not_ours(tmp_path: Path):
    """What `test_it_works_in_a_browser` shows, told by the page's text."""
    hostile(tmp_path / "runs")
    text = page(compare([tmp_path / "runs"]))
    assert "window.taken" in text, "else nothing is tried"
    found = Tags()
    found.feed(text)
    assert found.names <= OURS, found.names - OURS
    assert found.names >= {"table", "path", "img", "pre"}
    assert not [name for name in found.attributes if name.startswith(("on", "style", "href", "action"))]
    assert all(address.startswith("data:image/png;base64,") for address in found.attributes["src"])
    assert "\x1b" not in text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def order(browser: Browser) -> list[str]:
    return browser.value("[...document.querySelectorAll('#runs tbody th')].map(cell => cell.textContent)")


def heading(text: str) -> str:
    return f"[...document.querySelectorAll('#runs thead button')].find(button => button.textContent === '{text}')"


@needs_a_browser
@pytest.mark.slow
def test_it_works_in_a_browser(tmp_path: Path):
    runs = tmp_path / "runs"
    write_gallery(runs)
    assert command.run([str(runs)]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.looks(width=1280, dark=False)
        browser.open((runs / "compare.html").as_uri())
        names = order(browser)
        assert names == ["other", *(f"sweep/{i}" for i in range(13))]

        # The table sorts: by the mouse, by the keyboard, numbers as numbers, empty cells last both ways.
        browser.click(heading("final loss"))
        rising = order(browser)
        losses = {
            name: browser.value(
                f"document.querySelectorAll('#runs tbody tr')[{i}].cells["
                f"{heading('final loss')}.parentElement.cellIndex].dataset.sort"
            )
            for i, name in enumerate(rising)
        }
        assert losses.pop("sweep/12") is None
        assert rising == [*sorted(losses, key=lambda name: float(losses[name])), "sweep/12"]
        browser.click(heading("final loss"))
        falling = order(browser)
        assert falling == [*reversed(rising[:-1]), "sweep/12"]
        assert browser.value(f"{heading('final loss')}.parentElement.getAttribute('aria-sort')") == "descending"
        browser.value(f"{heading('seed')}.focus()")
        browser.enter()
        assert order(browser)[-2:] == ["sweep/11", "sweep/12"], "as numbers, 99 after 11"

        # Curves and pictures are drawn, not only there.
        titles = browser.value("[...document.querySelectorAll('figure h3')].map(title => title.textContent)")
        assert titles[:2] == ["loss", "held-out loss"]
        assert {"fd1k_classifier (1) over checkpoints", "fd1k_classifier (1) against network calls"} < set(titles)
        first = browser.value("[...document.querySelectorAll('figure svg')][0].querySelectorAll('path').length")
        assert first == 12, "of 14 runs one has no loss, and one has a single one, which is a point"
        long = "[...document.querySelectorAll('path')].every(path => path.getTotalLength() > 50)"
        assert browser.value(long)
        colours = "new Set([...document.querySelectorAll('.curve')].map(c => getComputedStyle(c).color)).size"
        assert browser.value(colours) == 9, "eight of their own, and grey"
        pictures = "[...document.images].map(image => [image.complete, image.naturalWidth])"
        assert browser.value(pictures) == [[True, 198]] * 8 + [[True, 66]] + [[True, 198]] * 4
        best = browser.value("[...document.querySelectorAll('#runs .best')].map(cell => cell.textContent)")
        assert best == ["0.000800 ± 0.000100★", "1.735★", "0.000800 ± 0.000100★"], (
            "two runs have the same kernel distance"
        )

        # On a phone, and in the dark.
        bright = browser.value("getComputedStyle(document.body).backgroundColor")
        browser.looks(width=360, dark=True)
        assert browser.value("document.documentElement.scrollWidth") == 360
        assert browser.value("getComputedStyle(document.body).backgroundColor") != bright

        others = [address for address in browser.requests if not address.startswith("data:image/png;base64,")]
        assert others == [(runs / "compare.html").as_uri()]
        assert browser.errors == []


@needs_a_browser
@pytest.mark.slow
def test_a_browser_runs_no_text_that_is_not_ours(tmp_path: Path):
    runs = tmp_path / "runs"
    hostile(runs)
    assert command.run([str(runs)]) == 0
    with Browser(tmp_path / "profile") as browser:
        browser.open((runs / "compare.html").as_uri())
        assert len(order(browser)) == 2
        assert browser.value("window.taken") is None
        assert browser.value("document.scripts.length") == 1
        inside = "[...new Set([...document.querySelectorAll('td *, tbody th *')].map(element => element.tagName))]"
        assert browser.value(inside) == ["SPAN"], "the keys to the colours, and stars"
        assert all(address.startswith(("data:image/png", "file:")) for address in browser.requests)
        assert browser.errors == []
        # What would run does not: the policy holds, also for a script that has come into the page.
        browser.value(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.taken = 1'}))"
        )
        browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=http://127.0.0.1:9/ onerror=taken=1>')")
        assert browser.value("window.taken") is None
        assert len(browser.errors) >= 2
