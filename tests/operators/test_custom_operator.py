"""The operator of docs/custom_operator.md grows a model in `fit` and survives a kill."""

import signal

from processes import result, start


def test_the_documented_operator_resumes_after_a_kill(tmp_path):
    whole = start("custom_operator.py", tmp_path / "whole", -1)
    killed = start("custom_operator.py", tmp_path / "killed", 2)
    digest, growths, size = result(whole)
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert growths == 1
    assert size == 16 * 4 + 16 + 2 * 16 + 2 * 16 + 2
    resumed = result(start("custom_operator.py", tmp_path / "killed", -1))
    assert resumed == [digest, 1, size]
