"""What `make mends` takes back is still there, and so are the tests that have to fail."""

from __future__ import annotations

import pytest
from mends import MENDS, Mend, Unmended

from host import ROOT


@pytest.mark.parametrize("mend", MENDS, ids=lambda mend: mend.fault.split()[0])
def test_text_and_tests_are_there(mend: Mend) -> None:
    Unmended(mend)
    for test in mend.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8")
