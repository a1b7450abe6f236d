"""Every Python example of the README and the docs runs as it stands, in the order of the page.

Comments, which a reader does not see, hold what surrounds an example:

- `<!-- before: WHAT ... -->` is code that runs before it: what the reader already has.
- `<!-- after ... -->` is code that runs after it: what the example has to achieve.
- `<!-- not run: REASON -->` above an example says why it is left out.

An example that names http://127.0.0.1:8001 finds a server there.
"""

from __future__ import annotations

import re
import zipfile
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.server.conftest import serving
from tools import release
from tools.speed_chart import milliseconds

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = re.compile(r"<!-- not run: .+? -->\n+```python\n.*?```", re.DOTALL)
CODE = re.compile(r"(?:<!-- (?:before: [^\n]+|after)|```python)\n(.*?)(?:-->|```)", re.DOTALL)
VISIBLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SERVER = "http://127.0.0.1:8001"
#: Module -> the distribution of this repository that it is in, and the distribution's folder.
OURS = {
    "qwen3_ranker_plugins": ("qwen3-ranker-plugins", "."),
    "qwen3_ranker_tiny": ("qwen3-ranker-tiny", "./models/tiny"),
    "haystack_integrations": ("qwen3-ranker-haystack", "./integrations/haystack"),
    "langchain_qwen3_ranker": ("langchain-qwen3-ranker", "./integrations/langchain"),
    "llama_index.postprocessor.qwen3_ranker": (
        "llama-index-postprocessor-qwen3-ranker",
        "./integrations/llamaindex",
    ),
}


def examples(page: Path) -> list[str]:
    return CODE.findall(NOT_RUN.sub("", page.read_text(encoding="utf-8")))


PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if examples(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:cohere")
def test_examples_run(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = examples(page)
    names: dict[str, object] = {}
    with ExitStack() as stack:
        if any(SERVER in example for example in code):
            url = stack.enter_context(serving()).url
            code = [example.replace(SERVER, url) for example in code]
        for example in code:
            exec(compile(example, page.name, "exec"), names)  # noqa: S102
    assert capsys.readouterr().out


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("integrations/*/README.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def installed(line: str) -> set[str]:
    """The distributions that `pip install LINE` brings, by the requirements of those that are installed here."""
    folders = {folder: name for name, folder in OURS.values()}
    words = [word.strip('"') for word in line.split()]
    waiting = [Requirement(re.sub(r"^\.[\w./]*", lambda place: folders[place.group()], word)) for word in words]
    found: dict[str, set[str]] = {}
    while waiting:
        requirement = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        extras = {"", *requirement.extras}
        if extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # not for this platform, such as the libraries of CUDA
            continue
        waiting += [
            each
            for each in map(Requirement, needed)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return set(found)


def test_the_install_lines_bring_what_the_examples_import() -> None:
    providers = metadata.packages_distributions()
    cells = re.findall(r"<td>([^<\n]+)</td><td>(.*?)</td>", README, re.DOTALL)
    imports = {
        cell: re.findall(r"^(?:from|import) ([\w.]+)", "".join(VISIBLE.findall(cell)), re.MULTILINE)
        for _, cell in cells
    }
    for situation, cell in cells:
        [line] = re.findall(r"^    pip install (.+)$", cell, re.MULTILINE)
        there = installed(line) if imports[cell] else set()
        for module in imports[cell]:
            ours = {name for start, (name, _) in OURS.items() if f"{module}.".startswith(f"{start}.")}
            names = ours or {each.lower().replace("_", "-") for each in providers[module.partition(".")[0]]}
            assert there & names, f"{situation}: pip install {line} does not bring {module}"
    assert sum(map(bool, imports.values())) >= 4


def test_the_picture_of_the_readme_is_described_with_its_figures() -> None:
    """The text that stands for docs/images/speed.png has the medians of docs/results that are drawn."""
    [text] = re.findall(r"!\[(.+?)\]\(docs/images/speed\.png\)", README)
    titles, passages = milliseconds().values()
    pairs = [(round(titles[name]), round(passages[name])) for name in titles]
    assert [(int(a), int(b)) for a, b in re.findall(r"(\d+) and (\d+)", text)] == pairs


def test_a_release_names_what_the_readmes_promise_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install lines from a clone, and the placeholder of the address, have to go before an index shows a README."""
    monkeypatch.setattr(release, "DIST", tmp_path)
    for name, text in (("ready", "# Ready\n"), ("early", README)):
        with zipfile.ZipFile(tmp_path / f"{name}-0.1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-0.1.dist-info/METADATA", text)
    file = "early-0.1-py3-none-any.whl"
    assert release.placeholders() == [f"'REPOSITORY_URL' in {file}", f"'not on PyPI yet' in {file}"]
