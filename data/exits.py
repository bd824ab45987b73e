"""How a script runs and ends: a user's mistake in one message and its exit code, our own defects with a traceback."""

from __future__ import annotations

import argparse
import errno
import math
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from data.errors import DiskError, FilrougeError, OutOfMemoryError, SettingsError
from data.freed_memory import keep_freed_memory
from data.plain_text import plain_message

# the process that started this one, noted before slow imports in which it may end
PARENT_PID = os.getppid()
# set, to anything, for a run that is to stop, and save, when the process that started it is gone
PARENT_VARIABLE = "FILROUGE_ENDS_WITH_PARENT"

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a SettingsError."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(self.prog, f"{message}. See --help.")


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an argparse option that takes a whole number from a least one on."""

    def whole_number(text: str) -> int:
        if not text.strip().isascii() or not text.strip().isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"found {text}, expected {least} or more, a whole number")
        return int(text)

    return whole_number


positive = at_least(1)


def above_zero(text: str) -> float:
    """Return the number above 0 that an argument says: the type of an argparse option."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return number


def hide_bitsandbytes() -> None:
    """Have diffusers and peft not find bitsandbytes, unless `show_bitsandbytes` comes before they are imported.

    They import it unasked where it is installed (diffusers 0.42.1, peft 0.21), which takes 0.9 s.
    """
    if "diffusers" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


def show_bitsandbytes() -> None:
    """Have bitsandbytes found again."""
    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]


def refuse_remote_code() -> None:
    """Have diffusers run no code that comes with a model, whatever it is asked for. It reads this once, on import."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "true"


def exit_code(main: Callable[[], None], name: str, memory_hints: Callable[[], list[str]] = list) -> int:
    """Call a script's main, with freed memory kept for what comes next, and return its exit code.

    What a user can mend is printed in one message on standard error, with the notes of the exception, and gives the
    codes of `data/errors.py`; an interruption gives 128 and its signal's number; any other exception is a defect of
    ours and passes through with its traceback. memory_hints: what to write for less memory, asked for when memory did
    not suffice.
    """
    keep_freed_memory()
    hide_bitsandbytes()
    refuse_remote_code()
    _quiet_library_bars()
    try:
        main()
    except KeyboardInterrupt as request:
        print("\n".join(["filrouge: interrupted", *getattr(request, "__notes__", ())]), file=sys.stderr)
        return getattr(request, "exit_code", 130)
    except Exception as error:
        known = as_known(error, name, memory_hints)
        if known is None:
            raise
        print("\n".join([f"filrouge: {plain_message(known)}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return known.exit_code
    return 0


def _quiet_library_bars() -> None:
    """Keep the bars of libraries out of a standard error that is no terminal: they are streams of carriage returns.

    Each is read once, when its library is imported. What a user has set stays. Ours are lines (`data/progress.py`).
    """
    if not sys.stderr.isatty():
        for variable in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(variable, "1")


def as_known(error: BaseException, name: str, memory_hints: Callable[[], list[str]] = list) -> FilrougeError | None:
    """Return an error as one that a user can mend; None for a defect of ours. name, memory_hints: as of exit_code."""
    if isinstance(error, FilrougeError):
        return error
    found = (str(error) or type(error).__name__).partition("\n")[0]
    if _is_out_of_memory(error):
        return OutOfMemoryError(name, " ".join([f"memory did not suffice: {found}.", *memory_hints()]))
    if _is_disk_error(error):
        hint = "Free space, or choose another --output_dir. What was written before stays as it is."
        return DiskError(name, f"the disk did not take what was written: {found}. {hint}")
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # an error of torch can only come from a torch that is loaded
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and re.search(r"DefaultCPUAllocator: .*memory", str(error)) is not None


def _is_disk_error(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    # safetensors (0.8) wraps the system's error into its own and keeps the number in the text only
    safetensors = sys.modules.get("safetensors")
    if safetensors is None or not isinstance(error, safetensors.SafetensorError):
        return False
    number = re.search(r"os error ([0-9]+)", str(error))
    return number is not None and int(number[1]) in DISK_ERRORS
