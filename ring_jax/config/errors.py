# SPDX-License-Identifier: Apache-2.0
"""What every check of a setting raises."""


class ConfigError(ValueError):
    """A user's mistake: one line that names the setting, its value and the remedy."""
