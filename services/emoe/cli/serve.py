"""`emoe serve SERVICE`: one service in this process, its options made from the service's own settings class."""

from __future__ import annotations

import importlib
import os
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol, cast

from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource

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
        raise CommandError(f"emoe serve {service}: {'; '.join(_complaints(error))}") from error


def refuse_unknown_variables(settings_class: type[ServiceSettings], names: Iterable[str]) -> None:
    """A misspelt variable would otherwise be a setting that silently is not set."""
    prefix = settings_class.model_config.get("env_prefix", "")
    known = {f"{prefix}{field}".upper() for field in settings_class.model_fields}
    unknown = sorted(name for name in names if name.startswith(prefix) and name.upper() not in known)
    if unknown:
        raise CommandError(f"{', '.join(unknown)}: no such setting; the known ones are {', '.join(sorted(known))}")


def _complaints(error: ValidationError) -> Iterable[str]:
    for detail in error.errors():
        option = "--" + "-".join(str(part) for part in detail["loc"]).replace("_", "-")
        yield f"{option}: {detail['msg'].removeprefix('Value error, ')}"
