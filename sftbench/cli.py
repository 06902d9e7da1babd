"""The command line: words become a command and its options, and errors exit codes.

Exit code 2 for bad input, 1 for a run that failed, 130 for one that was interrupted.
"""

import contextlib
import errno
import io
import os
import sys

import click

from .commands import commands
from .distributed import is_follower
from .errors import BadInput, RunFailed
from .options import check_sources

TRAINING = ("run", "resume", "notebook")  # their result is a folder, so its loss is not that of the output


class LastingOutput(io.FileIO):
    """A standard stream to which writing never fails; the first error is in `lost`.

    Work goes on where the reader of a pipe or the terminal is gone, or the disk is full.
    """

    lost: OSError | None = None

    def write(self, data) -> int:
        """Write bytes, or drop them; returns how many were taken."""
        try:
            return super().write(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


@contextlib.contextmanager
def lasting_streams():
    """Let text of any kind be written to standard output and error, whatever these are and can encode.

    Characters that the encoding lacks are written as escapes, and a stream that was closed at start is the
    null device. Gives the stream behind standard output, or None where a program has put its own there.
    """
    before, output = (sys.stdout, sys.stderr), None
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: else the next file that is opened would take its number
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))
        elif getattr(sys, name) is getattr(sys, f"__{name}__") and name != "stdin":
            old = getattr(sys, name)
            raw = LastingOutput(old.fileno(), "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(
                io.BufferedWriter(raw), old.encoding, "backslashreplace", line_buffering=True))
            output = raw if name == "stdout" else output
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    with lasting_streams() as output:
        code = run_command(words)
        sys.stdout.flush()
        if output and output.lost and output.lost.errno not in (errno.EPIPE, errno.EIO):
            sys.stderr.write(f"sftbench: standard output cannot be written ({output.lost.strerror})\n")
            return code or int(words[0] not in TRAINING)
    return code


def run_command(words: list[str]) -> int:
    """Run the command that these words name; returns the exit code."""
    try:
        name, options = parse_command(words)
        if "recipe" in options:
            check_sources(options["recipe"])
        commands.commands[name].callback(**options)
    except click.exceptions.Exit as ended:  # after --help
        return ended.exit_code
    except BadInput as error:
        sys.stderr.write(f"sftbench: {error}\n" * (not is_follower()))  # rank 0 writes the same
        return 2
    except RunFailed as error:
        reason = f" ({error.reason})" if error.reason else ""
        sys.stderr.write(f"sftbench: failed{reason}: {error}\n")
        return 1
    except KeyboardInterrupt as error:
        sys.stderr.write(f"sftbench: {error if str(error) else 'stopped'}\n")
        return 130
    return 0


def parse_command(words: list[str]) -> tuple[str, dict]:
    """The command that `words` name, and its options as its function takes them; nothing is run.

    A command with a mode has its `recipe` among them. Raises BadInput for an unknown command or option, with
    the nearest name, and for a wrong value; raises click's Exit after `--help`.
    """
    group = commands.make_context("sftbench", [])
    try:
        name, command, rest = commands.resolve_command(group, list(words) or group.fail("Missing command."))
        return name, command.make_context(name, rest, parent=group).params
    except click.UsageError as error:
        text = " ".join(error.format_message().split()).rstrip(".")
        command = error.ctx.command_path if error.ctx else f"sftbench {words[0]}"
        raise BadInput(f"{text} — see {command} --help", field=getattr(error, "option_name", "")) from None
