"""`python -m autopoiesis_cli`."""

from autopoiesis_cli.main import main

if __name__ == "__main__":  # worker processes import this module too
    raise SystemExit(main())
