"""How far a long work has come: a bar on a terminal, and a whole line now and then in a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from tqdm import tqdm

LINE_INTERVAL_S = 30.0


class Progress(tqdm):
    """tqdm's bar where the stream is a terminal; elsewhere a line at each interval and one at the end.

    A line says the work, the unit it is at, what was last set with `set_postfix_str` (or else the rate), and the time
    that is left: "train  step 120 of 1000, loss 0.1234, 28.5 images/s, 4 min left".
    """

    _time: Callable[[], float]  # tqdm's clock

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        desc: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        delay: float = 0.0,
        disable: bool = False,
        file: TextIO | None = None,
        interval_s: float = LINE_INTERVAL_S,
    ) -> None:
        """desc: the work. unit: what is counted, in the singular. total: None where it is not known (yet).

        delay: seconds of work of which nothing is told. file: None for standard error.
        """
        file = sys.stderr if file is None else file
        self._in_lines, self._untold_s = not file.isatty(), delay
        how: dict[str, Any] = {"dynamic_ncols": True, "delay": delay}
        if self._in_lines:  # miniters 1: every update looks at the clock
            how = {"mininterval": interval_s, "delay": interval_s, "miniters": 1, "leave": False}
        super().__init__(
            iterable, desc=desc, total=total, unit=unit, initial=initial, disable=disable, file=file, **how
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the present state; in a file, as a line of its own."""
        if not self._in_lines:
            return super().display(msg, pos)
        if msg != "":  # with which tqdm clears a bar at its end
            self._write(self._line(at_end=False))
        return None

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Show the present state now; in a file, only where a line is due."""
        due = self._time() - max(self.last_print_t, self.start_t) >= self.mininterval if self._in_lines else True
        return super().refresh(*args, **kwargs) if due else False

    def close(self) -> None:
        """End the bar, or write the last line."""
        if self._in_lines and not self.disable and self._time() - self.start_t >= self._untold_s:
            self._write(self._line(at_end=True))
        super().close()

    def _write(self, line: str) -> None:
        self.fp.write(f"{line}\n")
        self.fp.flush()

    def _line(self, *, at_end: bool) -> str:
        elapsed_s = self._time() - self.start_t
        done = self.n - self.initial
        rate = self.format_dict["rate"] or (done / elapsed_s if elapsed_s > 0 else 0.0)
        if self.total is None:
            parts = [f"{self.desc}  {self.n} {self.unit}{'' if self.n == 1 else 's'}"]
        else:
            parts = [f"{self.desc}  {self.unit} {self.n} of {self.total}"]
        if self.postfix:
            parts.append(str(self.postfix))
        elif done and elapsed_s > 0:
            average = done / elapsed_s
            fast = average >= 1
            parts.append(f"{average:.1f} {self.unit}s/s" if fast else f"{1 / average:.1f} s for each {self.unit}")
        if at_end:
            is_whole = self.total is None or self.n >= self.total
            parts.append(f"{'done' if is_whole else 'stopped'} after {_duration(elapsed_s)}")
        elif self.total is not None and rate > 0:
            parts.append(f"{_duration((self.total - self.n) / rate)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
