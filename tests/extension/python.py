"""The library in Python's sqlite3, as an application would use it: python.py LIBRARY DIRECTORY"""
import glob
import os
import sqlite3
import sys
import unittest

LIBRARY, DIRECTORY = sys.argv[1:]
MARKER = "a marker that no file may hold"


def load(entry=None):
    db = sqlite3.connect(":memory:")
    db.enable_load_extension(True)
    if entry:
        db.execute("SELECT load_extension(?, ?)", (LIBRARY, entry))
    else:
        db.load_extension(LIBRARY)
    db.close()


def path(name):
    return os.path.join(DIRECTORY, name)


def leaks(name):
    """Files of the database `name` that hold the marker."""
    found = []
    for file in glob.glob(path(name) + "*"):
        with open(file, "rb") as content:
            if MARKER.encode() in content.read():
                found.append(file)
    return found


class Library(unittest.TestCase):
    """In the order of the names: each step builds on those before."""

    def test_1_a_wrong_entry_point_is_an_error(self):
        with self.assertRaises(sqlite3.OperationalError):
            load("sqlite3_no_such_init")
        with self.assertRaisesRegex(sqlite3.OperationalError, "no such vfs"):
            sqlite3.connect(f"file:{path('none.db')}?vfs=tde", uri=True)

    def test_2_by_name(self):
        load()
        for journal in ("delete", "persist", "wal"):
            name = f"py-{journal}.db"
            uri = f"file:{path(name)}?vfs=tde&tde_cipher=aes-256-ctr-hmac-sha256"
            db = sqlite3.connect(uri, uri=True, isolation_level=None)
            db.execute(f"PRAGMA journal_mode={journal}")
            db.execute("CREATE TABLE t(x)")
            db.execute("BEGIN")
            db.executemany("INSERT INTO t VALUES(?)", [(MARKER,)] * 500)
            self.assertEqual(leaks(name), [], journal)
            db.execute("COMMIT")
            self.assertEqual(leaks(name), [], journal)
            db.close()
            db = sqlite3.connect(uri, uri=True)
            self.assertEqual(db.execute("SELECT count(*), max(x) FROM t").fetchone(), (500, MARKER))
            cipher, = db.execute("PRAGMA tde_cipher").fetchone()
            self.assertEqual(cipher, "aes-256-ctr-hmac-sha256")
            db.close()
            self.assertEqual(leaks(name), [], journal)
            with self.assertRaisesRegex(sqlite3.DatabaseError, "not a database"):
                sqlite3.connect(path(name)).execute("SELECT * FROM t")

    def test_3_as_the_default(self):
        plain = sqlite3.connect(path("py-plain.db"), isolation_level=None)
        plain.execute("CREATE TABLE t(x)")
        plain.execute("INSERT INTO t VALUES(?)", (MARKER,))
        plain.close()
        self.assertEqual(len(leaks("py-plain.db")), 1, "the control")
        load("sqlite3_tdedefault_init")
        new = sqlite3.connect(path("py-new.db"), isolation_level=None)
        new.execute("ATTACH ? AS plain", (path("py-plain.db"),))
        new.execute("CREATE TABLE t AS SELECT * FROM plain.t")
        self.assertEqual(new.execute("SELECT x FROM t").fetchall(), [(MARKER,)])
        new.close()
        self.assertEqual(leaks("py-new.db"), [])

    def test_4_from_memory_by_backup(self):
        memory = sqlite3.connect(":memory:", isolation_level=None)
        memory.execute("CREATE TABLE t(x)")
        memory.execute("INSERT INTO t VALUES(?)", (MARKER,))
        copy = sqlite3.connect(path("py-copy.db"))
        memory.backup(copy)
        self.assertEqual(copy.execute("SELECT x FROM t").fetchall(), [(MARKER,)])
        copy.close()
        self.assertEqual(leaks("py-copy.db"), [])


unittest.main(argv=["python.py"])
