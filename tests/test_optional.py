"""Optional packages: where one is missing, one line names the extra, and what can go on does."""

import sys
from pathlib import Path

import pytest

from fastinfogan.errors import MissingPackageError, require
from tests.helpers.training import QUICK, prints

INSTALL_EVAL = "pip install 'fastinfogan[eval]'"


def test_a_package_that_is_there_is_returned() -> None:
    assert require("json.decoder", extra="eval", purpose="nothing").JSONDecoder


def test_the_error_names_package_reason_and_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingPackageError) as found:
        require("absent_package.part", extra="eval", purpose="scoring")
    assert str(found.value) == (
        f"scoring needs absent_package, which is not installed; {INSTALL_EVAL}"
    )
    (tmp_path / "broken_package.py").write_text("import absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match="broken_package, which cannot be imported"):
        require("broken_package", extra="eval", purpose="scoring")


@pytest.mark.usefixtures("narrow_networks")
def test_training_goes_on_without_tensorboard_and_scikit_learn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastinfogan.data.synthetic.COUNT", 200)
    for name in ("tensorboard", "sklearn", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, name, None)
    train = ("train", "sprites", "--iterations", "1", "--out", "run", *QUICK)
    printed = prints(*train, capsys=capsys)
    assert (
        "logging to TensorBoard needs tensorboard, which is not installed; "
        "pip install 'fastinfogan[train]'" in printed
    )
    assert f"sklearn, which is not installed; {INSTALL_EVAL}" in printed
    assert "MI bound" in printed
    assert Path("run/metrics.jsonl").exists()
    assert not Path("run/tensorboard").exists()
