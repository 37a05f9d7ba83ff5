"""Reads the records of an offline `.wandb` file, so that tests see what W&B would upload.

The format is LevelDB's log (32 KiB blocks of records with CRC, length and kind) behind a 7-byte header:
https://github.com/google/leveldb/blob/main/doc/log_format.md. CRCs are not checked.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 32 * 1024
_HEADER_BYTES = 7
_FULL, _FIRST, _LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of the file, in order."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    position, parts = _HEADER_BYTES, b""
    while position + _HEADER_BYTES <= len(content):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:
            position += left_in_block
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        if kind == 0:
            break
        data = content[position + _HEADER_BYTES : position + _HEADER_BYTES + length]
        parts = data if kind in (_FULL, _FIRST) else parts + data
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
        position += _HEADER_BYTES + length


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of the file."""
    histories = [record.history for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in histories
    ]
