"""`tide`: the command line. Commands are imported when they are used, so that each starts fast."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from tidecell import __version__
from tidecell.structs.errors import TidecellError

# Command -> (module, attribute, one line for the overview), in the order of the overview.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("tidecell.cli.cell", "up", "Start the cell on this machine"),
    "down": ("tidecell.cli.cell", "down", "Stop the cell and everything that runs in it"),
    "demo": ("tidecell.cli.demo", "demo", "From raw text to a served model, and the tide, in five minutes"),
    "run": ("tidecell.cli.run", "run", "Run a command and follow it"),
    "dev": ("tidecell.cli.dev", "dev", "Start a dev session and attach to it"),
    "alloc": ("tidecell.cli.alloc", "alloc", "Reserve room that jobs enter and leave"),
    "attach": ("tidecell.cli.dev", "attach", "Attach to a dev session"),
    "exec": ("tidecell.cli.dev", "exec_", "Run a command beside a running task"),
    "apply": ("tidecell.cli.specs", "apply", "Create or change jobs from a file"),
    "plan": ("tidecell.cli.specs", "plan", "Show what applying a file would do"),
    "ps": ("tidecell.cli.jobs", "ps", "List jobs"),
    "queue": ("tidecell.cli.jobs", "queue", "List what waits, in scheduling order"),
    "status": ("tidecell.cli.jobs", "status", "Show one job, or the cell"),
    "why": ("tidecell.cli.jobs", "why", "Say why a job waits and what would make it start"),
    "logs": ("tidecell.cli.jobs", "logs", "Show a job's output"),
    "events": ("tidecell.cli.events", "events", "Show what happened"),
    "stop": ("tidecell.cli.jobs", "stop", "Stop a job"),
    "cancel": ("tidecell.cli.jobs", "stop", "Stop a job, the same as stop"),
    "hold": ("tidecell.cli.work", "hold", "Hold a job back"),
    "release": ("tidecell.cli.work", "release", "Let a job start that is held back"),
    "scale": ("tidecell.cli.jobs", "scale", "Change a job's replicas"),
    "resize": ("tidecell.cli.jobs", "resize", "Change a job's cpu and memory while it runs"),
    "prio": ("tidecell.cli.jobs", "prio", "Change a job's priority"),
    "usage": ("tidecell.cli.usage", "usage", "Show who held how much, and what it costs"),
    "quota": ("tidecell.cli.quota", "quota", "Show or set what teams may use"),
    "route": ("tidecell.cli.route", "route", "Show or set where requests go, and who may send how many"),
    "key": ("tidecell.cli.key", "key", "Create, list and revoke keys of tenants"),
    "history": ("tidecell.cli.versions", "history", "List a job's versions"),
    "rollback": ("tidecell.cli.versions", "rollback", "Bring an earlier version of a job back"),
    "promote": ("tidecell.cli.versions", "promote", "Let an update go on from its canaries"),
    "machines": ("tidecell.cli.cell", "machines", "List machines"),
    "sim": ("tidecell.cli.sim", "sim", "Run the cell in virtual time, on a trace or a snapshot"),
    "drain": ("tidecell.cli.drain", "drain", "Empty a machine for maintenance"),
    "snapshot": ("tidecell.cli.snapshot", "snapshot", "Keep the cell in a file, and ask plan and why of it"),
    "data": ("tidecell.cli.data", "data", "Prepare and inspect datasets"),
    "train": ("tidecell.cli.train", "train", "Pre-train a language model"),
    "tune": ("tidecell.cli.train", "tune", "Fine-tune a model"),
    "serve": ("tidecell.cli.serve", "serve", "Serve a model"),
    "generate": ("tidecell.cli.serve", "generate", "Complete a text once"),
    "chat": ("tidecell.cli.serve", "chat", "Talk to a served model"),
    "chart": ("tidecell.cli.chart", "chart", "Draw the tide chart"),
    "user": ("tidecell.cli.user", "user", "Add, list and remove users"),
    "token": ("tidecell.cli.cell", "token", "Print the cell's token"),
    "console": ("tidecell.cli.cell", "console", "Print the console's address"),
    "doctor": ("tidecell.cli.doctor", "doctor", "Check the cell and this machine"),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which command was probably meant."""
        import difflib

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean `tide {near[0]}`?" if near else "tide --help lists all commands"
            raise TidecellError(f"there is no command '{args[0]}'", hint)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", metavar="DIR", help="The cell's directory (default: $TIDECELL_HOME or ~/.tidecell).")
@click.version_option(__version__, prog_name="tide")
def tide(home: str | None) -> None:
    """Training and serving on one pool of machines; capacity moves between them like a tide."""
    if home:
        os.environ["TIDECELL_HOME"] = os.path.abspath(os.path.expanduser(home))


def main(argv: list[str] | None = None) -> Any:
    """Entry point of `tide`."""
    try:
        return tide.main(args=argv, prog_name="tide", standalone_mode=False)
    except click.exceptions.Abort:
        print("\naborted", file=sys.stderr)
        sys.exit(130)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TidecellError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
