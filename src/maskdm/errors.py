"""What a user may be told instead of a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong: a path, a setting, a file.

    The message is one line that says what, what was got, what was wanted, and the remedy. The command prints it
    alone and leaves with exit code 2; everything else that is raised is a fault of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))  # a file's name may hold anything


class StorageError(OSError):
    """A file cannot be written, the disk being full, say. One line, exit code 1; what was saved before is intact."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite. One line, exit code 1; what was saved is intact."""


class Interrupted(Exception):
    """Ctrl-C or a termination signal, after the state was saved.

    Attributes:
        code: what a shell expects of a process ended so: 128 + the signal.
    """

    def __init__(self, message: str, code: int = 130) -> None:
        super().__init__(message)
        self.code = code
