"""The systemd unit: systemd's own checks, and the command that it runs, as a user who owns nothing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from qwen3_ranker_plugins.server.settings import load_settings

from ..server.conftest import DOCUMENTS, QUERY, wait_until
from .test_files import DEPLOY, ROOT, run, tool

UNIT = DEPLOY / "systemd" / "qwen3-ranker.service"
CONFIG = DEPLOY / "systemd" / "config.yaml"
PAGE = ROOT / "docs" / "deploy.md"
NOBODY = 65534


def unit() -> dict[str, list[str]]:
    """Setting -> its values."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"([A-Z]\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """With the program where the page puts it; systemd wants it to exist."""
    analyze = tool("systemd-analyze", "it comes with systemd")
    program = tmp_path / "opt/qwen3-ranker/bin/qwen3-ranker"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8").replace("/opt/qwen3-ranker/bin/qwen3-ranker", str(program))
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False, timeout=60
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, ours) == (0, [])
    exposure = run(analyze, "security", "--offline=true", "--no-pager", UNIT)
    (level,) = re.findall(r"Overall exposure level for \S+: (\S+)", exposure)
    assert float(level) < 2.5


def test_the_page_creates_every_path_that_the_unit_and_its_configuration_name() -> None:
    given = unit()
    page = PAGE.read_text(encoding="utf-8")
    own = [
        f"/{base}/qwen3-ranker"
        for base, name in (("run", "RuntimeDirectory"), ("var/cache", "CacheDirectory"))
        if given[name]
    ]
    texts = [*given["ExecStart"], *given["ExecStartPre"], *given["ExecReload"], *given["Environment"]]
    texts.append(CONFIG.read_text(encoding="utf-8"))
    paths = {path for text in texts for path in re.findall(r"(?<![\w.])/(?:etc|opt|run|var)/[\w./-]+", text)}
    made_by_page = {path for path in paths if not any(path.startswith(folder) for folder in own)}
    assert made_by_page == {
        "/etc/qwen3-ranker/keys",
        "/etc/qwen3-ranker/config.yaml",
        "/opt/qwen3-ranker/bin/qwen3-ranker",
    }
    for path in (
        "/etc/qwen3-ranker/keys",
        "/etc/qwen3-ranker/config.yaml",
        "/opt/qwen3-ranker",
        "deploy/systemd/config.yaml",
    ):
        assert path in page, path
    for command in (*given["ExecStartPre"], *given["ExecReload"]):
        assert shutil.which(shlex.split(command)[0].lstrip("+")), command


def test_a_reload_gives_the_server_the_keys_that_root_wrote() -> None:
    given = unit()
    (copy,) = given["ExecStartPre"]
    assert given["ExecReload"] == [copy, "/bin/kill -HUP $MAINPID"]
    assert copy.endswith(f"/etc/qwen3-ranker/keys {yaml.safe_load(CONFIG.read_text())['api_key_file']}")


def test_an_unusable_configuration_is_not_tried_again(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("no_such_setting: x\n", encoding="utf-8")
    command = [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "no_such_setting" in done.stderr
    assert [str(done.returncode)] == unit()["RestartPreventExitStatus"]
    assert int(unit()["StartLimitBurst"][0]) > 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_the_service_runs_as_a_user_that_owns_nothing() -> None:
    """The unit's command and environment, its folders moved, and the keys as systemd leaves them."""
    folder = Path("/var/tmp") / f"qwen3-ranker-test-{os.getpid()}"  # pytest's own folders are root's alone  # noqa: S108
    cache, runtime = folder / "cache", folder / "run"
    try:
        for each in (cache, runtime):
            each.mkdir(parents=True)
            os.chown(each, NOBODY, NOBODY)
            each.chmod(0o700)
        (folder / "keys").write_text("unit-key-0123456789\n", encoding="utf-8")
        (folder / "keys").chmod(0o600)
        (copy,) = unit()["ExecStartPre"]
        subprocess.run(
            shlex.split(
                copy.lstrip("+").replace("/etc/qwen3-ranker", str(folder)).replace("/run/qwen3-ranker", str(runtime))
            ),
            check=True,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        settings = yaml.safe_load(CONFIG.read_text()) | {
            "model": "bundled:tiny",
            "port": port,
            "api_key_file": str(runtime / "keys"),
        }
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        variables = dict(pair.split("=", 1) for line in unit()["Environment"] for pair in line.split())
        environment = {name: value.replace("/var/cache/qwen3-ranker", str(cache)) for name, value in variables.items()}
        environment |= {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HF_HUB_OFFLINE") if name in os.environ
        }
        read = subprocess.run(
            ["cat", runtime / "keys"], check=False, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True
        )
        assert read.stdout == b"unit-key-0123456789\n"
        # Python may be installed below /root: the process may read everything, and write what it owns.
        reads = [
            "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search",
            "--bounding-set=-all,+dac_read_search",
        ]
        become = [
            tool("setpriv", "it comes with util-linux"),
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
        ]
        process = subprocess.Popen(
            [*become, *reads, sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--config", str(config)],
            env=environment,
            cwd=cache,
            umask=0o077,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            url = f"http://127.0.0.1:{port}"

            def ready() -> bool:
                assert process.poll() is None
                try:
                    return httpx.get(f"{url}/ready", timeout=10).status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(ready, 120)
            body = {"query": QUERY, "documents": DOCUMENTS}
            assert httpx.post(f"{url}/rerank", json=body, timeout=60).status_code == 401
            headers = {"X-API-Key": "unit-key-0123456789"}
            assert httpx.post(f"{url}/rerank", json=body, headers=headers, timeout=60).status_code == 200
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait(60)
    finally:
        shutil.rmtree(folder)


def test_its_settings_are_those_of_this_server(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-0123456789", encoding="utf-8")
    configuration = load_settings(CONFIG, {"api_key_file": str(tmp_path / "keys")})
    assert not configuration.settings.demonstration_model
    assert int(unit()["TimeoutStopSec"][0]) > configuration.settings.drain_timeout
