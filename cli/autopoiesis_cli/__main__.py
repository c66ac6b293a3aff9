"""`python -m autopoiesis_cli`."""

from autopoiesis_cli.main import main

raise SystemExit(main())
