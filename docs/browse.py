"""Open every page of the site in a headless Chromium, and fail on what a reader would stumble over.

    python docs/browse.py [--site runs/site] [--chromium /usr/bin/chromium] [--screenshots FOLDER]

Needs playwright, and `make docs` before it. The site is served on 127.0.0.1 for as long as this runs. Every page, in light and
in dark: no message on the console, no request that leaves the machine or fails, every picture shown, every formula drawn, no
formula left as text, every text legible. At 400 pixels: nothing scrolls sideways but code, tables and formulas in their own
boxes. Over all pages: every link and anchor within the site leads somewhere. By keyboard: the first Tab is the way past the
navigation, the next ones reach it and the search, which finds.
"""

import argparse
import functools
import http.server
import json
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from playwright.sync_api import TimeoutError, sync_playwright

CONTRAST = 4.5                                            # WCAG 2.2, AA, text of ordinary size
SHOWN = {"home": "docs/index.html", "tutorial": "tutorials/04_sparse_alignment.html", "method": "docs/method.html",
         "api": "docs/api.html"}
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (400, "light"), "narrow-dark": (400, "dark")}

LOOK = """async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    const shown = e => e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true});
    const code = e => e.closest("pre, code, script, style, mjx-container");
    const texts = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const e = walk.currentNode.parentElement;
        if (walk.currentNode.textContent.trim() && !e.closest("script, style") && shown(e)) texts.push([walk.currentNode, e]);
    }
    const channels = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const light = c => c.slice(0, 3).map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
    const behind = e => {
        for (; e; e = e.parentElement) {
            const c = channels(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] === 1) return c;
        }
        return [255, 255, 255];
    };
    const pale = {};
    for (const [node, e] of texts) {
        const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < CONTRAST) pale[`${e.tagName.toLowerCase()}.${e.className}`] = [ratio, node.textContent.trim().slice(0, 40)];
    }
    const boxed = e => e.tagName !== "ARTICLE" && (/auto|scroll/.test(getComputedStyle(e).overflowX) || boxed(e.parentElement));
    const right = e => e.getBoundingClientRect().right;
    const wide = texts.filter(([node, e]) => e.closest("article") && !boxed(e) && right(e) > innerWidth + 1);
    const formulas = [...document.querySelectorAll(".math")];
    return {
        ids: [...document.querySelectorAll("[id]")].map(e => e.id),
        links: [...document.querySelectorAll("a[href]")].map(e => e.getAttribute("href")),
        formulas: formulas.length,
        undrawn: formulas.filter(e => !e.querySelector("mjx-container svg path, mjx-container svg use")
                                   || e.querySelector("[data-mml-node=merror]")).map(e => e.textContent.slice(0, 60)),
        raw: texts.filter(([node, e]) => !code(e)).map(([node]) => node.textContent.trim())
            .filter(text => /\\$|\\\\[a-z]{2,}/.test(text)),
        pictures: [...document.images].filter(e => !e.naturalWidth).map(e => e.src),
        wide: [...new Set(wide.map(([node]) => node.textContent.trim().slice(0, 40)))],
        sideways: Math.max(...[document.documentElement, ...document.querySelectorAll(".content")]
            .map(e => e.scrollWidth - e.clientWidth)),
        words: document.querySelector("article") ? document.querySelector("article").innerText.split(/\\s+/).length : 0,
        pale,
    };
}""".replace("CONTRAST", str(CONTRAST))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(site: Path) -> str:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    server.handle_error = lambda *args: None              # a page that was left does not wait for its last file
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/"


