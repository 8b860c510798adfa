"""Plain sentences for what a validator found wrong with a value.

pydantic has words of its own ("Input should be less than or equal to 65535"). Whoever writes a configuration or a
manifest reads these sentences instead.
"""

from collections.abc import Callable, Mapping
from typing import Any

_BY_KIND: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "extra_forbidden": lambda _: "is not known here",
    "missing": lambda _: "a value is missing",
    "greater_than": lambda facts: f"must be more than {facts['gt']:g}",
    "greater_than_equal": lambda facts: f"must be at least {facts['ge']:g}",
    "less_than": lambda facts: f"must be less than {facts['lt']:g}",
    "less_than_equal": lambda facts: f"must be at most {facts['le']:g}",
    "finite_number": lambda _: "must be a finite number",
    "string_too_short": lambda facts: f"must have at least {_counted(facts['min_length'], 'character')}",
    "string_too_long": lambda facts: f"must have at most {_counted(facts['max_length'], 'character')}",
    "string_pattern_mismatch": lambda _: "has a character that is not allowed here",
    "too_short": lambda facts: f"must have at least {_counted(facts['min_length'], 'entry', 'entries')}",
    "too_long": lambda facts: f"must have at most {_counted(facts['max_length'], 'entry', 'entries')}",
    "literal_error": lambda facts: f"must be {facts['expected']}",
    "enum": lambda facts: f"must be {facts['expected']}",
    "union_tag_invalid": lambda facts: f"kind is {facts['tag']!r}, and must be one of {facts['expected_tags']}",
    "union_tag_not_found": lambda _: 'kind must be "dimse" or "stow"',
    "value_error": lambda facts: str(facts["error"]),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotation marks",
    "path": "a path in quotation marks",
    "tuple": "a list in square brackets",
    "list": "a list in square brackets",
    "dict": "a table in curly brackets",
    "model": "a section with settings of its own",
    "frozenset": "a list in square brackets",
}


def sentence(kind: str, facts: Mapping[str, Any]) -> str:
    """Return what a value must be; `kind` and `facts` are the `type` and `ctx` of one of pydantic's errors."""
    if kind in _BY_KIND:
        return _BY_KIND[kind](facts)
    expected = next((words for start, words in _TYPES.items() if kind.startswith(start)), None)
    return f"must be {expected}" if expected else "is not a value that can stand here"


def _counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
