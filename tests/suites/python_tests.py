"""Runs CPython's test_sqlite3: python_tests.py RESULTS writes a row for each of its files."""
import importlib
import pkgutil
import sys
import time
import unittest

import test.test_sqlite3 as package


def name(test):
    """Class and method; of a subtest those of its test."""
    return ".".join(getattr(test, "test_case", test).id().split(".")[-2:])


with open(sys.argv[1], "w", encoding="utf-8") as results:
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        if module.startswith("__"):
            continue
        begin = time.time()
        suite = unittest.defaultTestLoader.loadTestsFromModule(
            importlib.import_module(f"{package.__name__}.{module}"))
        outcome = unittest.TextTestRunner(verbosity=2).run(suite)
        failing = sorted({name(test) for test, _ in outcome.failures + outcome.errors})
        # "FAIL: " and "ERROR: " sections with the reasons are in the log.
        status = "pass" if outcome.wasSuccessful() else "FAIL"
        results.write(f"{module}\t{status}\t{len(failing)}\t{outcome.testsRun}\t"
                      f"{time.time() - begin:.2f}\t{' '.join(failing)}\n")
