"""README and docs keep their promises: commands exist, examples run, numbers are those in results/."""

import argparse
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import baselines
from bench.__main__ import COMMANDS
from bench.planning.load import load_bindings
from bench.planning.plan import make_plan
from bench.store.store import Store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])}
PAGES["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """The commands of the suite that a page shows, each a line."""
    return [line for line in "\n".join(blocks("bash", page)).splitlines() if line.startswith("python -m bench.")]


class Accepted(Exception):
    """Arguments were parsed without complaint."""


def run(line: str, monkeypatch: pytest.MonkeyPatch, *more: str, only_parse: bool = False) -> int:
    """Run a command as it stands in a page, in this process; `only_parse` stops it once its arguments are read."""
    _, _, module, *arguments = shlex.split(line, comments=True)
    main = importlib.import_module(COMMANDS[module.removeprefix("bench.")].module).main
    if not only_parse:
        return int(main([*arguments, *more]))
    parse = argparse.ArgumentParser.parse_args

    def stop(*call_arguments: object) -> object:
        parse(*call_arguments)
        raise Accepted

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Accepted):
            main([*arguments, *more])
    return 0


def needs_more(line: str) -> bool:
    """Whether a command needs what a test does not have."""
    return "# needs " in line or "--cancel" in line


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_of_a_page_is_accepted(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for line in commands(page):
        run(line, monkeypatch, only_parse=True)
    for grid in [line for line in commands(page) if line.startswith("python -m bench.grid") and not needs_more(line)]:
        named = re.search(r"--gin (\S+)", grid)
        if named is not None and (ROOT / named[1]).is_file():
            folders = ["--store", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
            assert run(grid, monkeypatch, "--plan", *folders) == 0


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_gin_snippet_of_a_page_is_legal(page: str, tmp_path: Path) -> None:
    baselines.register()
    for number, snippet in enumerate(blocks("gin", page)):
        if "grid.plugins" in snippet:  # tests/test_new.py makes that plugin, and runs the grid in a process of its own
            continue
        path = tmp_path / f"snippet_{number}.gin"
        path.write_text(snippet)
        load_bindings([str(path)], [])
        if "grid.rows" in snippet:
            assert make_plan([str(path)], (), (), tmp_path, None).cells


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    folder = ROOT if page in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page]):
        assert (folder / target).exists(), target


def in_order(page: str) -> Iterator[tuple[str, str, str]]:
    """The snippets of a page: language, content, and the file that the text before says to save it as."""
    for before, language, content in re.findall(
        r"([^\n]*\n?[^\n]*)\n\n```(\w+)\n(.*?)^```$", PAGES[page], re.DOTALL | re.M
    ):
        name = re.search(r"Save as `([\w.]+)`", before)
        yield language, content, name[1] if name else ""


def test_the_tutorial_runs_from_its_first_own_file_to_its_report(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_DEVICE", "cpu")
    (tmp_path / "data").mkdir()
    for folder in prepared.iterdir():  # prepared for all tests, and only read here
        (tmp_path / "data" / folder.name).symlink_to(folder)
    ran = []
    for language, content, name in in_order("tutorial.md"):
        if language == "python":
            (tmp_path / "snippet.py").write_text(content)
            runpy.run_path(str(tmp_path / "snippet.py"))
        elif language == "gin":
            (tmp_path / name).write_text(content)
        for line in content.splitlines() if language == "bash" else ():
            if "gin/" not in line and "results/quickstart" not in line and not needs_more(line):
                status = run(line, monkeypatch, *(("--launcher", "inline") if "bench.grid" in line else ()))
                assert status == 0, line
                ran.append(line)
    assert len(ran) == 7
    assert "cat: train 48, test 12" in capsys.readouterr().out
    assert (tmp_path / "animals.html").stat().st_size > 10_000


def test_the_time_of_the_quickstart_is_that_of_the_committed_records() -> None:
    lines = (ROOT / "results" / "quickstart" / "stages.jsonl").read_text().splitlines()
    stages = [json.loads(line) for line in lines]
    minutes = sum(stage["seconds"] for stage in stages) / 60
    claim = re.search(
        r"The (\d+) stages of\s+\[the committed table\]\(results/quickstart.md\) took\s+(\d+) minutes of one", README
    )
    assert claim is not None and (int(claim[1]), int(claim[2])) == (len(stages), round(minutes))
    planted = re.search(r"plants (\d+) mistakes", README)
    listed = (ROOT / "tests" / "mutations.py").read_text().count("    Mutation(\n")
    assert planted is not None and int(planted[1]) == listed


def test_ci_runs_what_is_run_by_hand() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert "run: .ci/run\n" in workflow and (ROOT / ".ci" / "run").is_file()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake (\w+)", "\n".join(blocks("bash"))))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(("number", "cells"), [(0, 24), (1, 10)])
def test_the_example_grids_plan_cleanly(number: int, cells: int, tmp_path: Path) -> None:
    (tmp_path / "example.gin").write_text(blocks("gin", "grids.md")[number])
    plan = make_plan([str(tmp_path / "example.gin")], (), (), tmp_path, Store(tmp_path / "runs"))
    assert len(plan.cells) == cells
    assert not plan.splits


def test_it_lists_every_method_and_no_other() -> None:
    from bench.planning.registry import RECIPES

    listed = {
        name for row in re.findall(r"^\| (`.*?) \|", README, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    listed |= {"self_distillation_without_distill"}  # written with an ellipsis
    assert RECIPES.keys() <= listed


def test_the_example_method_plugs_in(tmp_path: Path) -> None:
    (method,) = blocks("python")
    (tmp_path / "my_methods.py").write_text(method)
    (tmp_path / "g.gin").write_text(
        "grid.plugins = ['my_methods.py']\n"
        "grid.rows = ['finetune', 'smoothed', 'half/smoothed']\ngrid.tasks = ['digits', 'pydocs']\n"
        "half/SmoothedCrossEntropy.epsilon = 0.5\n"
    )
    command = [sys.executable, "-m", "bench.grid", "--plan", "--gin", str(tmp_path / "g.gin")]
    command += ["--store", str(tmp_path / "runs")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "30 cells" in result.stdout


def test_the_quoted_table_is_the_committed_one() -> None:
    committed = (ROOT / "results" / "study_cpu.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| method .*?(?=^$)", committed, flags=re.DOTALL | re.MULTILINE)
    assert table.count("±") == 12
    assert f"\n\n{table}\n![Differences of every row" in README
    assert "results/study_cpu/forest.png" in README and "Metric, in percent: acl_arc: macro F1" in committed


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:bench|baselines|gin|results)/[\w./]*)`", "\n".join(PAGES.values()))))
)
def test_paths_it_names_exist(path: str) -> None:
    assert (ROOT / path).exists()
