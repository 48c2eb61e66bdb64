# SPDX-License-Identifier: Apache-2.0
"""A proven jail; where the kernel allows none, `Jail` refuses and nothing can run."""

import pytest

from ring_jax.jail import Jail, JailError, check_jail


@pytest.fixture(scope="session")
def jail():
    with Jail() as made:
        try:
            check_jail(made)
        except JailError as error:
            pytest.skip(f"this kernel confines no program: {error}")
        yield made
