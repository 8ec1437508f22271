"""Structured logs on stderr, one line for each event, from our loggers and from the libraries' alike.

Every line carries the service, the IDC and, where there is one, the trace id. An exception is written as its chain of
types and its frames. Its message is left out unless its class is ours or the operating system's: a driver's message
may quote the values of a row (law L1).
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import TYPE_CHECKING, Any, Literal

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

    ExceptionInfo = BaseException | tuple[Any, ...] | bool | None

LogFormat = Literal["json", "console"]

_OUR_PACKAGES = ("policy.", "rowstore.", "gateway.", "regionjobs.", "regiongate.", "runtime.")
_NOISY = ("uvicorn", "asyncio", "grpc", "opentelemetry", "alembic", "sqlalchemy")


def setup_logging(service: str, idc: str = "", log_format: LogFormat = "json", level: str = "info") -> None:
    """Sends all logging of this process to stderr, and unhandled exceptions, too."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_process(service, idc),
        _name_trace,
        _describe_exc_info,
    ]
    render: list[Processor] = (
        [structlog.processors.JSONRenderer(ensure_ascii=False)]
        if log_format == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    sys.excepthook = _log_unhandled


def _log_unhandled(kind: type[BaseException], error: BaseException, _traceback: object) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("runtime").critical("the process ends by an error", exc_info=error)


def _name_process(service: str, idc: str) -> Processor:
    names = {"service": service, "idc": idc} if idc else {"service": service}

    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        for name, value in names.items():
            event.setdefault(name, value)
        return event

    return add


def _name_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Turns a `traceparent`, given with the event or bound as a context variable, into `trace_id`."""
    parts = str(event.pop("traceparent", "") or "").split("-")
    if len(parts) == 4:
        event["trace_id"] = parts[1]
    return event


def _describe_exc_info(_logger: object, _method: str, event: EventDict) -> EventDict:
    info: ExceptionInfo = event.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else None
    if isinstance(info, tuple):
        error = info[1]
    elif info is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = describe_exception(error)
    return event


def describe_exception(error: BaseException) -> str:
    """The chain of types and frames, innermost cause first, without messages that may quote a row."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        lines = [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        members = [describe_exception(member) for member in _members(current)]
        parts.append("\n".join([*lines, name_exception(current), *members]))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nthen\n".join(reversed(parts))


def name_exception(error: BaseException) -> str:
    """The exception's type, with its message where that cannot quote a row."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, OSError) and error.strerror:
        return f"{name}: {error.strerror}"
    return f"{name}: {error}" if kind.__module__.startswith(_OUR_PACKAGES) else name


def _members(error: BaseException) -> tuple[BaseException, ...]:
    return error.exceptions if isinstance(error, BaseExceptionGroup) else ()
