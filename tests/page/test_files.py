"""The page's files and how they are sent, without a browser."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from server.api import page
from tests.api.shell import client_of, shell

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "server" / "page"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in page.MEDIA_TYPES)
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
MAX_BYTES = 150_000
UNSAFE = (
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|setHTML|srcdoc"
    r"|\beval\b|new Function|setTimeout\(\s*[\"'`]|javascript:|import\s*\(\s*[^\"'\s]"
)
NAMESPACE = "http://www.w3.org/2000/svg"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_all_files_together_are_small():
    assert sum(len(file.content) for file in page.FILES.values()) < MAX_BYTES


def test_scripts_are_sent_whole_but_for_their_comments():
    for path in SCRIPTS:
        sent = page.FILES[path.name].content.decode().replace(f"page/{page.VERSION}/", "page/VERSION/").splitlines()
        lines = [line for line in read(path).splitlines() if not re.match(r" *(//|/\*\*|\*)", line)]
        assert sent == lines, path.name


def found(pattern: str, paths: list[Path]) -> list[tuple[str, str]]:
    """Name of the file and text of each match."""
    return [(path.name, match) for path in paths for match in re.findall(pattern, read(path), re.MULTILINE)]


def test_no_script_makes_html_or_code_of_text():
    assert found(UNSAFE, SCRIPTS) == []


def test_scripts_are_small():
    assert [path.name for path in SCRIPTS if len(read(path).splitlines()) >= 300] == []


def test_scripts_import_only_one_another():
    imports = found(r'^(?:import|\} from|import .* from) .*?"([^"]+)";', SCRIPTS)
    assert imports
    assert [(path, name) for path, name in imports if name.removeprefix("./") not in page.FILES] == []


def test_no_file_names_another_server():
    urls = found(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s"')]*""", FILES)
    assert [(path, url) for path, url in urls if url != NAMESPACE] == []


def test_the_html_has_no_inline_script_style_or_handler():
    html = read(FOLDER / "index.html")
    assert re.findall(r"<script(?![^>]*\ssrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []


def test_no_script_sets_a_style_attribute():
    for path in SCRIPTS:
        assert re.findall(r"""setAttribute\(\s*["']style|\bstyle:|cssText""", read(path)) == [], path.name


def test_every_file_of_the_html_exists():
    named = re.findall(r'(?:href|src)="page/VERSION/([^"]+)"', read(FOLDER / "index.html"))
    assert named
    assert set(named) <= {path.name for path in FILES}


def test_every_file_is_packed_with_the_package():
    packed = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]["setuptools"]["package-data"]["server.page"]
    for path in FILES:
        assert any(fnmatch(path.name, pattern) for pattern in packed), path.name


def test_files_that_are_asked_for_all_have_a_type_and_a_policy():
    client = client_of(shell())
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in page.PATHS:
        response = client.get(path)
        assert response.status_code == 200, path
        assert response.headers["content-type"] == types[Path(path).suffix or ".html"] + "; charset=utf-8"
        policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere():
    assert not re.search(r"unsafe|\*|https?:|data:|blob:|nonce|sha256", page.POLICY)


@pytest.mark.parametrize("path", page.PATHS[:3])
def test_head_tells_what_get_would(path):
    client = client_of(shell())
    got, head = client.get(path), client.head(path)
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers["etag"] == got.headers["etag"]


def test_the_page_is_asked_for_anew_and_its_files_are_kept_for_ever():
    client = client_of(shell())
    start = client.get("/")
    assert start.headers["cache-control"] == "no-cache"
    (script,) = re.findall(r'src="([^"]+/app\.js)"', start.text)
    assert "immutable" in client.get("/" + script).headers["cache-control"]


def test_an_unchanged_page_is_not_sent_again():
    client = client_of(shell())
    again = client.get("/", headers={"If-None-Match": client.get("/").headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_another_versions_page_still_finds_its_files_and_does_not_keep_them():
    response = client_of(shell()).get("/page/0123456789abcdef/app.js")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "__init__.py", "..%2fconfig.py", "%2e%2e%2f__init__.py"])
def test_nothing_else_is_found_below_the_page(name):
    assert client_of(shell()).get(f"/page/{page.VERSION}/{name}").status_code == 404


def test_the_page_can_be_turned_off():
    client = client_of(shell(page=False))
    assert client.get("/").status_code in (404, 405)
    assert client.get(f"/page/{page.VERSION}/app.js").status_code == 404


def test_opening_the_page_is_no_request_that_is_counted(caplog):
    client = client_of(shell())
    with caplog.at_level("INFO", "sluice"):
        for path in page.PATHS:
            client.get(path)
    assert caplog.records == []
