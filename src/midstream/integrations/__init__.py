"""Midstream as a part of other projects' programs. Each module needs the package of its project."""
