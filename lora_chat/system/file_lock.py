"""Exclusive locks on open files, with the library `filelock`."""

import errno


def acquire_lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file until its descriptor is closed or the process ends. Return False if another process has it.

    The caller opens the file with `open_regular_file`. `filelock.FileLock` is not used, because it opens files of any
    kind and falls back to a marker file, which survives a crash.
    Return True without a lock on file systems that have none, such as some network file systems.
    """
    from filelock import lock_descriptor

    try:
        return lock_descriptor(handle, blocking=wait)
    except OSError as error:
        return error.errno != errno.EDEADLK
