"""docs/serving.md and deploy/: what they show is run or held against the program."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from vlseg.cli.serve import parser
from vlseg.serving.errors import CODES
from vlseg.serving.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DEPLOY = ROOT / "deploy"
KEY = "a-key-of-the-documentation"
STOP = ServerSettings().deadline + ServerSettings().write_timeout


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def documented(start, segmenter, tmp_path):
    """A server at the address that the page names, and a folder with the example in it to run its lines in."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    with start({"vlseg-mini": segmenter}, api_keys=(KEY,)) as server:
        yield server, tmp_path


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_examples(documented):
    server, folder = documented
    lines = [block for block in blocks("bash") if "curl" in block]
    assert len(lines) >= 4
    # The page says that the server listens to this machine, without a key; a key at hand is sent with every line.
    prelude = f'set -euo pipefail; curl() {{ command curl -sS --fail -H "X-API-Key: {KEY}" "$@"; }}\n'
    for block in lines:
        script = prelude + block.replace("http://127.0.0.1:8000", server.url)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env={**os.environ, "VLSEG_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, block + done.stderr
        assert "error" not in done.stdout[:50]
    from PIL import Image

    for name in ("overlay.png", "mask.png"):
        assert Image.open(folder / name).size == (640, 480)
    assert (folder / "masks.svg").read_text().startswith("<svg")


def test_python_examples(documented):
    server, folder = documented
    for block in blocks("python"):
        code = block.replace('"http://127.0.0.1:8000"', f'"{server.url}", "{KEY}"')
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, timeout=120)
        assert (folder / "overlay.png").stat().st_size
        (folder / "overlay.png").unlink()


def test_every_option_and_code_is_told():
    (usage,) = [block for block in blocks("text") if "vlseg serve" in block]
    options = {option for action in parser()._actions for option in action.option_strings}
    assert set(re.findall(r"--[\w-]+", usage)) == options - {"-h", "--help", "--debug"}
    defaults = {action.option_strings[-1]: action.default for action in parser()._actions}
    for option, value in re.findall(r"\[(--[\w-]+) ([\w.]+)\]", usage):
        if value.islower() or value[0].isdigit():
            assert defaults[option] == value, option
    for code, (status, _) in CODES.items():
        assert f"`{code}`" in PAGE, code
        assert f"| {status}" in PAGE or f" {status}" in PAGE, status


def instructions(name: str) -> list[str]:
    text = (DEPLOY / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_dockerfile():
    lines = instructions("Dockerfile")
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    sources = [w for line in lines if line.startswith("COPY ") and "--from" not in line for w in line.split()[1:-1]]
    assert {"vlseg", "configs", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source
    needed = set(
        re.findall(r'^(?:readme|license-files) = \[?"(\w[\w.]*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    )
    assert needed <= set(sources)
    assert [line for line in lines if line.startswith("USER")][-1] != "USER root"
    stages = {line.split()[-1] for line in lines if line.startswith("FROM") and " AS " in line}
    assert {"cpu", "cuda"} <= stages
    assert lines[-1] == "FROM ${VARIANT}"
    (command,) = [line for line in lines if line.startswith('CMD ["serve"')]
    parser().parse(yaml.safe_load(command.removeprefix("CMD "))[1:])
    assert "/healthz" in " ".join(lines)


def test_compose():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    arguments = set(re.findall(r"^ARG (\w+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    assert set(compose["services"]) == {"vlseg", "vlseg-cuda"}
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert set(service["build"]["args"]) <= arguments
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert parser().parse(service["command"][1:]).host == "0.0.0.0"
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert float(service["stop_grace_period"].removesuffix("s")) > STOP
        assert ":?" in service["environment"]["VLSEG_API_KEY"]  # no key, no start


def test_systemd_unit(tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "vlseg.service")
    service = unit["Service"]
    command = shlex.split(service["ExecStart"])
    assert command[1] == "serve"
    assert parser().parse(command[2:]).api_key_file
    assert service["Type"] == "notify"
    assert float(service["TimeoutStopSec"]) > STOP
    assert service["DynamicUser"] == "yes"
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed; the unit was only read")
    copy = tmp_path / "vlseg-under-test.service"
    copy.write_text((DEPLOY / "vlseg.service").read_text().replace("/opt/vlseg/bin/vlseg", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
