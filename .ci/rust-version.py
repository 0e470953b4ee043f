"""Prints our rust-version, given `cargo metadata` on stdin; fails where a dependency asks for a newer one."""

import json
import sys


def number(version):
    return tuple(int(part) for part in (version + ".0.0").split(".")[:3])


metadata = json.load(sys.stdin)
ours = next(package for package in metadata["packages"] if package["id"] == metadata["resolve"]["root"])
ours = ours["rust_version"]
newer = [
    f"  {package['name']} {package['version']} needs {package['rust_version']}"
    for package in metadata["packages"]
    if package["rust_version"] and number(package["rust_version"]) > number(ours)
]
if newer:
    sys.exit("\n".join([f"rust-version is {ours}, but", *newer]))
print(ours)
