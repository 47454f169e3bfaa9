"""The border between memplan and its user: every failure becomes one line on stderr and an exit code."""

from __future__ import annotations

import difflib
import sys
import traceback
from typing import Any, Final, NoReturn

import click

from memplan.errors import AnalysisError, MemplanError, UsageError, did_you_mean

#: Exit code of a command that was interrupted, as shells have it.
INTERRUPTED: Final = 130


class Commands(click.Group):
    """The commands, and the border at which every failure becomes one line and an exit code."""

    def main(self, args: Any = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run a command and exit."""
        extra["standalone_mode"] = False
        switches = extra.setdefault("obj", {"debug": False})
        try:
            code = super().main(args, prog_name or "memplan", *rest, **extra) or 0
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = error.exit_code
        except click.ClickException as error:
            code = _fail(_restated(error), error.exit_code, error, switches)
        except MemplanError as error:
            code = _fail(str(error), error.exit_code, error, switches)
        except click.Abort:
            code = INTERRUPTED
        except Exception as error:
            reason = " ".join(str(error).split())
            line = f"internal error: {type(error).__name__}: {reason}; please report it with the output of --debug"
            code = _fail(line, AnalysisError.exit_code, error, switches)
        sys.exit(code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command that is asked for; a model in its place gets the command that was meant."""
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(ctx, args)
        hint = did_you_mean(name, self.commands) or f"; to analyse a model write: memplan analyze {name}"
        raise UsageError(f"no command {name!r}{hint}")


def _fail(line: str, code: int, error: BaseException, switches: dict[str, bool]) -> int:
    if switches["debug"]:
        traceback.print_exception(error)
    click.echo(f"memplan: {' '.join(line.split())}", err=True)
    return code


def _restated(error: click.ClickException) -> str:
    """Return a usage error of click in memplan's words: the user's own value, and the next step."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "memplan"
    if isinstance(error, click.NoSuchOption):
        close = difflib.get_close_matches(error.option_name, _options_of(context), n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"{command} --help lists the options"
        return f"no option {error.option_name!r}; {hint}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{error.param.make_metavar(context or click.Context(_unnamed))} is missing; write {_usage(context)}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_written(error.param, context)}: {error.message}"
    if isinstance(error, click.BadOptionUsage) and "requires an argument" in error.message:
        return f"{error.option_name} needs a value; memplan COMMAND --help shows which"
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; write {_usage(context)}"


def _written(parameter: click.Parameter, context: click.Context | None) -> str:
    """Return where the value of a parameter was written: in the environment, or as an option."""
    source = None if context is None or parameter.name is None else context.get_parameter_source(parameter.name)
    if source is click.core.ParameterSource.ENVIRONMENT and isinstance(parameter.envvar, str):
        return parameter.envvar
    return parameter.opts[-1]


def _options_of(context: click.Context | None) -> list[str]:
    parameters = context.command.get_params(context) if context is not None else []
    return [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts) if name[0] == "-"]


def _usage(context: click.Context | None) -> str:
    if context is None:
        return "memplan --help"
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


_unnamed: Final = click.Command(None)
