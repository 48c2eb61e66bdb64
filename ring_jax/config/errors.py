# SPDX-License-Identifier: Apache-2.0
"""What every check of a setting raises, and the checks that most sections need."""


class ConfigError(ValueError):
    """A user's mistake: one line that names the setting, its value and the remedy."""


def require_at_least(section: object, least: float, *names: str) -> None:
    """Checks settings of a section by name.

    Raises:
      ConfigError: names the first that is less than `least`, or not a number.
    """
    for name in names:
        value = getattr(section, name)
        if not value >= least:
            raise ConfigError(f"{name}={value} must be at least {least}.")


def require_above(section: object, bound: float, *names: str) -> None:
    """Checks settings of a section by name.

    Raises:
      ConfigError: names the first that is not above `bound`, or not a number.
    """
    for name in names:
        value = getattr(section, name)
        if not value > bound:
            raise ConfigError(f"{name}={value} must be above {bound}.")
