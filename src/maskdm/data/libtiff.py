"""libtiff, by which Pillow reads TIFFs, prints what it thinks of a file on standard error, past Python. Not here.

What is wrong with a file is said by `maskdm.data.decode`, with the file's name. The functions are libtiff's own
(TIFFSetErrorHandler, TIFFSetWarningHandler), called in the library that Pillow has loaded; where that is not to be
found, as it is not where Pillow holds it within itself (Windows), the lines stay.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import suppress
from functools import cache
from pathlib import Path

import PIL


@cache
def silence_libtiff() -> None:
    """From now on it prints nothing in this process."""
    package = Path(PIL.__file__).parent
    shipped = [*package.glob("../pillow.libs/libtiff*"), *package.glob(".dylibs/libtiff*")]
    system = ctypes.util.find_library("tiff") if not shipped else None
    for library in [*map(str, shipped), *([system] if system else [])]:
        with suppress(OSError, AttributeError):
            loaded = ctypes.CDLL(library)
            for handler in (loaded.TIFFSetErrorHandler, loaded.TIFFSetWarningHandler):
                handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                handler(None)
