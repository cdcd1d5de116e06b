"""What the repository promises as a whole: links that lead somewhere, exact pins, no traces of a machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]


def texts():
    for path in tracked():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_address_of_a_registry():
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.", r"npm" + r"js\.", "--index" + "-url"]))
    assert [p.name for p, text in texts() if hosts.search(text)] == []


def test_constraints_are_exact_pins():
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) > 20
    assert [x for x in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.+!]+", x)] == []


@pytest.mark.parametrize("page", ["README.md", "vlseg/weights/vlseg-mini/README.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_readme_commands_exist():
    """Every verb that the README calls is one that the command line knows, and every file it names is there."""
    from vlseg.cli.app import VERBS

    text = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^(?:\.venv/bin/)?vlseg ([a-z]+)", text, re.MULTILINE))
    assert verbs
    assert verbs <= set(VERBS)
    makes = set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"segment", "test"} <= makes <= targets
    for name in re.findall(r"(?:examples|configs)/[\w./-]+", text):
        assert (ROOT / name).exists(), name


def test_files_are_not_heavy():
    """A file over 2 MB is in every clone for good; only the weights are worth it."""
    heavy = [p.name for p in tracked() if p.stat().st_size > 2_500_000 and p.suffix != ".safetensors"]
    assert heavy == []
