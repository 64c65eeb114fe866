"""The command line: parses, calls, prints; nothing else.

Everything slow is imported inside the commands, so that ``normalis --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Annotated

import typer

from normalis.cli import (
    calibrate,
    check,
    compare,
    demo,
    doctor,
    evaluate,
    fit,
    methods,
    report,
    score,
)
from normalis.cli.console import (
    console,
    errors,
    escape,
    print_remarks,
    set_volume,
    show_warnings,
)
from normalis.cli.export import app as export
from normalis.cli.pacs import app as pacs
from normalis.cli.stopping import Stopped, print_anything, stoppable
from normalis.cli.values import wait_without_spinning
from normalis.errors import NormalisError, SettingsError

__all__ = ["app", "main"]

#: Options by their names of earlier versions, which go on to work.
_RENAMED = {"patients": "patient-pattern"}

app = typer.Typer(
    name="normalis",
    help="Learn what normal medical images look like; rank new ones by how abnormal they are.\n\n"
    "For triage and research, not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"token_normalize_func": lambda name: _RENAMED.get(name, name)},
)
for command in (
    check.check,
    fit.fit,
    score.score,
    evaluate.evaluate,
    report.report,
    compare.compare,
    calibrate.calibrate,
    demo.demo,
    methods.methods,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(export)
app.add_typer(pacs)

#: Commands that moved below `normalis research`.
MOVED = ("prepare", "sweep", "reproduce", "results", "fingerprint")


_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _mount() -> None:
    """Add the command groups that installed packages offer, such as ``research``."""
    for entry in entry_points(group="normalis.commands"):
        app.add_typer(entry.load(), name=entry.name)
    for name in MOVED:
        app.command(name, hidden=True, context_settings=_ANYTHING)(_moved(name))


def _moved(name: str) -> Callable[[], None]:
    def answer() -> None:
        raise SettingsError(f"`normalis {name}` is now `normalis research {name}`")

    return answer


def main() -> None:
    """Run the command line; errors that we raise become one line and exit status 2."""
    print_anything()
    wait_without_spinning()
    show_warnings()
    try:
        with stoppable():
            _refuse_empty(sys.argv[1:])
            try:
                app(_volume_first(sys.argv[1:]))
            finally:
                print_remarks()
    except NormalisError as error:
        errors.quiet = False
        errors.styled(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except Stopped as stopped:
        errors.quiet = False
        errors.styled(f"[bold]stopped[/] by {stopped}; {_how_to_go_on()}")
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a path that the file system refuses: too long, a loop of links
        if error.filename is None:
            raise
        errors.quiet = False
        said = f"{error.filename}: cannot be used ({error.strerror}); give another path"
        errors.styled(f"[bold red]error:[/] {escape(said)}")
        sys.exit(2)


def _refuse_empty(arguments: list[str]) -> None:
    """Refuse an empty argument, which as a path would be the current folder."""
    if "" in arguments:
        before = arguments[: arguments.index("")]
        where = f"after {before[-1]}" if before else "first"
        raise SettingsError(
            f"an argument is empty ({where}): a variable of the shell that is not set, perhaps"
        )


def _volume_first(arguments: list[str]) -> list[str]:
    """Return the arguments with --quiet and --verbose in front, where any command takes them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    volume = [a for a in arguments[:end] if a in ("--quiet", "--verbose")]
    return volume + [a for a in arguments[:end] if a not in volume] + arguments[end:]


def _how_to_go_on() -> str:
    if {"fit", "score", "demo", "sweep", "prepare", "reproduce"} & set(sys.argv[1:3]):
        return "what was done is kept: run the same command again to go on"
    return "nothing was left half-written: run the same command again"


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no notes; before or after a command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also what each step logs, with the time.")
    ] = False,
) -> None:
    if version:
        from normalis import __version__

        console.print(__version__)
        raise typer.Exit
    set_volume(quiet=quiet, verbose=verbose)
    if context.invoked_subcommand is None:
        console.print(context.get_help())


_mount()
