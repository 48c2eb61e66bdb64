# SPDX-License-Identifier: Apache-2.0
"""A kernel that allows no user namespace, as some containers have it."""

# Becomes a user of a namespace that allows no other, and then runs Python.
REFUSING = """
import os, sys
user, group = os.geteuid(), os.getegid()
os.unshare(os.CLONE_NEWUSER)
for name, text in (
    ("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")
):
    open(f"/proc/self/{name}", "w").write(text)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
