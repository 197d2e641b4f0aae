"""The commands by one name, and what the files of methods import."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import bench.__main__ as commands
from bench import hooks, methods, registry
from bench.errors import InputError


def test_the_list_names_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main([]) == commands.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name, command in commands.COMMANDS.items():
        assert sum(line.split()[:1] == [name] for line in lines) == 2
        assert callable(import_module(command.module).main)


def test_every_module_with_a_main_is_listed() -> None:
    folder = Path(commands.__file__).parent
    names = {path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")}
    names |= {path.parent.name for path in folder.glob("*/__main__.py")}
    # collate's main stands beside the job that calls it, data's in prepare; a worker is started by launchers.
    assert names - {"__main__"} | {"collate"} == {*commands.COMMANDS, "prepare"}


def test_a_command_is_passed_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        commands.main(["grid", "--help"])
    assert end.value.code == 0
    assert "--gin" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'grids'.*'grid'.*collate"):
        commands.main(["grids"])


def test_older_modules_give_the_names_of_the_new_one() -> None:
    for module in (hooks, registry):
        for name in module.__all__:
            assert getattr(module, name) is getattr(methods, name)


def test_what_methods_import_needs_no_torch() -> None:
    code = "import sys, bench.methods, baselines; baselines.register(); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=120).strip() == "False"
