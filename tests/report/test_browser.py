"""The page in headless Chromium: nothing breaks, nothing overflows, everything can be read."""

import browser as chromium
import pytest
from report_common import make_page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(chromium.find() is None, reason="no Chromium here (apt install chromium)"),
]
SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
# Elements that reach beyond the window and can't be scrolled to inside of one of theirs.
OVERFLOW = """[...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll, nav ul, pre')) return false;
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + '.' + (e.className.baseVal ?? e.className)).slice(0, 5)"""
# Text whose contrast with what is behind it is below 4.5 (WCAG 2.2, AA).
UNREADABLE = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(v => { v /= 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === undefined || c[3] === 1)
    return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('audio, script, option') || !e.checkVisibility()) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e);
    const front = parse(e.closest('svg') ? style.fill : style.color);
    const [low, high] = [light(front), light(behind(e))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) bad.push(e.textContent.trim().slice(0, 30));
  }
  return bad;
})()"""
COLUMN = """[...document.querySelectorAll('#test-systems tbody tr')].map(
  row => row.cells[0].textContent.trim())"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return make_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    opened = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_nothing_overflows_and_everything_can_be_read(tab, page, width, scheme):
    tab.show(page, width, scheme=scheme)
    tab.run(OPEN_ALL)
    assert tab.run("document.documentElement.dataset.ready") == "true"
    assert tab.complaints() == []
    assert tab.run("innerWidth") == width
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run(OVERFLOW) == []
    assert tab.run(UNREADABLE) == []
    dark = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    assert dark == (scheme == "dark")
    shown = "[...document.querySelectorAll('svg.wide, svg.narrow')].map(e => e.checkVisibility())"
    assert tab.run(shown) == [width > 600, width < 600]
    small = "Math.min(...[...document.querySelectorAll('svg text')].filter(e => e.checkVisibility()"
    assert tab.run(f"{small}).map(e => e.getBoundingClientRect().height))") > 7


def test_picture_is_not_empty(tab, page):
    tab.show(page, 390, scheme="dark")
    assert len(tab.picture(whole=False)) > 10_000


def test_table_is_sorted_by_its_headings(tab, page):
    tab.show(page, 1280)
    assert tab.run(COLUMN) == ["asr", "ser", "good", "bad"]
    head = "document.querySelectorAll('#test-systems thead button')[2]"
    tab.run(f"{head}.click()")
    assert tab.run(COLUMN) == ["ser", "good", "bad", "asr"]  # macro-F1, missing ones last
    assert tab.run(f"{head}.closest('th').getAttribute('aria-sort')") == "descending"
    tab.run(f"{head}.click()")
    assert tab.run(COLUMN) == ["bad", "good", "ser", "asr"]
    tab.run("document.querySelectorAll('#test-systems thead button')[0].click()")
    assert tab.run(COLUMN) == ["asr", "bad", "good", "ser"]
    assert tab.run(f"{head}.closest('th').hasAttribute('aria-sort')") is False


def test_kind_of_interval_can_be_chosen(tab, page):
    tab.show(page, 1280)
    shown = """[...new Set([...document.querySelectorAll('#test-systems .ends')].filter(
      e => e.checkVisibility()).map(e => e.dataset.kind))]"""
    assert tab.run(shown) == ["utterance-percentile"]
    tab.run("""(() => { const s = document.querySelector('select[data-intervals]');
      s.value = 'speaker-bca'; s.dispatchEvent(new Event('change')); })()""")
    assert tab.run(shown) == ["speaker-bca"]


def test_one_system_can_be_seen_alone(tab, page):
    tab.show(page, 1280)
    faint = "[...document.querySelectorAll('svg g[data-s]')].filter(g => g.style.opacity).length"
    tab.run("document.querySelector('button[data-pick=good]').click()")
    assert tab.run(faint) > 0
    assert tab.run("document.querySelectorAll('svg g[data-s=good][style*=opacity]').length") == 0
    tab.run("document.querySelector('button[data-pick=good]').click()")
    assert tab.run(faint) == 0


def test_sound_plays(tab, page):
    tab.show(page, 1280)
    seconds = tab.send(
        "Runtime.evaluate",
        expression="""new Promise((done, failed) => {
          const a = document.querySelector('audio');
          a.onloadedmetadata = () => done(a.duration); a.onerror = () => failed(a.error.message);
          a.preload = 'auto'; a.load(); })""",
        awaitPromise=True,
        returnByValue=True,
    )["result"]["value"]
    assert seconds == pytest.approx(0.5, abs=0.15)  # MP3 pads


def test_nothing_is_loaded_even_if_somebody_writes_it_into_the_page(tab, page, tmp_path):
    """The policy of the page, not only its content, keeps it from the network."""
    broken = tmp_path / "broken.html"
    more = '<img src="http://example.org/x.png"><script>document.title = "ran"</script></body>'
    broken.write_text(page.read_text().replace("</body>", more))
    tab.show(broken, 1280)
    assert tab.run("document.title") == "Results of my <corpus>"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints())
    failed = [e["params"] for e in tab.events if e["method"] == "Network.loadingFailed"]
    assert [entry["blockedReason"] for entry in failed] == ["csp"]
