"""How the program ends: one line and exit code 2 for every error, and a clean stop on signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

from merge_models.merge.errors import MergeError, printable


class Group(click.Group):
    """One line and exit code 2 for every error that the user can cause."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            with _reader_may_leave():
                return super().make_context(*args, **extra)
        except click.UsageError as error:
            if type(error) is click.UsageError or isinstance(error, (click.BadParameter, click.NoSuchOption)):
                _fail_usage(error)
            raise  # no arguments at all: click shows the help

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stoppable(), _reader_may_leave():
                return super().invoke(ctx)
        except MergeError as error:
            _fail(str(error))
        except click.UsageError as error:
            _fail_usage(error)
        except _Stopped as stopped:
            _leave("stopped", stopped, 128 + stopped.signal)
        except KeyboardInterrupt as interruption:
            _leave("interrupted", interruption, 130)
        except MemoryError:
            _fail("not enough memory; pass fewer --threads, or --max-memory SIZE")


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Ends quietly where nobody reads what is printed (``| head``), and with one line where it cannot be."""
    try:
        yield
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + 13)  # as a program that the signal of a broken pipe ends
    except OSError as error:
        reason = error.strerror or str(error)
        if _is_of_printing(error):
            _drop_output()
            _fail(f"standard output cannot be written: {reason}; make room, or send it elsewhere")
        _fail(reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}")


def _is_of_printing(error: OSError) -> bool:
    """Whether it was raised by ``click.echo``, which prints all that goes to standard output."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code is click.echo.__code__


def _drop_output() -> None:
    """Sends what cannot be printed nowhere, so that it does not fail again when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP clean up as Ctrl-C does, unless someone else handles them."""

    def stop(number: int, frame: object) -> NoReturn:
        del frame
        raise _Stopped(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [getattr(signal, name) for name in names] if _in_main_thread() else []
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _fail(message: str, code: int = 2) -> NoReturn:
    with suppress(OSError):  # nobody can be told
        click.echo(f"Error: {printable(message, 2000)}", err=True)
    sys.exit(code)


def _leave(word: str, interruption: KeyboardInterrupt, code: int) -> NoReturn:
    """Says what became of the work, and ends at once: a block in work may take minutes yet."""
    try:
        _fail(f"{word}; {interruption}" if interruption.args else word, code)
    finally:
        if _has_other_threads():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _has_other_threads() -> bool:
    return threading.active_count() > 1


def _fail_usage(error: click.UsageError) -> NoReturn:
    command = error.ctx.command_path if error.ctx else "merge-models"
    _fail(f"{error.format_message().rstrip('.')} (see {command} --help)")
