"""Decodes a parquet file in a process of its own: `python -P parquet_child.py MEMORY SECONDS
COLUMN...`.

The file, of somebody else, is the standard input. A decoder that it overflows or ends takes nothing
else along. Imported by nothing; imports nothing of this package.

MEMORY: bytes. SECONDS: of computing. COLUMN: of these those that the file has; none means all.
Out: an Arrow stream; or one line on standard error that says why there is none, and status 4 where
MEMORY was not enough, else 3.
"""

import resource
import sys

import pyarrow as pa
import pyarrow.parquet as pq


def _limit(memory: int, seconds: int) -> None:
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),  # the three that are open
    ):
        resource.setrlimit(kind, (most, most))


def main() -> None:
    memory, seconds, *columns = sys.argv[1:]
    pa.set_cpu_count(1)
    _limit(int(memory), int(seconds))
    try:
        file = pq.ParquetFile(sys.stdin.buffer)
        there = file.schema_arrow.names
        wanted = [name for name in columns if name in there] if columns else None
        table = file.read(wanted, use_threads=False)
        table.validate(full=True)
        with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as stream:
            stream.write_table(table)
    except Exception as error:  # readers raise whatever the damage leads to
        said = str(error).strip().partition("\n")[0][:300]
        print(f"{type(error).__name__}: {said}" if said else type(error).__name__, file=sys.stderr)
        too_little = isinstance(error, MemoryError | pa.ArrowMemoryError) or "bad_alloc" in said
        sys.exit(4 if too_little else 3)


if __name__ == "__main__":
    main()
