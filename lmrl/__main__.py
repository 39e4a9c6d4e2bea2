"""`python -m lmrl` is `lmrl`."""

from lmrl.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
