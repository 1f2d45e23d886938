"""What the user sees when something is wrong: one sentence, the right exit code, no traceback."""

import errno
import os
import subprocess
import sys

import pytest

from weightspace import cli
from weightspace.errors import DatasetError


@pytest.fixture
def command():
    """A command `explode` that raises a given exception."""

    def install(error: BaseException | None) -> None:
        def explode(models: int = 1) -> None:
            if error is not None:
                raise error

        cli.app.command(explode)

    yield install
    del cli.app["explode"]


def test_success_is_silent_and_returns_zero(command, capsys):
    command(None)
    assert cli.main(["explode"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (DatasetError("a [sentence] in\n brackets; " + "long " * 40), 2, "a [sentence] in brackets; " + "long " * 40),
        (OSError(errno.ENOSPC, "No space left on device", "/zoo/w"), 2, "No space left on device: /zoo/w"),
        (OSError("odd"), 2, "odd"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line(command, capsys, error, code, says):
    command(error)
    assert cli.main(["explode"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err == f"error: {says.strip()}\n"


@pytest.mark.parametrize("error", [DatasetError("wrong"), KeyboardInterrupt()])
@pytest.mark.parametrize("arguments", [["explode", "--debug"], ["--debug", "explode"]])
def test_debug_lets_the_exception_through(command, error, arguments):
    command(error)
    with pytest.raises(type(error)):
        cli.main(arguments)


def test_our_own_mistakes_keep_their_traceback(command):
    command(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["explode"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["explode", "--modles", "3"], "--modles"),
        (["explode", "--models", "three"], "three"),
        (["zoo", "inof"], "info"),
    ],
)
def test_wrong_command_lines_are_one_line_too(command, capsys, arguments, says):
    command(None)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and says in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--version"], ["zoo", "--help"], ["zoo", "recipes", "mnist-*", "--no-measure"]])
def test_output_that_nobody_reads_ends_the_program_quietly(arguments):
    """As `weightspace zoo recipes | head` does once it has its lines."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "weightspace", *arguments]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode == 141 and ended.stderr == ""
