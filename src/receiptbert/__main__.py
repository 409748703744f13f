"""``python -m receiptbert`` is the command ``receiptbert``."""

from receiptbert.cli import main

main()
