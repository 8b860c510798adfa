"""Times, ages, numbers and sizes as text, for the page, the terminal and error messages."""

from datetime import datetime


def format_time(at: datetime | None) -> str:
    """Return date and time in the machine's time zone; "" for None."""
    return "" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def format_due(at: datetime | None, now: datetime) -> str:
    """Return the time of a next attempt, "due now" where it has come; "" for None."""
    return "due now" if at is not None and at <= now else format_time(at)


def format_clock(at: datetime | None) -> str:
    """Return the time of day in the machine's time zone; "" for None."""
    return "" if at is None else f"{at.astimezone():%H:%M:%S}"


def format_age(seconds: float | None) -> str:
    """Return an age in whole seconds, minutes, hours or days; "" for None."""
    if seconds is None:
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 1:.0f} s"


def format_number(number: int) -> str:
    """Return a number with a narrow space between its thousands."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def format_size(size_bytes: float) -> str:
    """Return a size in the largest binary unit of which there is at least one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit in ("B", "KiB") else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
