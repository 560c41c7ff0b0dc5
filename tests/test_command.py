"""The command `xvlm2vec`: every subcommand starts, and the whole command runs."""

import sys

import pytest
import tiny

from recipes.__main__ import COMMANDS, main


def test_help_lists_every_subcommand(capsys):
    assert main([]) == 0 == main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


def test_an_unknown_command_is_refused(capsys):
    assert main(["destill"]) == 2
    assert "unknown command 'destill'; commands: build, check, translate" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xvlm2vec"])
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"usage: xvlm2vec {name}" in capsys.readouterr().out


def test_build_builds(tmp_path, monkeypatch, capsys):
    out = tmp_path / "embedder"
    assert main(["build", str(tiny.checkpoint("llava")), str(out)]) == 0
    assert (out / "modules.json").is_file()
    capsys.readouterr()  # bars
    assert main(["build", str(tmp_path / "nothing"), str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
