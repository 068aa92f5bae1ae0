"""``python -m ctxextend``."""

from ctxextend.cli.main import main

main()
