"""Make `from tests import …` mean this folder.

The distribution baycomp installs a package `tests` of its own, which would be found in its stead.
"""
