from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from medi3d.preprocess.threads import one_thread


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_matrix_libraries_have_one_thread_within_and_as_many_as_before_after() -> None:
    np.eye(2) @ np.eye(2)
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with one_thread():
            assert blas_threads() == {1}
            with one_thread():
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == before
