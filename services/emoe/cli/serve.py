"""`emoe serve SERVICE`: one service in this process, its options made from the service's own settings class."""

from __future__ import annotations

import importlib
import os
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from emoe.cli.failures import CommandError
from emoe.runtime.lifecycle import run_process
from emoe.runtime.settings import ServiceSettings

EXTRAS = {"predictor": "services", "scheduler": "services", "loader": "services,store", "worker": "worker"}


class ServeFunction(Protocol):
    def __call__(self, settings: ServiceSettings) -> Coroutine[Any, Any, None]: ...


def serve(service: str, arguments: Sequence[str]) -> None:
    """Runs until the process is told to end. Leaves by SystemExit, also after --help and unknown options."""
    settings_class = cast(type[ServiceSettings], _load(service, "settings", f"{service.capitalize()}Settings"))
    settings = parse_settings(service, settings_class, arguments)
    run = cast(ServeFunction, _load(service, "main", "serve"))
    raise SystemExit(run_process(run, settings, name=service))


def _load(service: str, module: str, attribute: str) -> Any:
    """From a service's own room; CommandError names the extra that is not installed."""
    try:
        return getattr(importlib.import_module(f"emoe.{service}.{module}"), attribute)
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "emoe":
            raise
        raise CommandError(
            f"emoe serve {service} needs {error.name}, which is not installed: pip install 'emoe[{EXTRAS[service]}]'"
        ) from error


def parse_settings(service: str, settings_class: type[ServiceSettings], arguments: Sequence[str]) -> ServiceSettings:
    """Options first, then EMOE_<SERVICE>_* variables, then defaults; CommandError for what none of them may be."""
    refuse_unknown_variables(settings_class, os.environ)
    source: CliSettingsSource[Any] = CliSettingsSource(
        settings_class,
        cli_prog_name=f"emoe serve {service}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_show_env_vars=True,
    )
    try:
        return CliApp.run(settings_class, cli_args=list(arguments), cli_settings_source=source)
    except ValidationError as error:
        complaints = [_complain(settings_class, arguments, detail) for detail in error.errors()]
        raise CommandError(f"emoe serve {service}: {'; '.join(complaints)}") from error
    except SettingsError as error:
        raise CommandError(f"emoe serve {service}: {_unreadable(settings_class, str(error))}") from error


def refuse_unknown_variables(settings_class: type[ServiceSettings], names: Iterable[str]) -> None:
    """A misspelt variable would otherwise be a setting that silently is not set."""
    prefix = settings_class.model_config.get("env_prefix", "")
    known = {f"{prefix}{field}".upper() for field in settings_class.model_fields}
    unknown = sorted(name for name in names if name.startswith(prefix) and name.upper() not in known)
    if unknown:
        raise CommandError(f"{', '.join(unknown)}: no such setting; the known ones are {', '.join(sorted(known))}")


def _complain(settings_class: type[ServiceSettings], arguments: Sequence[str], detail: ErrorDetails) -> str:
    """By the option, unless the value came from a variable: whoever set that need not know of options."""
    field, *within = (str(part) for part in detail["loc"])
    option = f"--{field.replace('_', '-')}"
    variable = _variable_of(settings_class, field)
    is_given = any(argument.split("=")[0] == option for argument in arguments)
    name = option if is_given or variable is None else variable
    return f"{'.'.join([name, *within])}: {detail['msg'].removeprefix('Value error, ')}"


def _variable_of(settings_class: type[ServiceSettings], field: str) -> str | None:
    """The variable that sets a field, as it is written in the environment; None if there is none."""
    wanted = f"{settings_class.model_config.get('env_prefix', '')}{field}".upper()
    return next((name for name in os.environ if name.upper() == wanted), None)


def _unreadable(settings_class: type[ServiceSettings], message: str) -> str:
    """A list or map that is no JSON: pydantic tells the field in its message alone."""
    fields = [field for field in settings_class.model_fields if f'"{field}"' in message]
    names = [name for field in fields if (name := _variable_of(settings_class, field))]
    return f"{', '.join(names)}: must be JSON" if names else message
