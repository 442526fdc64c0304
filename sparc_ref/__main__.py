"""python -m sparc_ref, and the command sparc-ref."""

import sys


def main() -> int:
    """Run the command line; the exit status is 0, 2 for an error that the user can mend, 130 after Ctrl-C."""
    from sparc_ref.commands.pipes import quietly

    return quietly(command)


def command() -> int:
    """Load the command line, or say what it lacks, and run it."""
    try:
        from sparc_ref.commands.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "sparc_ref":
            raise
        print(f"sparc-ref: the package {error.name} is missing; the command line needs, in a clone of sparc_ref: "
              "pip install '.[run]'", file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
