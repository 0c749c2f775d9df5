"""What ends a training that hangs."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable


class Watchdog:
    """Ends the process with exit status 1 when `alive` is not called for `seconds` (0: never): the stack of every
    thread and one line, `text()`, on standard error."""

    def __init__(self, seconds: float, text: Callable[[], str]):
        self.seconds, self.text, self.over = seconds, text, threading.Event()

    def __enter__(self):
        if self.seconds:
            self.alive()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.over.set()
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        self.last = time.monotonic()
        if self.seconds:
            # where a thread hangs in C and lets no other run, `_watch` cannot: then this dumps, without the line
            faulthandler.dump_traceback_later(self.seconds + 3, exit=True, file=2)

    def _watch(self) -> None:
        while (left := self.last + self.seconds - time.monotonic()) > 0:
            if self.over.wait(left):
                return
        faulthandler.dump_traceback(file=2)
        print(f"daynight: {self.text()}", file=sys.stderr, flush=True)
        os._exit(1)
