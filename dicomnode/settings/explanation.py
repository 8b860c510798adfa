"""What is wrong with a configuration: the setting, what it must be, and whether option, environment or file set it."""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dicomnode.domain.validation import sentence

ENVIRONMENT_PREFIX, NESTED = "CXRNODE_", "__"


def explain(error: ValidationError, model: type[BaseModel], file: Path | None, options: Mapping[str, Any]) -> str:
    """Return one line for each wrong setting: where it was set, its name, and what it must be."""
    lines = []
    for entry in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in entry["loc"]) or "configuration"
        origin = _origin(entry["loc"], file, options)
        lines.append(f"{name}: {_sentence(entry, model)}" + (f" ({origin})" if origin else ""))
    return "the configuration is wrong:\n  " + "\n  ".join(lines)


def explain_json(reason: str) -> str:
    """Return which variables of the environment may be the one that is no JSON; `reason` names their section."""
    match = re.search(r'field "(\w+)"', reason)
    start = ENVIRONMENT_PREFIX + (match[1].upper() if match else "")
    named = ", ".join(sorted(name for name in os.environ if name.upper().startswith(start)))
    return (
        f"the configuration cannot be read: of the environment, {named} cannot be read as JSON. A list or a section is "
        """written as CXRNODE_ELIGIBILITY__MODALITIES='["CR", "DX"]'"""
    )


def _sentence(entry: ErrorDetails, model: type[BaseModel]) -> str:
    if entry["type"] == "extra_forbidden":
        return unknown(str(entry["loc"][-1]), model)
    return sentence(entry["type"], entry.get("ctx", {}))


def unknown(name: str, model: type[BaseModel]) -> str:
    """Return that there is no such setting, with the nearest one that there is."""
    near = get_close_matches(name, list(_names(model)), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"there is no such setting; {meant}conf/node.toml lists them all, as does what `cxrnode init` writes"


def unknown_variables(model: type[BaseModel]) -> list[str]:
    """Return a line for each variable of the environment that looks like a setting of an unknown section."""
    known = set(model.model_fields)
    found = []
    for variable in sorted(os.environ):
        section, _, rest = variable.upper().removeprefix(ENVIRONMENT_PREFIX).partition(NESTED)
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and rest and section.lower() not in known:
            found.append(f"{section.lower()}: {unknown(section.lower(), model)} (environment variable {variable})")
    return found


def _origin(loc: tuple[int | str, ...], file: Path | None, options: Mapping[str, Any]) -> str:
    """Return where a value was set; the sources are asked in the order of their precedence."""
    if _is_in(options, loc):
        return "option of the command line"
    if variable := _variable(loc):
        return f"environment variable {variable}"
    return f"file {file}" if file else ""


def _is_in(options: Mapping[str, Any], loc: tuple[int | str, ...]) -> bool:
    found: Any = options
    for part in loc:
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return bool(loc)


def _variable(loc: tuple[int | str, ...]) -> str | None:
    """Return the variable that sets a value, or the section it is in; of a section, the first that sets a part."""
    set_here = {name.upper(): name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)}
    for length in range(len(loc), 0, -1):
        name = ENVIRONMENT_PREFIX + NESTED.join(str(part).upper() for part in loc[:length])
        if name in set_here:
            return set_here[name]
    whole = ENVIRONMENT_PREFIX + NESTED.join(str(part).upper() for part in loc) + NESTED
    return next((set_here[name] for name in sorted(set_here) if name.startswith(whole)), None)


def _names(model: type[BaseModel]) -> Iterator[str]:
    """Yield the name of every section, and of every setting in them."""
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation)
