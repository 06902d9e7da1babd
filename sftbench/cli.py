"""The command line: words become a command and its options, and errors exit codes.

Exit code 2 for bad input, 1 for a run that failed, 130 for one that was interrupted.
"""

import sys

import click

from .commands import commands
from .distributed import is_follower
from .errors import BadInput, RunFailed
from .reports.progress import mute_output


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        name, options = parse_command(sys.argv[1:] if arguments is None else arguments)
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
    except BrokenPipeError:  # by the help, in `| head`
        mute_output()
        raise click.exceptions.Exit from None
    except click.UsageError as error:
        text = " ".join(error.format_message().split()).rstrip(".")
        command = error.ctx.command_path if error.ctx else f"sftbench {words[0]}"
        raise BadInput(f"{text} — see {command} --help", field=getattr(error, "option_name", "")) from None
