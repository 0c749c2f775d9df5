"""What ends a command that hangs or gets a signal: one line, and exit status 1 or 128 + signal."""

import faulthandler
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress

GRACE, AT_ONCE = 5.0, 0.3  # seconds that the main thread has to come back from C
COMPUTING = 0.02  # share of the time that a process computes; below it waits
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
_asked, _numbers = threading.Event(), []


def _quit(number, _frame=None, leave=os._exit) -> None:
    _numbers.append(number)
    _asked.set()
    text = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    with suppress(OSError):  # of a terminal that is gone
        os.write(2, f"daynight: {text}\n".encode())
    leave(128 + number)


def _end(number, frame) -> None:
    _quit(number, frame, lambda _: insist())


def insist() -> None:
    """Raise what a signal raised before, if C code has lost it."""
    if _numbers:
        sys.exit(128 + _numbers[0])


def heed(handler=_end, always: tuple = ()) -> dict:
    """From now on signals end the command; what is half-written is removed. Those that this process was started to
    ignore, as by nohup, stay ignored, but for `always`. Returns the former handlers."""
    if handler is _end:
        _listen()
    here = threading.current_thread() is threading.main_thread()  # no other may
    heeded = [n for n in SIGNALS if here and (n in always or signal.getsignal(n) is not signal.SIG_IGN)]
    return {number: signal.signal(number, handler) for number in heeded}


@contextmanager
def at_once():
    """While nothing is half-written, in imports and in connecting, a signal ends the process at once."""
    before = heed(_quit)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear(), _numbers.clear()


@functools.cache
def _listen() -> None:
    # Python calls a handler when its main thread is back from C, where it may wait for other processes for ever
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def listen() -> None:
        while number := os.read(reader, 1)[0]:
            handler = signal.getsignal(number)
            if handler in (_quit, _end) and not _asked.wait(GRACE if handler is _end else AT_ONCE):
                _quit(number)

    threading.Thread(target=listen, daemon=True).start()


class Watchdog:
    """Ends the process when `alive` is not called for `seconds` (0: never): `text()` on standard error, after the stack
    of every thread if `stacks`; without these it is for a process that does nothing but wait for another.

    Before the first call a process that computes is alive too, if `stacks`: to read data and build networks has no
    steps. (One that waits for others to connect computes for 2 % of the time.) Time is counted in ticks of this
    process, so that none passes while it is stopped or its machine sleeps.
    """

    def __init__(self, seconds: float, text: Callable[[], str], stacks: bool = True):
        self.seconds, self.text, self.stacks, self.over = seconds, text, stacks, threading.Event()
        self.idle, self.begun = 0.0, not stacks

    def start(self):
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def stop(self, *exception) -> None:
        self.over.set()

    __enter__, __exit__ = start, stop

    def alive(self) -> None:
        self.idle, self.begun = 0.0, True

    def _watch(self) -> None:
        tick, computed = min(1.0, self.seconds / 20), time.process_time()
        while self.idle < self.seconds:
            if self.stacks:
                # Where a thread hangs in C and lets no other run, this dumps and exits, without the line. Its timer
                # does not stop with the process: the longer it is, the longer may a pause be.
                faulthandler.dump_traceback_later(max(10 * self.seconds, self.seconds + 30), exit=True, file=2)
            if self.over.wait(tick):
                return faulthandler.cancel_dump_traceback_later()
            before, computed = computed, time.process_time()
            self.idle += tick
            if not self.begun and computed - before > COMPUTING * tick:
                self.idle = 0.0
        if self.stacks:
            faulthandler.dump_traceback(file=2)
        print(f"daynight: {self.text()}", file=sys.stderr, flush=True)
        os._exit(1)
