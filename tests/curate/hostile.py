# SPDX-License-Identifier: Apache-2.0
"""Verifiers that go wrong, and what becomes of their rows."""

# Python imports this module at the start of every process that verifies.
HOSTILE = """
import os, sys, time
import ring_jax.verify.grade
grade = sys.modules["ring_jax.verify.grade"]

def forks(*_):
    if os.fork() == 0:
        time.sleep(600)
    return True

grade.VERIFIERS |= {
    "hangs": lambda *_: time.sleep(600),
    "forks": forks,
    "dies": lambda *_: os._exit(3),
    "eats": lambda *_: bytearray(10**12),
}
"""
ENDS = {
    "hangs": "verifier_timeout",
    "dies": "verifier_crashed",
    "eats": "verifier_error",
    "nobody knows it": "verifier_error",
}