def watch(page, base, wrong):
    """Every message, failure and request of a page, told as it happens."""
    page.on("console", lambda m: wrong(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong(f"script: {e}"))
    page.on("request", lambda r: wrong(f"request leaves the machine: {r.url}") if outside(r.url, base) else None)
    # what a page no longer wants when the next one is opened is aborted, and has not failed
    page.on("requestfailed", lambda r: None if r.failure == "net::ERR_ABORTED" else wrong(f"request failed: {r.url}"))
    page.on("response", lambda r: wrong(f"{r.status}: {r.url}") if r.status >= 400 else None)


def outside(url, base):
    return urlsplit(url).scheme not in ("data", "blob", "about") and not url.startswith(base)


def look(browser, base, names, wrong, screenshots):
    """Every page, loaded once, in every view -> what LOOK says of it at first, by name."""
    context = browser.new_context()
    seen = {}
    for name in names:
        page = context.new_page()
        watch(page, base, lambda text, name=name: wrong(f"{name}: {text}"))
        page.goto(base + name)
        for view, (width, scheme) in VIEWS.items():
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            x = page.evaluate(LOOK)
            seen.setdefault(name, x)
            judge(name, x, lambda text, where=f"{name}, {view}": wrong(f"{where}: {text}"))
            for title, shown in SHOWN.items():
                if screenshots and shown == name:
                    page.screenshot(path=str(screenshots / f"{title}-{view}.png"))
                    page.screenshot(path=str(screenshots / f"{title}-{view}-whole.png"), full_page=True)
        page.close()
    context.close()
    return seen


def judge(name, x, wrong):
    """What LOOK says of a page, as faults."""
    if x["words"] < 10 and name.startswith(("docs/", "tutorials/", "parity/")):
        wrong("nothing to read")
    for text in x["undrawn"]:
        wrong(f"formula not drawn: {text}")
    for text in x["raw"]:
        wrong(f"formula left as text: {text[:80]}")
    for address in x["pictures"]:
        wrong(f"picture not shown: {address}")
    for element, (ratio, text) in x["pale"].items():
        wrong(f"contrast {ratio:.1f}, not {CONTRAST}: {element}: {text}")
    for text in x["wide"]:
        wrong(f"leaves the page on the right: {text}")
    if x["sideways"] > 0:
        wrong(f"scrolls sideways by {x['sideways']} pixels")


def check_links(seen, site, wrong) -> int:
    count = 0
    for name, x in seen.items():
        for href in x["links"]:
            if urlsplit(href).scheme:
                continue
            path, anchor = urldefrag(urljoin(f"/{name}", href))
            path, count = unquote(path).lstrip("/") or name, count + 1
            if not (site / path).is_file():
                wrong(f"{name}: link to nothing: {href}")
            elif anchor and path in seen and unquote(anchor) not in seen[path]["ids"]:
                wrong(f"{name}: link to no such place: {href}")
    return count


def check_keyboard(browser, base, wrong) -> int:
    """Tab through the home page, then search by keys alone.  Returns how many Tabs the search took."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(base + SHOWN["home"])
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("""() => { const e = document.activeElement, s = getComputedStyle(e);
            return {skip: e.matches("a[href='#furo-main-content']"), search: e.matches("input[name=q]"),
                    navigation: e.matches(".sidebar-tree a"), seen: e.getBoundingClientRect().width > 1,
                    ring: s.outlineStyle !== "none" || s.boxShadow !== "none" || e.matches("input")} }"""))
    if not reached[0]["skip"] or not reached[0]["seen"]:
        wrong("keyboard: the first Tab is not a visible way past the navigation")
    for what in ("search", "navigation"):
        if not any(x[what] for x in reached):
            wrong(f"keyboard: 60 Tabs do not reach the {what}")
    for number, x in enumerate(reached):
        if not x["ring"]:
            wrong(f"keyboard: nothing shows where the focus is after Tab {number + 1}")
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    if not page.evaluate("() => !!document.activeElement.closest('article, .content')"):
        wrong("keyboard: the way past the navigation does not lead to the text")
    tabs = next((i for i, x in enumerate(reached, 1) if x["search"]), 0)
    if tabs:
        page.reload()
        for _ in range(tabs):
            page.keyboard.press("Tab")
        page.keyboard.type("threshold")
        page.keyboard.press("Enter")
        try:
            page.wait_for_selector("#search-results ul.search li > a[href*='docs/method.html']")
        except TimeoutError:
            found = page.eval_on_selector_all("#search-results ul.search li > a", "all => all.length")
            wrong(f"search: 'threshold' does not find the method among {found} results")
    context.close()
    return tabs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--site", type=Path, default=Path("runs/site"))
    parser.add_argument("--chromium", help="its path; playwright's own unless given")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of four pages in every view")
    asked = parser.parse_args()
    names = sorted(p.relative_to(asked.site).as_posix() for p in asked.site.rglob("*.html") if p != asked.site / "index.html")
    if not names:
        print(f"{asked.site}: expected the pages that `make docs` writes, found none", file=sys.stderr)
        return 2
    if asked.screenshots:
        asked.screenshots.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    base = serve(asked.site)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox", "--disable-gpu"])
        seen = look(browser, base, names, faults.append, asked.screenshots)
        links = check_links(seen, asked.site, faults.append)
        tabs = check_keyboard(browser, base, faults.append)
        page = browser.new_page()
        watch(page, base, faults.append)
        page.goto(base)
        page.wait_for_url("**/docs/index.html")
        version = browser.version
        browser.close()
    for fault in dict.fromkeys(faults):
        print(fault)
    told = {"pages": len(names), "views": len(VIEWS), "formulas": sum(x["formulas"] for x in seen.values()), "links": links,
            "search by Tab": tabs, "faults": len(dict.fromkeys(faults)), "Chromium": version}
    print(json.dumps(told))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
