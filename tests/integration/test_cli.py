"""The command as people and scripts call it: a process with arguments, streams and an exit code."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from qwen3_ranker_plugins import InvalidInputError, Reranker, __version__
from qwen3_ranker_plugins.cli.app import app
from qwen3_ranker_plugins.doctor import PROBES, _probe, known_margins
from qwen3_ranker_plugins.pip_command import pip_install
from tests.conftest import Ended

LINES = ["Tigers live in Asia.", "", "Use the with statement: it closes the file in Python.", "Bread needs yeast."]
QUERY = "how do I close a file in Python?"


def run_command(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=250,
        env={**os.environ, "COLUMNS": "100", **environment},
    )


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    file = tmp_path / "notes.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    return file


def test_rank_prints_one_json_object_a_line_and_nothing_else(notes: Path, reranker: Reranker) -> None:
    done = run_command("rank", "-q", QUERY, str(notes), "--json")
    assert done.returncode == 0
    assert done.stderr == b""
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    expected = reranker.rerank(QUERY, [line for line in LINES if line])
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert [hit["index"] for hit in hits] == [hit.index for hit in expected]
    assert [hit["document"] for hit in hits] == [hit.document for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert {hit["source"] for hit in hits} == {f"{notes}:{number}" for number in (1, 3, 4)}
    assert set(hits[0]) == {
        "rank",
        "index",
        "source",
        "score",
        "margin",
        "confidence",
        "truncated_tokens",
        "model",
        "document",
    }
    assert {hit["model"] for hit in hits} == {"bundled:tiny"}  # fmt: skip


def test_rank_reads_standard_input_and_files_in_the_order_given(notes: Path) -> None:
    """Windows line ends and a byte order mark are no part of a document."""
    stdin = "\ufeffone line\r\n\r\nanother line\r\n".encode()
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, "-", str(notes), "--json"], input=stdin)
    assert result.exit_code == 0
    hits = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda hit: int(hit["index"]))
    assert [hit["source"] for hit in hits] == ["stdin:1", "stdin:3", *(f"{notes}:{n}" for n in (1, 3, 4))]
    assert [hit["document"] for hit in hits[:2]] == ["one line", "another line"]


def test_rank_whole_files(notes: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Bread is baked\nfrom flour.", encoding="utf-8")
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, str(notes), str(other), "--by", "file", "--json"])
    assert result.exit_code == 0
    documents = {hit["source"]: hit["document"] for hit in map(json.loads, result.stdout.splitlines())}
    assert documents == {str(notes): "\n".join(LINES), str(other): "Bread is baked\nfrom flour."}


def test_rank_explains_what_each_sentence_adds(tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("A tuple is immutable. " * 20 + "The with statement closes a file. " + "A set is mutable. " * 20)
    arguments = ["rank", "-q", "how is a file closed?", str(page), "--by", "file", "--explain"]
    pieces = ["--long-documents", "pieces", "--piece-tokens", "48", "--piece-overlap", "8"]
    shown = CliRunner().invoke(app, [*arguments, *pieces])
    assert shown.exit_code == 0
    assert "The with statement closes a file." in shown.stdout
    assert "judged: characters" in shown.stdout
    result = CliRunner().invoke(app, [*arguments, *pieces, "--json"])
    hit = json.loads(result.stdout)
    start, end = hit["piece"]
    assert hit["explanation"]["judged"] == [start, end]
    best = max(hit["explanation"]["sentences"], key=lambda each: each["contribution"])
    assert "with statement" in hit["document"][best["start"] : best["end"]]


def test_rank_finds_scores_in_a_file(notes: Path, tmp_path: Path) -> None:
    arguments = ["rank", "-q", QUERY, str(notes), "--cache-path", str(tmp_path / "scores.cache")]
    first, again = (CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert "; 0 from the cache" in first.stdout
    assert "; 3 from the cache" in again.stdout
    refused = CliRunner().invoke(app, ["rank", "-q", QUERY, str(notes), "--cache", "1MB"])
    assert isinstance(refused.exception, InvalidInputError)
    assert "give cache_path" in str(refused.exception)


def test_rank_prints_a_table_that_a_document_cannot_spoil() -> None:
    """Rich markup stays text, and no escape sequence of a document reaches the terminal."""
    stdin = "[bold]a file[/bold] is closed \x1b[31mhere\n[/] a tiger\n"
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, "--top-k", "2"], input=stdin)
    assert result.exit_code == 0
    assert "[bold]a file[/bold] is closed" in result.stdout
    assert "[/] a tiger" in result.stdout
    assert "stdin:1" in result.stdout
    assert "bundled:tiny" in result.stdout
    assert "\x1b" not in result.stdout


def test_rank_says_what_it_did_not_read() -> None:
    arguments = ["rank", "-q", QUERY, "--max-length", "120"]
    result = CliRunner().invoke(app, arguments, input="many words " * 300)
    assert result.exit_code == 0
    assert "tokens were not read" in " ".join(result.stdout.split())


def test_rank_keeps_top_k_and_thresholds(notes: Path) -> None:
    runner = CliRunner()
    top = runner.invoke(app, ["rank", "-q", QUERY, str(notes), "--json", "--top-k", "1"])
    assert len(top.stdout.splitlines()) == 1
    none = runner.invoke(app, ["rank", "-q", QUERY, str(notes), "--json", "--score-threshold", "1"])
    assert (none.exit_code, none.stdout) == (1, "")  # as grep has it
    assert none.stderr == "no hit reached the threshold: none of 3 documents has P(yes) of at least 1\n"
    both = [*("--score-threshold", "1"), *("--min-confidence", "0.999")]
    told = runner.invoke(app, ["rank", "-q", QUERY, str(notes), *both])
    assert (told.exit_code, told.stdout) == (1, "")
    assert "P(yes) of at least 1 and |P(yes) - P(no)| of at least 0.999" in told.stderr


def test_rank_of_text_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    file = tmp_path / "latin1.txt"
    file.write_bytes("ein Käse\n".encode("latin-1"))
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, str(file), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["document"] == "ein K\ufffdse"
    assert "is not UTF-8, first at byte 5" in result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Texts in two levels, and what is no text to be ranked."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b.txt").write_text("Tigers live in Asia.\n", encoding="utf-8")
    (root / "sub" / "a.md").write_text("Use the with statement.\n\nBread needs yeast.", encoding="utf-8")
    (root / "sub" / "wide.txt").write_text("von Windows, ä", encoding="utf-16")
    (root / ".git" / "config").write_text("hidden", encoding="utf-8")
    (root / ".hidden").write_text("hidden", encoding="utf-8")
    (root / "archive.gz").write_bytes(gzip.compress(os.urandom(2000)))
    (root / "page.pdf").write_bytes(b"%PDF-1.7\nnothing but ASCII")
    (root / "sub" / "back").symlink_to(root)
    (root / "sub" / "nowhere").symlink_to(root / "absent")
    return root


def test_rank_reads_the_text_files_below_a_folder(folder: Path) -> None:
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, str(folder), "--json"])
    assert result.exit_code == 0, result.output
    hits = sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda hit: int(hit["index"]))
    assert [(hit["source"], hit["document"]) for hit in hits] == [
        (f"{folder}/b.txt:1", "Tigers live in Asia."),
        (f"{folder}/sub/a.md:1", "Use the with statement."),
        (f"{folder}/sub/a.md:3", "Bread needs yeast."),
        (f"{folder}/sub/wide.txt:1", "von Windows, ä"),
    ]
    assert result.stderr == f"{folder}: left out 2 binary files\n"
    assert "ä" in result.stdout, "not escaped"
    whole = CliRunner().invoke(app, ["rank", "-q", QUERY, str(folder), "--json", "--by", "file"])
    assert {json.loads(line)["source"] for line in whole.stdout.splitlines()} == {
        f"{folder}/{name}" for name in ("b.txt", "sub/a.md", "sub/wide.txt")
    }


@pytest.mark.parametrize("name", ["archive.gz", "page.pdf"])
def test_rank_refuses_binary_files(folder: Path, name: str, call: Callable[..., Ended]) -> None:
    for arguments, stdin in (([str(folder / name)], b""), (["-"], (folder / name).read_bytes())):
        done = call("rank", "-q", QUERY, *arguments, stdin=stdin)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: FILE=")
        assert ": is binary; give text, such as" in done.stderr


def test_rank_refuses_a_folder_without_text(folder: Path, call: Callable[..., Ended]) -> None:
    for file in (folder / "b.txt", folder / "sub" / "a.md", folder / "sub" / "wide.txt"):
        file.unlink()
    done = call("rank", "-q", QUERY, str(folder))
    assert done.code == 2
    assert "has no text file in it (2 binary ones)" in done.stderr


def test_json_is_utf8_whatever_the_terminal_is() -> None:
    done = run_command("rank", "-q", QUERY, "--json", stdin="生成器 👩‍💻 ä\n".encode(), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert '"document": "生成器 👩‍💻 ä"' in done.stdout.decode("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="pseudo terminals are POSIX's")
def test_a_terminal_sees_what_is_loaded_before_anything_heavy_is_imported() -> None:
    """The model's folder does not exist, so that nothing but the line can be the reason for what is seen."""
    import pty

    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "qwen3_ranker_plugins.cli", "rank", "-q", QUERY, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(child)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a document\n")
        process.stdin.close()
        seen = b""
        while chunk := _read(parent):
            seen += chunk
        printed = process.stdout.read()
    os.close(parent)
    assert process.returncode == 0
    assert b"loading bundled:tiny ..." in seen
    assert seen.index(b"loading bundled:tiny ...") < seen.index(b"| torch\r")
    assert json.loads(printed)["document"] == "a document"
    assert printed.count(b"\n") == 1


