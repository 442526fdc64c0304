"""python -m parity ladder | vectors | cost | check"""

import sys

MISSING = "parity: the package {} is missing; in a clone of sparc_ref: pip install '.[parity]'"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a difference that was found, 2 for an error that the user can mend."""
    from sparc_ref.commands.pipes import quietly

    return quietly(lambda: run(argv))


def run(argv):
    """Load the commands, or say what they lack, and run one."""
    try:
        import tyro

        from parity.commands import COMMANDS
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "parity":
            raise
        print(MISSING.format(error.name), file=sys.stderr)
        return 2
    if (sys.argv[1:] if argv is None else argv) == ["--version"]:
        from importlib.metadata import version

        print(f"sparc_ref {version('sparc_ref')}")
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=argv, prog="python -m parity", sort_subcommands=False,
        description="SPARC's reference, checked: against frozen vectors, a torch trainer, and your own implementation.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        return command.run()
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "parity":
            raise
        print(MISSING.format(error.name), file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
