"""Open text files, also compressed ones, and turn the faults of their compression into a ``DataError``."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow_finetune_plugin.errors import DataError

COMPRESSIONS = (".gz", ".zst")
"""The endings of compressed text files."""

ByteStream = gzip.GzipFile | io.BufferedReader


def without_compression(name: str) -> str:
    """Return a file's name in lower case without the ending of its compression."""
    lowered = name.lower()
    return next((lowered.removesuffix(ending) for ending in COMPRESSIONS if lowered.endswith(ending)), lowered)


@contextmanager
def opened(path: Path) -> Iterator[ByteStream]:
    """Open a file for reading, decompressed if its name ends so.

    Raises:
        DataError: the file cannot be read, or its compressed data is damaged or cut off; also while it is read inside.
    """
    try:
        with _stream(path) as stream:
            yield stream
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{path}: not a valid gzip file ({error}); fix: compress it again, or remove .gz from the name"
        ) from error
    except EOFError as error:
        raise DataError(f"{path}: the gzip data ends too early, the file is cut off; fix: copy it again") from error
    except zlib.error as error:
        raise DataError(f"{path}: the gzip data is damaged ({error}); fix: copy it again") from error
    except OSError as error:
        if error.errno is None and path.name.lower().endswith(".zst"):  # pyarrow's errors have no number
            raise DataError(
                f"{path}: not a valid zstd file, or it is damaged or cut off ({error}); fix: copy or compress it again"
            ) from error
        raise DataError(
            f"{path}: cannot read the file: {error.strerror or error}; fix: check its permissions"
        ) from error


@contextmanager
def _stream(path: Path) -> Iterator[ByteStream]:
    name = path.name.lower()
    if name.endswith(".gz"):
        with gzip.open(path, "rb") as stream:
            yield stream
    elif name.endswith(".zst"):
        import pyarrow as pa

        with path.open("rb") as file, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as raw:
            yield io.BufferedReader(raw)  # type: ignore[arg-type]
    else:
        with path.open("rb") as stream:
            yield stream
