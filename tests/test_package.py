import ast
import sys
from pathlib import Path

import pytest

import receiptbert
from receiptbert.choices import PRECISIONS
from receiptbert.precision import DTYPES


def test_every_public_name_is_importable_and_known_to_editors() -> None:
    source = Path(receiptbert.__file__).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for_editors = {alias.asname: f"{node.module}" for node in imports for alias in node.names if alias.asname}
    assert for_editors == {name: f"receiptbert.{module}" for name, module in receiptbert._MODULE_OF.items()}
    assert receiptbert.__all__ == dir(receiptbert)
    for name in receiptbert.__all__:
        assert getattr(receiptbert, name).__name__ == name
        assert getattr(receiptbert, name).__doc__


def test_what_a_plain_install_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages of training."""
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    for module in ("receiptbert.metrics", "receiptbert.finetune_trainer"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ImportError, match=r"make_scorer needs the package sklearn.metrics; install"):
        _ = receiptbert.make_scorer
    monkeypatch.setitem(receiptbert._MODULE_OF, "make_scorer", "no_such_module")
    with pytest.raises(ModuleNotFoundError, match=r"receiptbert\.no_such_module"):  # our own bug, not theirs
        _ = receiptbert.make_scorer


def test_choices_are_what_there_is() -> None:
    assert ["auto", *DTYPES] == PRECISIONS