def _read(terminal: int) -> bytes:
    """What a terminal shows next; nothing when nobody writes to it any more, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize(
    "command", [[], ["rank"], ["rerank"], ["serve"], ["tune"], ["doctor"], ["demo"], ["bench"], ["bench", "quality"]]
)
def test_short_help_works_everywhere(command: list[str]) -> None:
    runner = CliRunner()
    short, long = (runner.invoke(app, [*command, flag]) for flag in ("-h", "--help"))
    assert short.exit_code == 0
    assert short.output == long.output
    assert "Usage" in short.output


def test_shell_completion() -> None:
    """As bash asks for it; and the script that makes it ask."""
    script = Path(sys.executable).with_name("qwen3-ranker")
    environment = {**os.environ, "_QWEN3_RANKER_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    done = subprocess.run(
        [script], env={**environment, "COMP_WORDS": "qwen3-ranker ra"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["rank"]
    done = subprocess.run(
        [script],
        env={**environment, "COMP_WORDS": "qwen3-ranker bench --", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--help" in done.stdout
    # The shell is found among the parents of the process. `exit` keeps bash from becoming the command itself.
    shown = ["bash", "-c", '"$0" --show-completion; exit $?', script]
    done = subprocess.run(shown, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_QWEN3_RANKER_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize("stdin", [b"", b"\n  \n\t\n"])
def test_rank_of_nothing_is_an_empty_result(stdin: bytes) -> None:
    result = CliRunner().invoke(app, ["rank", "-q", QUERY, "--json"], input=stdin)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing to rank" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", QUERY, "no-such-file.txt"], "error: FILE='no-such-file.txt': No such file or directory"),
        (["-q", " "], "error: query=' ': needs a text that is not empty"),
        (["-q", QUERY, "--top-k", "0"], "error: top_k=0: use a positive integer"),
        (["-q", QUERY, "--score-threshold", "-1"], "error: score_threshold=-1.0: use a number from 0 to 1"),
        (["-q", QUERY, "--device", "tpu"], "error: device='tpu': use 'auto', 'cpu'"),
        (["-q", QUERY, "--dtype", "int8"], "error: dtype='int8': use one of auto"),
        (["-q", QUERY, "--template", "{query} {document} {x}"], "unknown field {x}"),
        (["-q", QUERY, "--instruction", "long " * 9000], "leaves no room for a document"),
        (["-q", QUERY, "--by", "page"], "'page' is not one of"),
        ([], "Missing option '--query'"),
    ],
)
def test_unusable_arguments_exit_2_with_one_line_that_names_them(
    arguments: list[str], message: str, call: Callable[..., Ended]
) -> None:
    done = call("rank", *arguments)
    assert done.code == 2
    assert done.stdout == ""
    assert message in done.stderr
    if done.stderr.startswith("error:"):
        assert done.stderr.count("\n") == 1


def test_errors_of_a_process_are_its_exit_code_and_no_traceback() -> None:
    done = run_command("rank", "-q", QUERY, "no-such-file.txt")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: FILE='no-such-file.txt': No such file or directory; ")
    assert done.stderr.count(b"\n") == 1


def test_missing_model_exits_1_and_says_what_to_do(tmp_path: Path, call: Callable[..., Ended]) -> None:
    done = call("rank", "-q", QUERY, "--model", str(tmp_path / "[absent]"))
    assert done.code == 1
    assert done.stderr.startswith("error: model=")
    assert "/[absent]; give an existing folder" in done.stderr


def test_environment_sets_the_defaults_of_model_and_device(
    call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_RANKER_MODEL", "./nowhere")
    done = call("rank", "-q", QUERY)
    assert done.code == 1
    assert "model='./nowhere'" in done.stderr
    monkeypatch.delenv("QWEN3_RANKER_MODEL")
    monkeypatch.setenv("QWEN3_RANKER_DEVICE", "tpu")
    done = call("rank", "-q", QUERY)
    assert done.code == 2
    assert "device='tpu'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["rank", "-q", QUERY],
        pytest.param(["doctor"], marks=pytest.mark.slow),
        ["bench", "quality"],
        ["bench", "throughput"],
        ["rerank", "-", "-o", "-", "--model", "bundled:tiny"],
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_environment_and_option_name_several_devices(
    command: list[str], call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN3_RANKER_DEVICES", "cpu,tpu")
    done = call(*command)
    assert done.code == 2
    assert "devices='cpu,tpu'" in done.stderr
    if command[0] == "doctor":  # the option, and the variable has no effect on it
        done = run_command(*command, "--devices", "cpu,cpu", QWEN3_RANKER_DEVICES="cpu,tpu")
        assert done.returncode == 0
        assert "usable" in done.stdout.decode()


def test_console_script_is_installed_and_knows_its_version() -> None:
    script = Path(sys.executable).with_name("qwen3-ranker")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"qwen3-ranker-plugins {__version__}\n"


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    """Asking for help must not take the seconds that a model takes."""
    code = (
        "import sys; from qwen3_ranker_plugins.cli import main; sys.argv = ['qwen3-ranker', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "loaded = {'torch', 'transformers', 'haystack', 'langchain_core'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("demo", "rank", "doctor"))


@pytest.mark.slow
def test_doctor_proves_that_the_bundled_model_works() -> None:
    done = run_command("doctor")
    report = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    assert "bundled:tiny" in report
    assert "engine 'auto' is 'packed'" in report
    assert "cores" in report
    assert report.rstrip().endswith("usable")


def test_the_margins_that_the_doctor_knows_are_those_of_the_bundled_model(reranker: Reranker) -> None:
    known = known_margins()
    assert list(known) == [probe.query for probe in PROBES]
    for probe in PROBES:
        hits = sorted(reranker.rerank(probe.query, [probe.relevant, probe.irrelevant]), key=lambda hit: hit.index)
        assert [hit.margin for hit in hits] == pytest.approx(known[probe.query], abs=1e-3)


def test_doctor_finds_a_model_that_does_not_score_as_it_is_known_to(reranker: Reranker) -> None:
    known = {query: [relevant + 0.2, irrelevant] for query, (relevant, irrelevant) in known_margins().items()}
    faults = _probe(Console(quiet=True), reranker, known)
    assert len(faults) == len(PROBES)
    assert "further than 0.05 from the known ones" in faults[0]
    assert _probe(Console(quiet=True), reranker, {}) == []


def test_doctor_names_the_engines_when_there_is_no_such_one(call: Callable[..., Ended]) -> None:
    done = call("doctor", "--engine", "vlm_score")
    assert done.code == 2
    assert done.stderr.startswith("error: engine='vlm_score': use one of auto, packed, ")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_doctor_says_how_to_install_what_an_engine_needs() -> None:
    done = run_command("doctor", "--engine", "qwen3_vllm_score")
    assert done.returncode == 1
    expected = f"error: engine 'vllm_score' needs vllm: {pip_install('vllm')}"
    assert done.stderr.decode().strip() == expected


@pytest.mark.slow
def test_doctor_still_prints_what_is_installed_when_the_model_is_missing(call: Callable[..., Ended]) -> None:
    done = call("doctor", "--model", "./nowhere")
    assert done.code == 1
    assert "transformers" in done.stdout
    assert done.stderr.startswith("error: model='./nowhere'")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_interrupt_exits_130_without_a_traceback() -> None:
    """A long call, so that the signal arrives while the model is being loaded or used."""
    with subprocess.Popen(
        [sys.executable, "-m", "qwen3_ranker_plugins.cli", "rank", "-q", QUERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # Reading its input is the first thing that the command does: once it took more than a pipe holds, it is there.
        process.stdin.write(b"".join(b"some words of line %d\n" % number for number in range(20_000)))
        process.stdin.close()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        process.wait(timeout=250)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
