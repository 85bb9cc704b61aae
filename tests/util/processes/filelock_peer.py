"""Python's `filelock` behind the commands of file_lock_tool.cpp.

    python filelock_peer.py PATH

Prints the version of filelock first. PYTHONPATH selects that version.
"""

import sys
from pathlib import Path

import filelock


def count(lock: filelock.BaseFileLock, times: int, path: Path) -> None:
    for _ in range(times):
        with lock.acquire(timeout=60, poll_interval=0.001):
            path.write_text(str(int(path.read_text()) + 1))


def acquire(lock: filelock.BaseFileLock, timeout: float) -> str:
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        return "busy"
    return "acquired"


def obey(lock: filelock.BaseFileLock, line: str) -> str:
    command, *arguments = line.split(maxsplit=2)
    if command == "try":
        return acquire(lock, timeout=0)
    if command == "lock":
        return acquire(lock, timeout=-1)
    if command == "wait":
        return acquire(lock, timeout=float(arguments[0]))
    if command == "unlock":
        lock.release()
        return "released"
    if command == "count":
        count(lock, int(arguments[0]), Path(arguments[1]))
        return "counted"
    raise ValueError(f"unknown command {line!r}")


def main() -> None:
    print(filelock.__version__, flush=True)
    lock = filelock.FileLock(sys.argv[1])
    for line in sys.stdin:
        try:
            answer = obey(lock, line.strip())
        except Exception as error:
            answer = f"error {error}".replace("\n", " ")
        print(answer, flush=True)


if __name__ == "__main__":
    main()
