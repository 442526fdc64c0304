"""python -m sparc_ref, and the command sparc-ref."""

import sys


def main() -> int:
    """Run the command line; the exit status is 0, 2 for an error that the user can mend, 130 after Ctrl-C."""
    try:
        from sparc_ref.commands.cli import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "sparc_ref":
            raise
        print(f"sparc-ref: the package {error.name} is missing; the command line needs: pip install 'sparc_ref[run]'",
              file=sys.stderr)
        return 2
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
